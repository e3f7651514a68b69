"""Depthwise 2D convolutions: each channel has a kernel of its own."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from jaxboost.models.attention import is_portable

# The functions below are traced once for each shape (`jax.jit`), and `training.flops` counts them by their names.
Pads = tuple[tuple[int, int], tuple[int, int]]  # zeros above and below, left and right

_TERMS = 64  # of the sums in one pass of the loop of `depthwise_kernel_gradient`: with more, LLVM gives vectors up


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    """The convolution (B, h, w, C) -> (B, h', w', C) with a kernel (k, k, 1, C), in the fastest form for the backend.

    On a CPU, XLA computes it and its gradients without vector instructions, and the gradient of the kernel as a dense
    convolution. There it is a sum of k^2 products of shifted images.
    """
    products = functools.partial(_products, stride, pads)
    convolution = functools.partial(_convolution, stride, pads)
    if is_portable():
        return jax.lax.platform_dependent(x, kernel, cpu=products, default=convolution)
    return (products if jax.default_backend() == "cpu" else convolution)(x, kernel)


def _convolution(stride: int, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _products(stride: int, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `_convolution`; sums are at least float32."""
    return depthwise_products(_pad(x, pads), kernel, stride).astype(x.dtype)


def _forward(stride: int, pads: Pads, x: CustomVJPPrimal, kernel: CustomVJPPrimal) -> tuple[jax.Array, Any]:
    # As in `convolution`: what is not asked for is neither kept nor computed. Arrays without elements keep the shapes
    # and dtypes for the backward pass.
    kept = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return _products(stride, pads, x.value, kernel.value), (x.value[:0], kernel.value[:0], *kept)


def _backward(stride: int, pads: Pads, saved: Any, dy: jax.Array | SymbolicZero) -> tuple[jax.Array | None, ...]:
    no_images, no_kernel, x, kernel = saved
    if isinstance(dy, SymbolicZero):  # the result was not used
        return None, None
    size, dx, gradient = no_kernel.shape[1], None, None
    if kernel is not None:
        # The same sum with the kernel turned round, over dy with stride - 1 zeros between its pixels.
        dilated = [(side - 1) * stride + 1 for side in dy.shape[1:3]]
        before = [size - 1 - low for low, _ in pads]
        sides = zip(no_images.shape[1:3], before, dilated, strict=True)
        after = [side + size - 1 - low - own for side, low, own in sides]
        spread = _pad(dy, tuple(zip(before, after, strict=True)), between=stride - 1)
        dx = depthwise_products(spread, kernel[::-1, ::-1], 1).astype(no_images.dtype)
    if x is not None:
        gradient = depthwise_kernel_gradient(_pad(x, pads), dy, size, stride).astype(no_kernel.dtype)
    return dx, gradient


_products.defvjp(_forward, _backward, symbolic_zeros=True)


def _pad(x: jax.Array, pads: Any, between: int = 0) -> jax.Array:
    """Zeros around the images, and between their pixels; in the dtype of the sums."""
    x = x.astype(_wide(x))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *[(*pad, between) for pad in pads], (0, 0, 0)])


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def depthwise_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Padded images (B, h, w, C) and a kernel (k, k, 1, C) -> (B, h', w', C)."""
    size, kernel = kernel.shape[0], kernel[:, :, 0].astype(x.dtype)
    below, right = (side - size + 1 for side in x.shape[1:3])
    y: Any = 0
    for i, j in itertools.product(range(size), repeat=2):
        y += x[:, i : i + below : stride, j : j + right : stride] * kernel[i, j]
    return y


@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise_kernel_gradient(x: jax.Array, dy: jax.Array, size: int, stride: int) -> jax.Array:
    """From padded images (B, h, w, C) and dy (B, h', w', C): (k, k, 1, C).

    A loop over some rows of dy at a time, or over parts of one row. Inside it all sums run over terms that are written
    out: XLA on CPU computes these with vector instructions, and a reduction of products without.
    """
    B, rows, columns, C = dy.shape
    parts = -(-columns // _TERMS)
    wide = -(-columns // parts)
    # Columns of zeros, so that the parts are equal.
    missing = parts * wide - columns
    dy = _pad(dy.astype(x.dtype), ((0, 0), (0, missing)))
    x = _pad(x, ((0, 0), (0, missing * stride)))
    most = max(1, _TERMS // wide)
    high = next(count for count in range(min(most, rows), 0, -1) if rows % count == 0)
    read = [(count - 1) * stride + size for count in (high, wide)]

    def add(step: int | jax.Array, total: jax.Array) -> jax.Array:
        row, column = step // parts * high, step % parts * wide
        window = jax.lax.dynamic_slice(x, (0, row * stride, column * stride, 0), (B, *read, C))
        gradient = jax.lax.dynamic_slice(dy, (0, row, column, 0), (B, high, wide, C))
        for i, j in itertools.product(range(high), range(wide)):
            shifted = window[:, i * stride : i * stride + size, j * stride : j * stride + size]
            total += shifted * gradient[:, i : i + 1, j : j + 1]
        return total

    zeros = jnp.zeros((B, size, size, C), x.dtype)
    return jax.lax.fori_loop(0, rows // high * parts, add, zeros).sum(0)[:, :, None]
