"""Arrays on their devices: where each goes, and stacks of layers that are filled in place."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# shape of an array -> where it goes
Placement = Callable[[tuple[int, ...]], jax.sharding.Sharding]


def first_device(shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """The placement of everything on the first local device."""
    del shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def placed(array: np.ndarray, placement: Placement) -> jax.Array:
    """`array` where the placement says."""
    return _put(array, placement(array.shape))


def with_layer(
    stack: jax.Array | None, array: np.ndarray, position: int, depth: int, placement: Placement
) -> jax.Array:
    """Puts one layer's array at `position` of the stack of `depth` layers, whose buffer it takes over.

    Args:
      stack: what the last call returned, None for the first layer.
      placement: is asked for the stack's shape, and may split any axis but the first, that of the layers.
    """
    shape = (depth, *array.shape)
    sharding = placement(shape)
    layer = _put(array[None], sharding)
    if depth == 1:
        return layer
    if stack is None:
        stack = jax.jit(functools.partial(jnp.zeros, shape, array.dtype), out_shardings=sharding)()
    # Donated, so that the stack is filled in place and never held twice.
    fill = jax.jit(_filled, donate_argnums=0, out_shardings=sharding)
    return fill(stack, layer, np.int32(position))


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # Waiting lets the host's copy go before the next array is placed.
    return jax.block_until_ready(jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]))


def _filled(stack: jax.Array, layer: jax.Array, position: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(stack, layer, position, axis=0)
