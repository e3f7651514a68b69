"""Arrays on devices: their sharding, their quantization, and stacks of layers that are filled in place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost.errors import UserError, missing_extra
from jaxboost.models.frozen import Quantized

# Shape of an array -> its sharding.
Placement = Callable[[tuple[int, ...]], jax.sharding.Sharding]
# Matrices (L, in, out) of L layers -> the same, quantized.
Quantize = Callable[[jax.Array], Quantized]


def first_device(shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """The placement that puts everything on the first local device."""
    del shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def placed(array: np.ndarray, placement: Placement) -> jax.Array:
    """A copy of `array` on the devices of the placement."""
    return _put(array, placement(array.shape))


def int8(weights: jax.Array) -> Quantized:
    """Matrices (L, in, out) as 8-bit integers with a float32 scale for each layer's output, quantized by qwix.

    Symmetric: the largest weight of an output is 127.5 scales, and the error of a weight is at most half a scale.

    Raises:
      UserError: qwix is not installed.
    """
    qwix = import_qwix()
    # qwix gives the scale the dtype of the weights.
    return Quantized(qwix.quantize(weights.astype(jnp.float32), jnp.int8, channelwise_axes=(0, 2)), qwix.dequantize)


def import_qwix() -> Any:
    """Imports qwix, which quantizes. Raises UserError if it is not installed."""
    try:
        import qwix
    except ModuleNotFoundError as error:
        if error.name != "qwix":
            raise
        raise UserError(f"8-bit weights need qwix: {missing_extra('int8')}") from error
    return qwix


def with_layer(
    stack: Any | None,
    array: np.ndarray,
    position: int,
    depth: int,
    placement: Placement,
    quantize: Quantize | None = None,
) -> Any:
    """Puts one layer's array at `position` of a stack of `depth` layers, whose buffers are reused.

    Args:
      stack: the result of the previous call, None for the first layer.
      array: of one layer.
      position: of the layer, from 0.
      depth: number of layers in the stack.
      placement: shape of an array of the stack -> its sharding. It may split any axis except the first, the layers'.
      quantize: quantizes the layer; None: it is not quantized.
    """
    layer: Any = _put(array[None], placement((depth, *array.shape)))
    if quantize is not None:
        shardings = jax.tree.map(lambda leaf: placement((depth, *leaf.shape[1:])), jax.eval_shape(quantize, layer))
        # Waiting frees the unquantized layer before the next array is placed.
        layer = jax.block_until_ready(jax.jit(quantize, out_shardings=shardings)(layer))
    if depth == 1:
        return layer
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((depth, *leaf.shape[1:]), leaf.dtype), layer)
    shardings = jax.tree.map(lambda leaf: placement(leaf.shape), shapes)
    if stack is None:
        stack = jax.tree.map(lambda leaf, its: jnp.zeros(leaf.shape, leaf.dtype, device=its), shapes, shardings)
    # Donated: the stack is filled in place, and is never in memory twice.
    fill = jax.jit(_filled, donate_argnums=0, out_shardings=shardings)
    return fill(stack, layer, np.int32(position))


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # A copy, because the array may be a mapped file, which a CPU device would go on reading. Waiting frees the copy
    # before the next array is placed.
    return jax.block_until_ready(
        jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))
    )


def _filled(stack: Any, layer: Any, position: jax.Array) -> Any:
    return jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, position, 0), stack, layer)
