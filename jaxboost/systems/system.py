"""A model that can be built, and the checks of its config that all systems share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxboost.config.types import Config
from jaxboost.errors import UserError, check_choice
from jaxboost.models import frozen
from jaxboost.models.layers import CHANNELS
from jaxboost.systems.weights import Pretrained

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A model that can be built, and a plan for its weights.

    Attributes:
      build: makes the model with random weights.
      graphdef, params, frozen, stats: the model's structure and the shapes of its weights and statistics, as
        `frozen.split` gives them.
      pretrained: the parts whose weights come from elsewhere, and their random controls.
      title: the model's name in the log.
      summary: what result.json says about the model, "model" and "boost" among it.
      tokens: number of tokens that the LLaMA layers see, or would see.
      encoder_key: identifies the output of the model's `encode`, beside its weights, where that output is the same at
        every step and can be computed once; else None.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    frozen: dict[str, Any]
    stats: dict[str, Any]
    pretrained: tuple[Pretrained, ...]
    title: str
    summary: dict[str, Any]
    tokens: int
    encoder_key: str | None = None


def trace(build: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, Any]:
    """The fields of a `System` that follow from `build`; nothing is computed."""
    graphdef, params, frozen_weights, stats = frozen.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return {
        "build": build,
        "graphdef": graphdef,
        "params": params,
        "frozen": frozen_weights,
        "stats": stats,
        "tokens": frozen.merge(graphdef, params, frozen_weights, stats).tokens,
    }


def texts(parts: tuple[Pretrained, ...]) -> str:
    """What a title says about the pretrained parts."""
    return "".join(f" ({part.text})" for part in parts)


def check_model(model: dict[str, Any]) -> None:
    """Raises UserError for a value of the config's model section that no system takes."""
    check_choice(model["dtype"], DTYPES, "config field model.dtype")
    for field in ("mean", "std"):
        values = model[field]
        if len(values) not in (1, CHANNELS) or not all(isinstance(x, int | float) for x in values):
            raise UserError(f"config field model.{field}: give 1 or {CHANNELS} values, not {values}")
    if not 0 <= model.get("drop_path", 0) < 1:
        raise UserError(f"config field model.drop_path: {model['drop_path']} should be 0 to below 1")
    if not all(model["std"]):
        raise UserError(f"config field model.std: {model['std']} should not be 0")


def check_patch(backbone: str, patch: int, image_size: int) -> None:
    """Raises UserError if the side of an image is not a multiple of the patch size."""
    if image_size <= 0 or image_size % patch:
        raise UserError(
            f"config field model.image_size: {image_size} is not a multiple of the patch size {patch} of backbone"
            f" {backbone}"
        )


def model_arguments(config: Config) -> dict[str, Any]:
    """The config's model section as keyword arguments of the `build` functions in models."""
    model = {name: value for name, value in config.model.items() if not name.startswith("weights")}
    return model | {"dtype": jnp.dtype(model["dtype"])}
