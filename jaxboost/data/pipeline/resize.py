"""Resizing of images to the model's size."""

import numpy as np
from PIL import Image

from jaxboost.errors import UserError


def fitted(image: np.ndarray, image_size: int, first: int = 0) -> np.ndarray:
    """Resizes a uint8 image (S, S, C) to `first` pixels and centre-crops it to `image_size`; `first` 0: no crop.

    Raises:
      UserError: see `resize`.
    """
    return centre_crop(resize(image, first or image_size), image_size)


def resize(image: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes a uint8 image (S, S, C), C = 1 or 3, with Pillow's bicubic filter; the same array if the size is right.

    Raises:
      UserError: a volume (S, S, S, C) of another size.
    """
    if image.shape[0] == image_size:
        return image
    if image.ndim == 4:
        raise UserError(
            f"model.image_size={image_size}, data.size={image.shape[0]}: "
            "3-D volumes are not resampled here: set model.image_size to data.size"
        )
    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    resized = np.asarray(picture.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return resized[..., np.newaxis] if grey else resized


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Crops the centre `size` x `size` pixels of an image (S, S, C), S >= size."""
    start = margin(image.shape[0], size)
    return image[start : start + size, start : start + size]


def margin(side: int, size: int) -> int:
    """Pixels before a centre crop of `size` pixels of a side; odd margins round as in torchvision."""
    return round((side - size) / 2)
