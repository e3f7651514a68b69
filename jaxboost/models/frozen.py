"""Frozen weights: a variable type of their own, so that no filter can mistake them for trainable ones.

A model's third kind of state are statistics (`nnx.BatchStat`), which a training step changes without a gradient.
"""

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
class Quantized:
    """A frozen weight held in fewer bits; see `dequantize`. To `merge` and `count` it is one array of its shape.

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


def dequantize(weight: jax.Array | Quantized) -> jax.Array:
    """A weight as an array, whichever way it is held."""
    return weight.unpack(weight.parts) if isinstance(weight, Quantized) else weight


def freeze(module: nnx.Module) -> nnx.Module:
    """Retypes every `nnx.Param` below `module` to `Frozen`, in place, and returns the module."""
    for _, node in nnx.iter_modules(module):
        for name, variable in list(vars(node).items()):
            if isinstance(variable, nnx.Param):
                setattr(node, name, Frozen(variable.get_value()))
    return module


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Splits a model into (graph definition, trainable weights, frozen weights, statistics).

    All but the first are nested dicts of arrays; statistics are {} for a model without batch norms. Raises ValueError
    where the model holds a fourth kind of state.
    """
    graphdef, *states = nnx.split(model, nnx.Param, Frozen, nnx.BatchStat)
    params, frozen, stats = map(nnx.to_pure_dict, states)
    return graphdef, params, frozen, stats


def merge(graphdef: nnx.GraphDef, params: Tree, frozen: Tree, stats: Tree | None = None) -> Any:
    """Inverse of `split`, to be called inside a traced function.

    Args:
      stats: None stands for {}. A model that has statistics is refused without them (ValueError).
    """
    kinds = ((nnx.Param, params), (Frozen, frozen), (nnx.BatchStat, stats or {}))
    states = (nnx.State(jax.tree.map(kind, dict(tree), is_leaf=_is_quantized)) for kind, tree in kinds)
    return nnx.merge(graphdef, *states)


def statistics(model: nnx.Module) -> dict[str, Any]:
    """The statistics of a model as they are now, after a call in training mode the changed ones; see `split`."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def count(tree: Tree) -> int:
    """Number of weights in a nested dict of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree, is_leaf=_is_quantized))


def mib(tree: Tree) -> float:
    """Size of a nested dict of arrays or shapes in MiB: what the R-LLM paper calls "number of parameters"."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20


def _is_quantized(node: Any) -> bool:
    return isinstance(node, Quantized)
