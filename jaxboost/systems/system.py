"""A model that can be built, with a plan for its weights; and what all systems share."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost import device
from jaxboost.config.types import Config
from jaxboost.data.dataset import DatasetInfo
from jaxboost.models import attention, frozen
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.rngs import make_rngs
from jaxboost.systems.weights import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedTokens:
    """The output of a model's `encode` is the same at every step, so it can be computed once.

    Attributes:
      role: of the pretrained part that makes them.
      key: identifies the tokens, together with the weights of that part.
      drawn_by: the config field that says "random" for that part, which each seed draws; "": the part is loaded.
      most_gb: they are kept only if those of all images take at most this much memory, in GB.
    """

    role: str
    key: str
    drawn_by: str
    most_gb: float = math.inf

    def gigabytes(self, shape: Sequence[int], count: int) -> float:
        """Size of the tokens of `count` images in GB; `shape` (Q, W) is that of one image's tokens."""
        return count * math.prod(shape) * 4 / 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A model that can be built, and a plan for its weights.

    Attributes:
      build: makes the model with random weights.
      graphdef, params, frozen, stats: the model's structure and the shapes of its weights and statistics, as
        `frozen.split` gives them.
      pretrained: the parts with pretrained weights, and their random controls.
      title: the model's name in the log.
      boost: the boost variant, "none", "pneumollm", "lavin", "blip2", one of `prompted_clip.METHODS`, or
        "baseline".
      width: D, the width of the LLaMA layers that would be there, if the model has none but depends on it; else None.
      tokens: number of tokens that enter the LLaMA layers, or would if there were any.
      origin: what `build` is made from. Systems with the same origin, structure and parts draw the same weights from
        the same key. By default it equals that of no other system. `dataclasses.replace` keeps it: with another
        `build`, give another.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    frozen: dict[str, Any]
    stats: dict[str, Any]
    pretrained: tuple[Pretrained, ...]
    title: str
    boost: str
    tokens: int
    width: int | None = None
    origin: Hashable = dataclasses.field(default_factory=object)

    @property
    def loaded_and_frozen(self) -> tuple[Pretrained, ...]:
        """The parts whose weights are the same for all seeds, and stay so."""
        return tuple(part for part in self.pretrained if part.load is not None and not part.trainable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the result.json of a finished run says about its model.

    Attributes:
      parts: role -> entry about a pretrained part. Parts that the run trained come from its checkpoint, so their
        initial weights are not needed.
      width: see `System`; also None for runs of earlier versions.
    """

    parts: Mapping[str, Mapping[str, Any]]
    width: int | None = None


def trace(build: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, Any]:
    """The fields of a `System` that follow from `build`; nothing is computed."""
    graphdef, params, frozen_weights, stats = frozen.split(nnx.eval_shape(lambda: build(make_rngs(0))))
    return {
        "build": build,
        "graphdef": graphdef,
        "params": params,
        "frozen": frozen_weights,
        "stats": stats,
        "tokens": frozen.merge(graphdef, params, frozen_weights, stats).tokens,
    }


def described(parts: tuple[Pretrained, ...]) -> str:
    """The part of a title about the pretrained parts."""
    return "".join(f" ({part.text})" for part in parts)


def with_attention(config: Config, build: Callable[[nnx.Rngs], nnx.Module]) -> Callable[[nnx.Rngs], nnx.Module]:
    """`build`, whose model computes its attention as `attention_mode` says."""
    return lambda rngs: attention.choose(build(rngs), attention_mode(config))


def attention_mode(config: Config) -> str:
    """`model.attention`; with `train.deterministic` "plain", as the fused gradient adds in the order of threads."""
    # The config of a finished run has no fields that matter only in training, and a baseline's has none of them.
    return "plain" if config.get("train", {}).get("deterministic") else config.model.attention


def check_attention(config: Config, system: System, info: DatasetInfo) -> None:
    """Raises UserError if `model.attention=fused` and some attention of the system cannot be fused on this device."""
    if config.model.attention != "fused" or not jax.tree.leaves((system.params, system.frozen)):
        return
    if problem := attention.device_problem(device.current(), config.model.dtype):
        raise attention.unavailable(problem)
    ndim = BACKBONES[config.model.backbone].ndim if system.boost == "baseline" else info.ndim
    image = jax.ShapeDtypeStruct((1, *[config.model.image_size] * ndim, info.channels), jnp.uint8)
    weights = (system.params, system.frozen, system.stats)
    # A head that reads clinical columns needs them.
    columns = {"columns": jnp.zeros((1, info.column_features))} if info.column_features else {}
    jax.eval_shape(lambda images, *each: frozen.merge(system.graphdef, *each)(images, **columns), image, *weights)


def model_arguments(config: Config) -> dict[str, Any]:
    """The config's model section as keyword arguments of the `build` functions in models."""
    others = ("weights", "cache", "attention", "slice")
    model = {name: value for name, value in config.model.items() if not name.startswith(others)}
    return model | {"dtype": jnp.dtype(model["dtype"])}
