"""Frozen weights: a variable type of their own, so that no filter can mistake them for trainable ones."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
from flax import nnx

# A nested dict of arrays: what the training step, optax and the checkpoints see instead of nnx states.
Tree = Mapping[str, Any]


class Frozen(nnx.Variable):
    """A pretrained weight: no gradient, no optimiser state, never in a run's checkpoint.

    Not a subclass of `nnx.Param`: a filter for `nnx.Param` would swallow it.
    """


@flax.struct.dataclass
class Packed:
    """A frozen weight held in fewer bits, which `dense` unpacks. To `merge` and `count` it is one array of its shape.

    Attributes:
      parts: what is held, arrays with a common `shape`: that of the weight.
      unpack: gives the weight of `parts`, in float32.
    """

    parts: Any
    unpack: Callable[[Any], jax.Array] = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.parts.shape

    @property
    def size(self) -> int:
        """Number of the weight's elements; what helps to unpack them is none of them."""
        return math.prod(self.shape)


def dense(weight: jax.Array | Packed) -> jax.Array:
    """A weight as an array, whichever way it is held."""
    return weight.unpack(weight.parts) if isinstance(weight, Packed) else weight


def freeze(module: nnx.Module) -> nnx.Module:
    """Retypes every `nnx.Param` below `module` to `Frozen`, in place, and returns the module."""
    for _, node in nnx.iter_modules(module):
        for name, variable in list(vars(node).items()):
            if isinstance(variable, nnx.Param):
                setattr(node, name, Frozen(variable.get_value()))
    return module


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Splits a model into its graph definition, trainable weights and frozen weights, both as nested dicts of arrays.

    Raises ValueError where the model holds a third kind of state.
    """
    graphdef, params, frozen = nnx.split(model, nnx.Param, Frozen)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def merge(graphdef: nnx.GraphDef, params: Tree, frozen: Tree) -> Any:
    """Inverse of `split`, to be called inside a traced function."""
    held = jax.tree.map(Frozen, dict(frozen), is_leaf=_is_packed)
    return nnx.merge(graphdef, nnx.State(jax.tree.map(nnx.Param, dict(params))), nnx.State(held))


def count(tree: Tree) -> int:
    """Number of weights in a nested dict of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree, is_leaf=_is_packed))


def mib(tree: Tree) -> float:
    """Size of a nested dict of arrays or shapes in MiB: what the R-LLM paper calls "number of parameters"."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)
