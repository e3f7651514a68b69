"""Splits what is trained over the devices: weights, the optimiser's state and averages, as FSDP and ZeRO do.

Each device keeps a part of each large array, and a step gathers the weights before it uses them. So the memory of what
is kept falls with the number of devices; the losses are the same up to rounding.
"""

from typing import Any

import jax

from jaxboost.models.frozen import Tree

# Smaller arrays, such as biases, would cost more time than they save memory.
_LEAST = 4096  # elements


def sharding(shape: tuple[int, ...], replicated: jax.NamedSharding) -> jax.NamedSharding:
    """The sharding of one array: its longest axis that the number of devices divides is split, if there is one."""
    mesh = replicated.mesh
    size = 1
    for length in shape:
        size *= length
    axes = [axis for axis, length in enumerate(shape) if length % mesh.size == 0]
    if size < _LEAST or not axes:
        return replicated
    axis = max(axes, key=lambda each: shape[each])
    return jax.NamedSharding(mesh, jax.P(*[None] * axis, *mesh.axis_names))


def split(tree: Any, replicated: jax.NamedSharding) -> Any:
    """Inside a jitted function: the arrays of a tree, split over the devices."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding(leaf.shape, replicated)), tree)


def gather(tree: Tree, replicated: jax.NamedSharding) -> Tree:
    """Inside a jitted function: the arrays of a tree, whole on each device."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated), tree)
