"""Random crop, flips and colour jitter of 2-D images, as pipeline/augment.py does them with Pillow.

Brightness, contrast, saturation and sharpness mix an image with a degenerate one: black, its mean grey value, its grey
values, and a smoothed copy.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxboost.data.pipeline.augment import ATTEMPTS

# Weights of red, green and blue in a grey value (ITU-R 601), in units of 2^-16, as Pillow rounds them.
_LUMA = (19595, 38470, 7471)


def draw_box(key: jax.Array, side: int, *, scale: Sequence[float], ratio: Sequence[float]) -> jax.Array:
    """Left, upper, width and height of a random crop, int32 (4,); see `augment.crop_box`."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    low, high = ratio
    area = side * side * jax.random.uniform(area_key, (ATTEMPTS,), minval=scale[0], maxval=scale[1])
    logs = jax.random.uniform(ratio_key, (ATTEMPTS,), minval=math.log(low), maxval=math.log(high))
    lengths = jnp.rint(jnp.sqrt(jnp.stack([area * jnp.exp(logs), area / jnp.exp(logs)]))).astype(jnp.int32)
    fits = ((lengths > 0) & (lengths <= side)).all(0)
    drawn = lengths[:, jnp.argmax(fits)]  # width, height
    # Without one that fits: the largest centre crop, as near to a square as the ratio allows, of at least one pixel.
    widest = jnp.array([max(1, round(side * min(high, 1))), max(1, round(side / max(low, 1)))])
    found = jnp.where(fits.any(), drawn, widest)
    random = jnp.floor(jax.random.uniform(place_key, (2,)) * (side - found + 1)).astype(jnp.int32)
    # A uniform number just below 1 may be rounded up.
    start = jnp.where(fits.any(), jnp.minimum(random, side - found), (side - found) // 2)
    return jnp.concatenate([start, found])


def flip(image: jax.Array, flips: jax.Array) -> jax.Array:
    """Flips an image (S, S, C) left-right, and upside-down, where `flips`, bool (2,), is True."""
    image = jnp.where(flips[0], image[:, ::-1], image)
    return jnp.where(flips[1], image[::-1], image)


def jitter(image: jax.Array, order: jax.Array, factors: jax.Array) -> jax.Array:
    """Changes brightness, contrast and saturation of an image (S, S, C).

    Args:
      image: the image.
      order: a permutation of 0 (brightness), 1 (contrast) and 2 (saturation), int32 (3,).
      factors: of the first, second and third change, (3,).
    """
    changes = (brightness, contrast, saturation)
    for number in range(len(changes)):
        image = jax.lax.switch(order[number], changes, image, factors[number])
    return image


def draw_jitter(key: jax.Array, strength: float) -> tuple[jax.Array, jax.Array]:
    """The order and factors of `jitter`."""
    order_key, factor_key = jax.random.split(key)
    factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
    return jax.random.permutation(order_key, 3), factors


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies grey values by a factor."""
    return blend(jnp.zeros((), jnp.float32), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the differences from the mean grey value by a factor."""
    return blend(jnp.floor(grey(image).mean(dtype=jnp.float32) + 0.5), image, factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the differences from the grey values by a factor; a grey image stays as it is."""
    if image.shape[-1] == 1:
        return image
    return blend(grey(image).astype(jnp.float32), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the differences from a smoothed image by a factor; the pixels of the border stay."""
    values = image.astype(jnp.int32)
    if min(values.shape[:2]) < 3:
        return image
    rows = values[:-2] + values[1:-1] + values[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]
    # Weights 1, and 5 in the middle; rounded half up.
    smooth = values.at[1:-1, 1:-1].set((2 * total + 13) // 26)
    return blend(smooth.astype(jnp.float32), image, factor)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Mixes two images: `factor` 0 gives the degenerate one, 1 the image; decimals are cut off, as in Pillow."""
    mixed = degenerate + factor * (image.astype(jnp.float32) - degenerate)
    return jnp.clip(jnp.trunc(mixed), 0, 255).astype(jnp.uint8)


def grey(image: jax.Array) -> jax.Array:
    """Grey values (S, S, 1) of an image (S, S, C), int32."""
    values = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return values
    return (values @ jnp.array(_LUMA)[:, None] + 2**15) >> 16
