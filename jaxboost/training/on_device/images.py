"""From stored images to the model's input, on the device: the order of jaxboost/data/pipeline/augment.py."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.pipeline.resize import margin
from jaxboost.models import resample
from jaxboost.training.on_device import filters, pictures, rand_augment, volumes


def fit(images: jax.Array, augment: Augment, image_size: int | None) -> jax.Array:
    """Resizes stored images (B, S, S, C) as for evaluation: to (B, image_size, image_size, C).

    Args:
      images: uint8; or volumes or source tokens, which stay as they are.
      augment: whose `resize` is used.
      image_size: side of the model's input in pixels; None: as stored.
    """
    if images.ndim != 4 or image_size is None:
        return images
    return jax.vmap(lambda image: _fitted(image, image_size, augment.resize))(images)


def augment_images(
    images: jax.Array, keys: jax.Array, augment: Augment, image_size: int | None, *, one_by_one: bool
) -> jax.Array:
    """Makes training images of stored ones; each depends only on its own key.

    Args:
      images: uint8 (B, S, S[, S], C); or source tokens, which stay as they are.
      keys: random keys (B,).
      augment: the augmentation.
      image_size: side of the model's input in pixels; None: as stored.
      one_by_one: a loop over the images, which computes only the operations that were drawn: for a CPU. Otherwise all
        operations are computed for all images at once.
    """
    if augment.random_fields:
        change: Callable[..., jax.Array] = _augmented_volume if images.ndim == 5 else _augmented_picture
        # Positions of the batch that hold no image get keys too.
        one = lambda pair: change(pair[0], pair[1], augment, image_size)  # noqa: E731
        return jax.lax.map(one, (images, keys)) if one_by_one else jax.vmap(lambda *pair: one(pair))(images, keys)
    return _rgb(fit(images, augment, image_size), augment)


def _augmented_picture(image: jax.Array, key: jax.Array, augment: Augment, image_size: int | None) -> jax.Array:
    """See `pipeline.augment.augment_image`."""
    box_key, filter_key, flip_key, jitter_key, *operation_keys = jax.random.split(key, 4 + augment.rand_augment_ops)
    size = image_size or image.shape[0]
    flips = jax.random.uniform(flip_key, (2,)) < jnp.array([augment.flip, augment.vertical_flip])
    if augment.crop_scale:
        image = _rgb(image, augment)
        box = pictures.draw_box(box_key, image.shape[0], scale=augment.crop_scale, ratio=augment.crop_ratio)
        number = filters.draw_filter(filter_key, augment.interpolation)
        image = resample.crop_resize_and_flip(image, box, number, flips, size)
    else:
        image = pictures.flip(_rgb(_fitted(image, size, augment.resize), augment), flips)
    for operation_key in operation_keys:
        operation = rand_augment.draw(
            operation_key,
            magnitude=augment.rand_augment_magnitude,
            std=augment.rand_augment_std,
            increasing=augment.rand_augment_increasing,
            interpolation=augment.interpolation,
        )
        image = rand_augment.apply(image, operation)
    if augment.color_jitter:
        image = pictures.jitter(image, *pictures.draw_jitter(jitter_key, augment.color_jitter))
    return image


def _augmented_volume(volume: jax.Array, key: jax.Array, augment: Augment, image_size: int | None) -> jax.Array:
    """See `pipeline.augment.augment_volume`; volumes are not resampled."""
    del image_size
    moves_key, noise_key = jax.random.split(key)
    volume = volumes.move(volume, volumes.draw(moves_key, augment))
    if augment.noise:
        volume = volumes.add_noise(volume, 255 * augment.noise * jax.random.normal(noise_key, volume.shape))
    return volume


def _fitted(image: jax.Array, image_size: int, first: int) -> jax.Array:
    """See `pipeline.resize.fitted`."""
    image = resample.resize(image, first or image_size)
    start = margin(image.shape[0], image_size)
    return image[start : start + image_size, start : start + image_size]


def _rgb(images: jax.Array, augment: Augment) -> jax.Array:
    """Grey images (..., S, S, 1) get three channels if the augmentation asks for it."""
    return jnp.repeat(images, 3, axis=-1) if augment.rgb and images.shape[-1] == 1 else images
