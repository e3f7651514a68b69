"""Pillow's resampling of uint8 images as two matrix products: first along x, then along y, rounded after each.

Filters: bicubic with a = -0.5, and bilinear; a reduction widens them (antialiasing). Results differ from Pillow's by at
most one grey level, where a value is halfway between two levels. From version 13 on, Pillow begins with y where a part
is much higher than wide; its results for such parts then differ by a few levels, from the rounding in between.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The names of Pillow's filters, in the order of a filter's number.
BICUBIC, BILINEAR = 0, 1
NUMBERS = {"BICUBIC": BICUBIC, "BILINEAR": BILINEAR}


@functools.cache
def _fixed_weights(old: int, new: int) -> np.ndarray:
    """Bicubic weights (new, old) of a whole side. Cached as NumPy: an array of jax could belong to one trace."""
    with jax.ensure_compile_time_eval():
        return np.asarray(weights(old, new, jnp.int32(0), jnp.int32(old), jnp.int32(BICUBIC)))


def weights(side: int, size: int, start: jax.Array, length: jax.Array, number: jax.Array) -> jax.Array:
    """The weights (size, side) that resample `length` pixels from `start` on, of a side of `side`, to `size` pixels.

    Pixels outside have weight 0: Pillow crops before it resamples.

    Args:
      side, size: of the stored image and of the result, in pixels.
      start, length: int32 (), of the part of the side.
      number: of the filter.
    """
    scale = length / size
    stretch = jnp.maximum(scale, 1.0)
    centre = (jnp.arange(size) + 0.5) * scale
    place = jnp.arange(side) - start
    distance = (place + 0.5 - centre[:, None]) / stretch
    # The end of the filter's support is rounded to whole pixels in Pillow, but the filters are 0 there.
    found = jnp.where(number == BICUBIC, _cubic(distance), jnp.maximum(1 - jnp.abs(distance), 0.0))
    found = jnp.where((place >= 0) & (place < length), found, 0.0)
    return found / found.sum(1, keepdims=True)


def resampled(image: jax.Array, across: jax.Array, down: jax.Array) -> jax.Array:
    """Resamples an image (S, S, C) by weights along x and along y, both (size, S); the result is (size, size, C)."""
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    wide = _rounded(exact("xj,yjc->yxc", across, image.astype(jnp.float32)))
    return _rounded(exact("yj,jxc->yxc", down, wide)).astype(jnp.uint8)


def resize(image: jax.Array, size: int) -> jax.Array:
    """Resizes an image (S, S, C) to `size` pixels with the bicubic filter, as `pipeline.resize.resize` does."""
    if image.shape[0] == size:
        return image
    fixed = jnp.asarray(_fixed_weights(image.shape[0], size))
    return resampled(image, fixed, fixed)


def crop_resize_and_flip(image: jax.Array, box: jax.Array, number: jax.Array, flips: jax.Array, size: int) -> jax.Array:
    """Crops an image (S, S, C), resizes the part to `size` pixels, and flips it; a flip reverses the weights alone.

    Args:
      image: the image.
      box: left, upper, width and height of the part in pixels, int32 (4,).
      number: of the filter.
      flips: whether it is flipped left-right, and upside-down, bool (2,).
      size: side of the result.
    """
    left, upper, width, height = box
    across = weights(image.shape[0], size, left, width, number)
    down = weights(image.shape[0], size, upper, height, number)
    across, down = (jnp.where(flip, both[::-1], both) for flip, both in zip(flips, (across, down), strict=True))
    return resampled(image, across, down)


def _cubic(distance: jax.Array) -> jax.Array:
    """The cubic filter (Keys 1981) with a = -0.5."""
    x = jnp.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def _rounded(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)
