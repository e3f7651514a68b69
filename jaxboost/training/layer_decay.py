"""Layer-wise decay of the learning rate: lower layers have lower rates.

As in BEiT's fine-tuning (Bao et al. 2021, section 3.2): the rate of layer l of L is multiplied by decay^(L + 1 - l).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.frozen import Tree


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies the updates of a model's encoder by `factors`."""

    def scaled(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(lambda update, factor: update * factor, updates, factors(updates, decay))

    return optax.stateless(scaled)


def factors(params: Tree, decay: float) -> Tree:
    """The factor of each weight's learning rate: a number, or an array that broadcasts over stacked layers.

    Layer l of L has decay^(L + 1 - l). The weights before the first layer (patches, positions, CLS) count as layer 0.
    Everything after the encoder (booster, head and their norms) has the factor 1.
    """
    stacks, followers, depth = {}, {}, 0
    for name, following in _stacks(params).items():
        first, depth = depth, depth + _depth(params["encoder"][name])
        stacks[name] = (first, depth)
        followers.update(dict.fromkeys(following, depth))

    def factor(path: tuple[Any, ...], leaf: jax.Array) -> float | jax.Array:
        names = [entry.key for entry in path]
        if names[0] != "encoder":
            return 1.0
        return decay ** (depth + 1 - _layer(names, leaf, stacks, followers))

    return jax.tree_util.tree_map_with_path(factor, params)


def _stacks(params: Tree) -> dict[str, tuple[str, ...]]:
    """The encoder's trained stacks of layers in the order in which they run, each with its followers (see `Stack`)."""
    found: dict[str, tuple[str, ...]] = {}
    for backbone in BACKBONES.values():
        for stack in backbone.traits.stacks:
            if stack.name in params.get("encoder", {}):
                found[stack.name] = found.get(stack.name, ()) + stack.followers
    return found


def _layer(
    names: list[str], leaf: jax.Array, stacks: dict[str, tuple[int, int]], followers: dict[str, int]
) -> int | jax.Array:
    """Number of the layer that a weight of the encoder belongs to; an array for stacked layers."""
    name = names[1]
    if name in stacks:
        first, last = stacks[name]
        if names[2] == "last":
            return last
        numbers = jnp.arange(first + 1, last, dtype=jnp.float32)
        return numbers.reshape(-1, *[1] * (leaf.ndim - 1))
    return followers.get(name, 0)


def _depth(stack: Tree) -> int:
    return 1 + (len(jax.tree.leaves(stack["blocks"])[0]) if "blocks" in stack else 0)
