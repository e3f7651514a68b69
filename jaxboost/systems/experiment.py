"""A model that can be built, and its weights at the start of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxboost.convert.placing import Placement
from jaxboost.errors import UserError, check_choice
from jaxboost.models import frozen
from jaxboost.models.frozen import Tree
from jaxboost.models.layers import CHANNELS
from jaxboost.systems.pretrained import Pretrained, digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A model that can be built, and where its pretrained parts come from.

    Attributes:
      build: makes the model with random weights.
      graphdef, params, frozen, stats: its structure and the shapes of its weights and statistics, as `frozen.split`
        gives them.
      pretrained: the parts whose weights come from elsewhere, and their random controls.
      title: what the log and the tables call it.
      describe: what result.json says of it, "model" and "boost" among it.
      tokens: that the LLaMA layers see, or would see.
      encoder_key: where the model's `encode` gives the same at every step, so that it can be done ahead: what it
        depends on beside its weights; else None.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    frozen: dict[str, Any]
    stats: dict[str, Any]
    pretrained: tuple[Pretrained, ...]
    title: str
    describe: dict[str, Any]
    tokens: int
    encoder_key: str | None = None


def trace(
    build: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Structure and shapes of what `build` makes, as of `frozen.split`; nothing is computed."""
    return frozen.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def initialise(
    experiment: Experiment, *, seed: int, replicated: jax.NamedSharding
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]:
    """Weights at the start of a run: (trainable, frozen, statistics, fingerprint of each pretrained part by its role).

    Random ones are drawn under jit straight to their devices; those that pretrained ones replace never exist. The
    fingerprint of a random part is the digest of its bytes.
    """

    def draw() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        _, params, frozen_weights, stats = frozen.split(experiment.build(nnx.Rngs(seed)))
        for part in experiment.pretrained:
            holder = params if part.trainable else frozen_weights
            for path in part.paths:
                weights = _pop(holder, path)
                if part.load is None:
                    # As small as loaded ones would be.
                    dtype = jnp.dtype(part.about["dtype"])
                    weights = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), weights)
                    _put(holder, path, part.held(weights))
        return params, frozen_weights, stats

    shapes = jax.eval_shape(draw)
    shardings = jax.tree.map(lambda _: replicated, shapes)
    for part in experiment.pretrained:
        if part.load is None:
            holder = 0 if part.trainable else 1
            for path in part.paths:
                places = _places(_get(shapes[holder], path), placement(part, replicated))
                _put(shardings[holder], path, places)
    params, frozen_weights, stats = jax.jit(draw, out_shardings=shardings)()
    fingerprints = {}
    for part in experiment.pretrained:
        holder = params if part.trainable else frozen_weights
        if part.load is None:
            fingerprints[part.role] = digest({".".join(path): _get(holder, path) for path in part.paths})
        else:
            trees, fingerprints[part.role] = part.load(placement(part, replicated))
            for path, weights in zip(part.paths, trees, strict=True):
                _put(holder, path, weights)
    return params, frozen_weights, stats, fingerprints


def held_shapes(experiment: Experiment, dtype: jnp.dtype) -> dict[str, Any]:
    """Shapes of the frozen weights as a run holds them: those that it packs so, the others in `dtype`."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), experiment.frozen)
    for part in experiment.pretrained:
        if not part.trainable:
            for path in part.paths:
                _put(shapes, path, jax.eval_shape(part.held, _get(shapes, path)))
    return shapes


def placement(part: Pretrained, replicated: jax.NamedSharding) -> Placement:
    """Where each array of a part goes: a copy to each device, or its matrices' columns spread over them."""
    devices = replicated.mesh.size

    def place(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        if part.shards and len(shape) == 3 and shape[-1] % devices == 0:
            return jax.NamedSharding(replicated.mesh, jax.P(None, None, *replicated.mesh.axis_names))
        return replicated

    return place


def _places(shapes: Tree, place: Placement) -> Tree:
    return jax.tree.map(lambda leaf: place(leaf.shape), shapes)


def check_model(model: dict[str, Any]) -> None:
    """Raises UserError for a choice of the config's model section that no system has."""
    check_choice(model["dtype"], ("float32", "bfloat16"), "config field model.dtype")
    for field in ("mean", "std"):
        values = model[field]
        if len(values) not in (1, CHANNELS) or not all(isinstance(x, int | float) for x in values):
            raise UserError(f"config field model.{field}: give 1 or {CHANNELS} values, not {values}")
    if not 0 <= model.get("drop_path", 0) < 1:
        raise UserError(f"config field model.drop_path: {model['drop_path']} should be 0 to below 1")
    if not all(model["std"]):
        raise UserError(f"config field model.std: {model['std']} should not be 0")


def check_patch(backbone: str, patch: int, image_size: int) -> None:
    """Raises UserError where an image is not a whole number of patches."""
    if image_size <= 0 or image_size % patch:
        raise UserError(
            f"config field model.image_size: {image_size} is no multiple of the patch {patch} of backbone {backbone}"
        )


def model_arguments(config: ConfigDict) -> dict[str, Any]:
    """The config's model section as what the `build` functions take."""
    model = {name: value for name, value in config.model.items() if not name.startswith("weights")}
    return model | {"dtype": jnp.dtype(model["dtype"])}


def _get(tree: Tree, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _pop(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    return _get(tree, path[:-1]).pop(path[-1])


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
