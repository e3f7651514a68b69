"""Frozen weights have a separate variable type, so that no filter selects them as trainable weights.

A model's third kind of state is its statistics (`nnx.BatchStat`), which a training step changes without a gradient.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import flax.struct
import jax
from flax import nnx

# A nested dict of arrays: the form in which the training step, optax and the checkpoints handle weights.
Tree = Mapping[str, Any]

Module = TypeVar("Module", bound=nnx.Module)


class Frozen(nnx.Variable):
    """A pretrained weight: no gradient, no optimiser state, never in a run's checkpoint.

    It is not a subclass of `nnx.Param`, because a filter for `nnx.Param` would then select it too.
    """


@flax.struct.dataclass
class Quantized:
    """A frozen weight stored in fewer bits. `merge` and `count` treat it as one array; `dequantize` restores it.

    Attributes:
      parts: the stored arrays, such as int8 values and their scales; its `shape` is the weight's.
      to_float: parts -> the weight in float32.
    """

    parts: Any
    to_float: Callable[[Any], jax.Array] = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.parts.shape

    @property
    def size(self) -> int:
        """Number of elements of the weight, without scales."""
        return math.prod(self.shape)


def dequantize(weight: jax.Array | Quantized) -> jax.Array:
    """A weight as an array, quantized or not."""
    return weight.to_float(weight.parts) if isinstance(weight, Quantized) else weight


def freeze(module: Module, but: Iterable[nnx.Module] = ()) -> Module:
    """Turns every `nnx.Param` of a module and its children into `Frozen`, in place, and returns the module.

    Args:
      module: the module.
      but: modules inside it that stay as they are, with their children.
    """
    spared = {id(node) for each in but for _, node in nnx.iter_modules(each)}
    for _, node in nnx.iter_modules(module):
        for name, variable in list(vars(node).items()):
            if isinstance(variable, nnx.Param) and id(node) not in spared:
                setattr(node, name, Frozen(variable.get_value()))
    return module


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Splits a model into (graph definition, trainable weights, frozen weights, statistics).

    All but the first are nested dicts of arrays. Statistics are {} for a model without batch norms.

    Raises:
      ValueError: the model has another kind of state.
    """
    graphdef, *states = nnx.split(model, nnx.Param, Frozen, nnx.BatchStat)
    params, frozen, stats = map(nnx.to_pure_dict, states)
    return graphdef, params, frozen, stats


def merge(graphdef: nnx.GraphDef, params: Tree, frozen: Tree, stats: Tree | None = None) -> Any:
    """Makes the model again from the results of `split`. Call it inside a traced function.

    Args:
      graphdef: the graph definition.
      params: trainable weights.
      frozen: frozen weights; they may be `Quantized`.
      stats: statistics; None is the same as {}.

    Raises:
      ValueError: the model has statistics, but none are given.
    """
    kinds = ((nnx.Param, params), (Frozen, frozen), (nnx.BatchStat, stats or {}))
    states = (nnx.State(jax.tree.map(kind, dict(tree), is_leaf=_is_quantized)) for kind, tree in kinds)
    return nnx.merge(graphdef, *states)


def statistics(model: nnx.Module) -> dict[str, Any]:
    """The current statistics of a model, see `split`. A call in training mode updates them."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def count(tree: Tree) -> int:
    """Number of weights in a nested dict of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree, is_leaf=_is_quantized))


def mib(tree: Tree) -> float:
    """Size of a nested dict of arrays or shapes in MiB: what the R-LLM paper calls "number of parameters"."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20


def _is_quantized(node: Any) -> bool:
    return isinstance(node, Quantized)
