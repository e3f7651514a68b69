"""Arrays on devices: their sharding, their quantisation, and stacks of layers that are filled in place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost.errors import UserError, missing_extra
from jaxboost.models.frozen import Quantized

# Shape of an array -> its sharding.
Placement = Callable[[tuple[int, ...]], jax.sharding.Sharding]
# Matrices (L, in, out) of L layers -> the same, quantised.
Pack = Callable[[jax.Array], Quantized]


def first_device(shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """The placement that puts everything on the first local device."""
    del shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def placed(array: np.ndarray, placement: Placement) -> jax.Array:
    """A copy of `array` on the devices of the placement."""
    return _put(array, placement(array.shape))


def int8(weights: jax.Array) -> Quantized:
    """Matrices (L, in, out) as 8-bit integers with a float32 scale for each layer's output, quantised by qwix.

    Symmetric: the largest weight of an output is 127.5 of its scale, and no weight is off by more than half a scale.

    Raises:
      UserError: qwix is not installed.
    """
    qwix = import_qwix()
    # The scale would take a narrower dtype over.
    return Quantized(qwix.quantize(weights.astype(jnp.float32), jnp.int8, channelwise_axes=(0, 2)), qwix.dequantize)


def import_qwix() -> Any:
    """The package that quantises. Raises UserError if it is not installed."""
    try:
        import qwix
    except ModuleNotFoundError as error:
        if error.name != "qwix":
            raise
        raise UserError(f"8-bit weights need qwix: {missing_extra('int8')}") from error
    return qwix


def with_layer(
    stack: Any | None, array: np.ndarray, position: int, depth: int, placement: Placement, pack: Pack | None = None
) -> Any:
    """Puts one layer's array at `position` of a stack of `depth` layers, whose buffers are reused.

    Args:
      stack: the result of the previous call, None for the first layer.
      array: of one layer.
      position: of the layer, from 0.
      depth: number of layers in the stack.
      placement: gives the sharding for the shapes of the stack's arrays; it may split any axis but the first, which is
        that of the layers.
      pack: quantises the layer; None where it stays as it is.
    """
    layer: Any = _put(array[None], placement((depth, *array.shape)))
    if pack is not None:
        shardings = jax.tree.map(lambda leaf: placement((depth, *leaf.shape[1:])), jax.eval_shape(pack, layer))
        # Waiting frees the dequantised layer before the next array is placed.
        layer = jax.block_until_ready(jax.jit(pack, out_shardings=shardings)(layer))
    if depth == 1:
        return layer
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((depth, *leaf.shape[1:]), leaf.dtype), layer)
    shardings = jax.tree.map(lambda leaf: placement(leaf.shape), shapes)
    if stack is None:
        stack = jax.jit(
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), out_shardings=shardings
        )()
    # Donated, so that the stack is filled in place and never held twice.
    fill = jax.jit(_filled, donate_argnums=0, out_shardings=shardings)
    return fill(stack, layer, np.int32(position))


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # A copy: the array may be a mapped file, and a CPU device would keep reading from the file. Waiting frees the copy
    # before the next array is placed.
    return jax.block_until_ready(
        jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))
    )


def _filled(stack: Any, layer: Any, position: jax.Array) -> Any:
    return jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, position, 0), stack, layer)
