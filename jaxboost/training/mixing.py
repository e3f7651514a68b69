"""Random changes of a training batch: random erasing, mixup, cutmix, label smoothing. Pure functions, inside jit.

Changed images are floats from 0 to 255, which the model takes like uint8. Labels become targets, floats (B, classes).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Random erasing (Zhong et al. 2020) as the reference uses it: range of the area ratio, and the largest aspect ratio.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = 1 / 0.3
_ERASE_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """The config's section `mix`, whose fields config/data_fields.py explains."""

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    prob: float = 1.0
    erase: float = 0.0
    label_smoothing: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed with others."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def changes_images(self) -> bool:
        """Whether images are changed."""
        return self.mixes or self.erase > 0


def augment_batch(
    images: jax.Array,
    targets: jax.Array,
    mixing: Mixing,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Erases a rectangle of some images, and mixes each example with its partner: the first with the last, and so on.

    Args:
      images: uint8 (B, S, S[, S], C).
      targets: (B, classes).
      mixing: the changes and their strengths.
      mean, std: of the normalisation of pixels; the noise in an erased rectangle has them too.
      key: random key.

    Returns:
      Images and targets of the loss; images that are not changed stay uint8.
    """
    erase_key, mix_key = jax.random.split(key)
    if mixing.erase:
        images = erase(images.astype(jnp.float32), mixing.erase, mean=mean, std=std, key=erase_key)
    if mixing.mixes:
        images, targets = mix(images.astype(jnp.float32), targets, mixing, key=mix_key)
    return images, targets


def mix(images: jax.Array, targets: jax.Array, mixing: Mixing, *, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of the whole batch with itself in reverse order.

    A batch is mixed with probability `prob`; if both have an alpha above 0, by cutmix with probability `switch`. The
    weight l of the example itself is Beta(alpha, alpha). Cutmix takes a box of the partner with sides S (1 - l)^(1/n),
    n spatial dimensions, around a random centre; l is then corrected to the part of the box inside the image.
    """
    on_key, which_key, share_key, box_key = jax.random.split(key, 4)
    other_images, other_targets = images[::-1], targets[::-1]
    cut = jnp.asarray(mixing.cutmix > 0)
    if mixing.mixup > 0 and mixing.cutmix > 0:
        cut = jax.random.bernoulli(which_key, mixing.switch)
    alpha = jnp.where(cut, mixing.cutmix, mixing.mixup)
    share = jax.random.beta(share_key, alpha, alpha)

    inside = _box(images.shape[1:-1], share, key=box_key)
    mask = jnp.where(cut, inside, False)
    weight = jnp.where(cut, 1.0, share)
    mixed = jnp.where(mask[..., None], other_images, weight * images + (1 - weight) * other_images)
    share = jnp.where(cut, 1 - inside.mean(), share)

    on = jax.random.bernoulli(on_key, mixing.prob)
    share = jnp.where(on, share, 1.0)
    return jnp.where(on, mixed, images), share * targets + (1 - share) * other_targets


def _box(shape: tuple[int, ...], share: jax.Array, *, key: jax.Array) -> jax.Array:
    """Cutmix's box, bool `shape`: `share` of the image is outside, or more if the border of the image cuts the box."""
    inside = jnp.ones((), bool)
    ratio = (1 - share) ** (1 / len(shape))
    for axis, (size, axis_key) in enumerate(zip(shape, jax.random.split(key, len(shape)), strict=True)):
        half = jnp.floor(size * ratio).astype(jnp.int32) // 2
        centre = jax.random.randint(axis_key, (), 0, size)
        place = jnp.arange(size)
        within = (place >= centre - half) & (place < centre + half)
        inside = inside & within.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return inside


def erase(
    images: jax.Array, probability: float, *, mean: Sequence[float], std: Sequence[float], key: jax.Array
) -> jax.Array:
    """Replaces a rectangle of some images, float (B, S, S, C), by normal noise.

    The rectangle has 2 to 33 % of the area and an aspect ratio of 0.3 to 1 / 0.3. Both are drawn up to ten times, until
    the rectangle fits. The noise of a grey image is scaled by the means of `mean` and `std`.
    """
    B, height, width, C = images.shape
    on_key, area_key, ratio_key, place_key, noise_key = jax.random.split(key, 5)
    tries = (B, _ERASE_ATTEMPTS)
    area = jax.random.uniform(area_key, tries, minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1]) * height * width
    bound = math.log(_ERASED_RATIO)
    ratio = jnp.exp(jax.random.uniform(ratio_key, tries, minval=-bound, maxval=bound))
    tall, wide = jnp.rint(jnp.sqrt(area * ratio)), jnp.rint(jnp.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    tall, wide = (jnp.take_along_axis(side, first, axis=1) for side in (tall, wide))  # (B, 1)
    on = fits.any(1) & jax.random.bernoulli(on_key, probability, (B,))

    places = jax.random.uniform(place_key, (2, B, 1))
    top, left = jnp.floor(places[0] * (height - tall + 1)), jnp.floor(places[1] * (width - wide + 1))
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    down = (rows >= top) & (rows < top + tall)  # (B, H)
    across = (columns >= left) & (columns < left + wide)  # (B, W)
    erased = on[:, None, None] & down[:, :, None] & across[:, None]

    centre, spread = (jnp.broadcast_to(jnp.asarray(values), (3,)) for values in (mean, std))
    if C == 1:
        centre, spread = centre.mean(), spread.mean()
    noise = 255 * (centre + spread * jax.random.normal(noise_key, images.shape))
    return jnp.where(erased[..., None], noise, images)
