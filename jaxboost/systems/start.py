"""The initial weights of a run: random ones are drawn on their devices, pretrained ones are loaded there."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.convert.placing import Placement
from jaxboost.models import frozen
from jaxboost.models.frozen import Tree
from jaxboost.systems.system import System
from jaxboost.systems.weights import Pretrained, digest

# Role of a part -> what its `load` returned.
Loaded = dict[str, tuple[tuple[dict[str, Any], ...], str]]


def initialise(
    system: System, *, seed: int, replicated: jax.NamedSharding, loaded: Loaded | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]:
    """Makes the weights at the start of a run.

    Random weights are drawn under jit directly on their devices. Weights that pretrained ones replace are never made.

    Args:
      system: the model, and the plan for its weights.
      seed: of the random weights.
      replicated: sharding that copies an array to each device.
      loaded: what was loaded for another seed; parts that are missing in it are loaded, and added.

    Returns:
      Trainable weights, frozen weights, statistics, and role -> fingerprint of each pretrained part. The fingerprint
      of a random part is the digest of its bytes.
    """

    def draw(key: jax.Array) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        _, params, frozen_weights, stats = frozen.split(system.build(nnx.Rngs(key)))
        for part in system.pretrained:
            holder = params if part.trainable else frozen_weights
            for path in part.paths:
                weights = _pop(holder, path)
                if part.load is None:
                    # The dtype that loaded weights would have.
                    dtype = jnp.dtype(part.about["dtype"])
                    weights = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), weights)
                    _put(holder, path, part.in_memory(weights))
            for path in part.statistics:
                _pop(stats, path)
        return params, frozen_weights, stats

    # An argument, so that other seeds find the compiled program on disk.
    key = jax.random.key(seed)
    shapes = jax.eval_shape(draw, key)
    shardings = jax.tree.map(lambda _: replicated, shapes)
    for part in system.pretrained:
        if part.load is None:
            holder = 0 if part.trainable else 1
            for path in part.paths:
                place = placement(part, replicated)
                leaves = _get(shapes[holder], path)
                _put(shardings[holder], path, jax.tree.map(lambda leaf, place=place: place(leaf.shape), leaves))
    params, frozen_weights, stats = jax.jit(draw, out_shardings=shardings)(key)
    fingerprints = {}
    for part in system.pretrained:
        holder = params if part.trainable else frozen_weights
        if part.load is None:
            fingerprints[part.role] = digest({".".join(path): _get(holder, path) for path in part.paths})
        else:
            loaded = {} if loaded is None else loaded
            if part.role not in loaded:
                loaded[part.role] = part.load(placement(part, replicated))
            trees, fingerprints[part.role] = loaded[part.role]
            places = [(holder, path) for path in part.paths] + [(stats, path) for path in part.statistics]
            for (tree, path), weights in zip(places, trees, strict=True):
                _put(tree, path, weights)
    return params, frozen_weights, stats, fingerprints


def shapes_in_memory(system: System, dtype: jnp.dtype) -> dict[str, Any]:
    """Shapes of the frozen weights in memory: quantized if the config says so, the others in `dtype`."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), system.frozen)
    for part in system.pretrained:
        if not part.trainable:
            for path in part.paths:
                _put(shapes, path, jax.eval_shape(part.in_memory, _get(shapes, path)))
    return shapes


def placement(part: Pretrained, replicated: jax.NamedSharding) -> Placement:
    """Sharding of each array of a part: a copy on each device, or the columns of its matrices split over them."""
    devices = replicated.mesh.size

    def place(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        if part.shards and len(shape) == 3 and shape[-1] % devices == 0:
            return jax.NamedSharding(replicated.mesh, jax.P(None, None, *replicated.mesh.axis_names))
        return replicated

    return place


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
