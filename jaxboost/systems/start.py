"""The initial weights of a run: random ones are drawn on their devices, pretrained ones are loaded there."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.convert.placing import Placement
from jaxboost.models import frozen
from jaxboost.models.frozen import Tree
from jaxboost.models.rngs import make_rngs
from jaxboost.systems.system import System
from jaxboost.systems.weights import Pretrained, as_trained, cast, digest

# A random key -> trainable weights, frozen weights and statistics.
Draw = Callable[[jax.Array], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]


@dataclasses.dataclass
class Shared:
    """What the starts of several seeds of a system share; `initialise` fills it.

    Attributes:
      loaded: role of a part -> what its `load` returned.
    """

    loaded: dict[str, tuple[tuple[dict[str, Any], ...], str]] = dataclasses.field(default_factory=dict)


def initialise(
    system: System, *, seed: int, replicated: jax.NamedSharding, shared: Shared | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]:
    """Makes the weights at the start of a run.

    Random weights are drawn under jit directly on their devices. Weights that pretrained ones replace are never made.

    Args:
      system: the model, and the plan for its weights.
      seed: of the random weights.
      replicated: sharding that copies an array to each device.
      shared: what another seed of the same system has made; what is missing in it is made, and added.

    Returns:
      Trainable weights, frozen weights, statistics, and role -> fingerprint of each pretrained part. The fingerprint
      of a random part is the digest of its bytes.
    """
    shared = shared or Shared()
    params, frozen_weights, stats = _drawing(_Key.of(system, replicated))(jax.random.key(seed))
    fingerprints = {}
    for part in system.pretrained:
        holders = _holders(part, (params, frozen_weights))
        if part.load is None:
            drawn = {".".join(path): [_find(holder, path) for holder in holders] for path in part.paths}
            # The digests of earlier versions are those of the weights themselves.
            fingerprints[part.role] = digest(drawn if part.partly else {name: each[0] for name, each in drawn.items()})
        else:
            if part.role not in shared.loaded:
                shared.loaded[part.role] = part.load(placement(part, replicated))
            trees, fingerprints[part.role] = shared.loaded[part.role]
            count = len(part.paths)
            for path, weights in zip(part.paths, trees[:count], strict=True):
                if not part.partly:
                    _put(holders[0], path, weights)
                    continue
                trained, kept = _divided(weights, _find(system.params, path) or {})
                if part.kept_dtype is not None:
                    kept = cast(kept, jnp.dtype(part.kept_dtype))
                for holder, some in ((params, as_trained(trained)), (frozen_weights, kept)):
                    if some:
                        _put(holder, path, some)
            for path, found in zip(part.statistics, trees[count:], strict=True):
                # A copy, because each run changes its own.
                _put(stats, path, jax.tree.map(jnp.copy, found))
    return params, frozen_weights, stats, fingerprints


def forget() -> None:
    """Draws are compiled again from here on, as in a process of its own."""
    _drawing.cache_clear()


@dataclasses.dataclass(frozen=True)
class _Key:
    """What decides how random weights are drawn. Of equal keys one `system` is as good as the other."""

    graphdef: nnx.GraphDef
    shapes: tuple[Any, ...]
    parts: tuple[Any, ...]
    origin: Hashable
    replicated: jax.NamedSharding
    system: System = dataclasses.field(compare=False)

    @classmethod
    def of(cls, system: System, replicated: jax.NamedSharding) -> "_Key":
        leaves, _ = jax.tree.flatten_with_path((system.params, system.frozen, system.stats))
        shapes = ((jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves)
        parts = (
            dataclasses.replace(part, load=part.load and _loads, about=part.about.get("dtype"), text="")
            for part in system.pretrained
        )
        return cls(system.graphdef, (*shapes,), (*parts,), system.origin, replicated, system)


def _loads(_: Any) -> Any:
    """Stands for any `Pretrained.load`."""


# An arm of a study has one for all of its learning rates and seeds.
@functools.lru_cache(maxsize=16)
def _drawing(key: _Key) -> Draw:
    """The compiled function that draws the random weights of a system, see `initialise`."""
    system, replicated = key.system, key.replicated

    def draw(key: jax.Array) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        _, params, frozen_weights, stats = frozen.split(system.build(make_rngs(key)))
        for part in system.pretrained:
            for path in part.paths:
                for holder in _holders(part, (params, frozen_weights)):
                    weights = _pop(holder, path)
                    assert weights is not None or part.partly, path
                    if part.load is None and weights is not None:
                        if not (part.partly and holder is params):
                            # The dtype that loaded weights would have.
                            weights = cast(weights, jnp.dtype(part.about["dtype"]))
                        _put(holder, path, part.in_memory(weights))
            for path in part.statistics:
                _pop(stats, path)
        return params, frozen_weights, stats

    # The key is an argument, so that other seeds find the compiled program, also on disk.
    shapes = jax.eval_shape(draw, jax.random.key(0))
    shardings = jax.tree.map(lambda _: replicated, shapes)
    for part in system.pretrained:
        if part.load is None:
            place = placement(part, replicated)
            for path in part.paths:
                for each, of_each in zip(_holders(part, shapes[:2]), _holders(part, shardings[:2]), strict=True):
                    if (leaves := _find(each, path)) is not None:
                        _put(of_each, path, jax.tree.map(lambda leaf, place=place: place(leaf.shape), leaves))
    return jax.jit(draw, out_shardings=shardings)


def shapes_in_memory(system: System, dtype: jnp.dtype) -> dict[str, Any]:
    """Shapes of the frozen weights in memory: quantized if the config says so, the others in `dtype`.

    An encoder with batch norms is float32, see `encoders.resolve_encoder`.
    """
    shapes = {}
    for name, tree in system.frozen.items():
        of_part = jnp.dtype("float32") if system.stats.get(name) else dtype
        shapes[name] = jax.eval_shape(functools.partial(cast, dtype=of_part), tree)
    for part in system.pretrained:
        if not part.trainable:
            for path in part.paths:
                if (weights := _find(shapes, path)) is not None:
                    _put(shapes, path, jax.eval_shape(part.in_memory, weights))
    return shapes


def placement(part: Pretrained, replicated: jax.NamedSharding) -> Placement:
    """Sharding of each array of a part: a copy on each device, or the columns of its matrices split over them."""
    devices = replicated.mesh.size

    def place(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        if part.shards and len(shape) == 3 and shape[-1] % devices == 0:
            return jax.NamedSharding(replicated.mesh, jax.P(None, None, *replicated.mesh.axis_names))
        return replicated

    return place


def _holders(part: Pretrained, trees: Sequence[Any]) -> list[Any]:
    """Of the trees of trained and of frozen weights those that a part has weights in."""
    trained, kept = trees
    return [trained, kept] if part.partly else [trained if part.trainable else kept]


def _divided(weights: Tree, like: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides nested dicts into (what has a place in `like`, the rest)."""
    inside, outside = {}, {}
    for name, node in weights.items():
        if isinstance(node, Mapping):
            some, rest = _divided(node, like.get(name, {}))
            inside |= {name: some} if some else {}
            outside |= {name: rest} if rest else {}
        else:
            (inside if name in like else outside)[name] = node
    return inside, outside


def _find(tree: Any, path: tuple[str, ...]) -> Any:
    """What a tree has at a place; None if it has nothing there."""
    for name in path:
        if name not in tree:
            return None
        tree = tree[name]
    return tree


def _pop(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """Takes what `_find` finds out of the tree."""
    found = _find(tree, path)
    if found is not None:
        _find(tree, path[:-1]).pop(path[-1])
    return found


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
