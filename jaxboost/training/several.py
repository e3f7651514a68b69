"""Several copies of a function in one program: the copies of a training step that differ in seed.

Arrays that differ from copy to copy have a first axis for the copies; others, such as a loaded frozen block, are there
once.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxboost.models.frozen import Tree

# Keys of the frozen weights of several copies.
OWN, SHARED = "own", "shared"


@dataclasses.dataclass(frozen=True)
class Over:
    """Maps functions over copies.

    Attributes:
      one_by_one: a loop over the copies, instead of all at once. A CPU takes less time for it: products of many small
        matrices are slow there (seen: a step of 5 copies of small models took 3.6 to 4.5 times the processor's time of
        one step in a loop, and 4.8 to 6.1 times at once). An accelerator is busy only with all of them at once.
    """

    one_by_one: bool

    def __call__(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Returns a function of (what differs, what is shared), from one of (that of one copy, what is shared)."""
        if self.one_by_one:
            return lambda each, shared: jax.lax.map(lambda one: function(one, shared), each)
        return jax.vmap(function, in_axes=(0, None))


def stacked(trees: Sequence[Any]) -> Any:
    """One tree whose arrays have an axis for the trees."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def taken_apart(tree: Any, count: int) -> list[Any]:
    """The trees of `stacked`."""
    return [jax.tree.map(lambda leaf, index=index: leaf[index], tree) for index in range(count)]


def divided(tree: Tree, paths: Iterable[tuple[str, ...]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides nested dicts into (all below `paths`, the rest)."""
    named, rest = {}, {}
    paths = [*paths]
    for name, node in tree.items():
        below = [path[1:] for path in paths if path[0] == name]
        if () in below:
            named[name] = node
        elif below:
            inside, outside = divided(node, below)
            named |= {name: inside} if inside else {}
            rest |= {name: outside} if outside else {}
        else:
            rest[name] = node
    return named, rest


def joined(one: Tree, other: Tree) -> dict[str, Any]:
    """Joins nested dicts that have no array at the same place."""
    found = dict(one)
    for name, node in other.items():
        found[name] = joined(found[name], node) if name in found else node
    return found
