"""Dense convolutions: XLA's, on a CPU with another gradient of the kernel where images are large."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from jaxboost.models.attention import is_portable

Strides = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]  # zeros before and behind, of each axis

_PIXELS = 28 * 28  # of an image: with fewer, the loop below is not faster than XLA's gradient
_TOGETHER = 2  # images in one pass of the loop: their patches stay in the cache, and the products are large enough


def convolve(x: jax.Array, kernel: jax.Array, *, strides: Strides, pads: Pads, groups: int = 1) -> jax.Array:
    """The convolution (B, *sides, C) -> (B, *new sides, D), for one to three axes.

    On a CPU, XLA (jax 0.10.2) needs for the gradient of the kernel 1.3 to 2.3 times as long as a loop of matrix
    products, if the images have 28 or more pixels a side (seen at batch 8, with 3 to 256 channels). There the loop
    takes its place; it forbids forward-mode derivatives (`jax.jvp`).

    Args:
      x: images or volumes.
      kernel: (*kernel's sides, C / groups, D), of x's dtype.
      strides: of the kernel, along each axis.
      pads: zeros around the images.
      groups: the channels are divided into so many groups, which are not mixed.
    """
    if groups == 1 and jax.default_backend() == "cpu" and not is_portable() and _pays(x, kernel, strides):
        return _with_loop(strides, pads, x, kernel)
    return _convolution(strides, pads, x, kernel, groups)


def _pays(x: jax.Array, kernel: jax.Array, strides: Strides) -> bool:
    """Whether the loop was seen to be faster.

    Volumes were not timed: the patches of two are larger than a cache. Nor were patches that do not overlap.
    """
    overlap = all(stride < side for stride, side in zip(strides, kernel.shape[:-2], strict=True))
    return overlap and len(strides) == 2 and math.prod(x.shape[1:-1]) >= _PIXELS


def _convolution(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    axes = "DHW"[-len(strides) :]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=pads,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_loop(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `_convolution`; only the gradient of the kernel is computed otherwise."""
    return _convolution(strides, pads, x, kernel)


def _forward(strides: Strides, pads: Pads, x: CustomVJPPrimal, kernel: CustomVJPPrimal) -> tuple[jax.Array, Any]:
    # What is not asked for is neither kept nor computed: gradients of pixels, or of frozen kernels. A compiler would
    # drop it too, but `training.flops` would count it.
    if x.perturbed:
        y, pull = jax.vjp(lambda images: _convolution(strides, pads, images, kernel.value), x.value)
    else:
        y, pull = _convolution(strides, pads, x.value, kernel.value), None
    return y, (pull, (x.value, kernel.value) if kernel.perturbed else None)


def _backward(strides: Strides, pads: Pads, saved: Any, dy: jax.Array | SymbolicZero) -> tuple[jax.Array | None, ...]:
    pull, given = saved
    if isinstance(dy, SymbolicZero):  # the result was not used
        return None, None
    dx, gradient = None, None
    if pull is not None:
        (dx,) = pull(dy)
    if given is not None:
        x, kernel = given
        gradient = kernel_gradient(x, dy, kernel.shape[:-2], strides, pads).astype(kernel.dtype)
    return dx, gradient


_with_loop.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))  # traced once for each shape
def kernel_gradient(x: jax.Array, dy: jax.Array, sides: tuple[int, ...], strides: Strides, pads: Pads) -> jax.Array:
    """From images (B, ..., C) and dy (B, ..., D): the gradient of a kernel (*sides, C, D), in float32 at least."""
    gradient = functools.partial(_loop, sides, strides, pads)
    devices = jax.device_count()
    if devices == 1 or x.shape[0] % devices:
        return gradient(x, dy)
    # Each device loops over its own images: it would get all of them for a loop over a batch that is divided.
    parts = (array.reshape(devices, -1, *array.shape[1:]) for array in (x, dy))
    return jax.vmap(gradient)(*parts).sum(0)


def _loop(sides: tuple[int, ...], strides: Strides, pads: Pads, x: jax.Array, dy: jax.Array) -> jax.Array:
    B, (C, D) = len(x), (x.shape[-1], dy.shape[-1])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    together = _TOGETHER if B % _TOGETHER == 0 else 1
    passes = tuple(array.reshape(B // together, together, *array.shape[1:]) for array in (x, dy))
    spans = [(side - 1) * stride + 1 for side, stride in zip(dy.shape[1:-1], strides, strict=True)]

    def add(total: jax.Array, images: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, dy = (array.astype(wide) for array in images)
        x = jax.lax.pad(x, jnp.zeros((), wide), [(0, 0, 0), *[(*pad, 0) for pad in pads], (0, 0, 0)])

        def seen(place: tuple[int, ...]) -> jax.Array:
            """What one pixel of the kernel is applied to: (together, *sides of dy, C)."""
            ends = [start + span for start, span in zip(place, spans, strict=True)]
            return jax.lax.slice(x, (0, *place, 0), (together, *ends, C), (1, *strides, 1))

        # One product for each row of the kernel, along its last axis.
        products = []
        for row in itertools.product(*map(range, sides[:-1])):
            patches = jnp.concatenate([seen((*row, last)) for last in range(sides[-1])], axis=-1)
            products.append(patches.reshape(-1, sides[-1] * C).T @ dy.reshape(-1, D))
        return total + jnp.stack(products).reshape(total.shape), None

    return jax.lax.scan(add, jnp.zeros((*sides, C, D), wide), passes)[0]
