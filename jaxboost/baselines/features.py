"""Trivial features of an image: intensities and the size of the bright part, without any learned part."""

import numpy as np

from jaxboost.data.dataset import MappedRows
from jaxboost.errors import UserError

# Kinds of features that do not depend on the image.
OF_NO_IMAGE = ("none", "columns")
BINS = 16
# A pixel above half of the range 0..255 belongs to the bright part.
_HALF = 127.5


def names(ndim: int, channels: int) -> tuple[str, ...]:
    """The features in order, F = 20 C + 2 + ndim, for images of `ndim` dimensions with C `channels`.

    For each channel: mean, standard deviation, least and greatest value (0 to 255), and the fractions of pixels in 16
    equal intervals of 0..255. Of the bright part, where the mean over the channels is above 127.5: "size", its pixels
    (area or volume); "surface", the faces between its pixels and others, where everything outside of the image is
    other; "extent 0", ..., the edges of its bounding box in pixels, 0 if it is empty.
    """
    of_channel = ("mean", "sd", "min", "max", *(f"bin {number}" for number in range(BINS)))
    found = [f"channel {channel} {name}" for channel in range(channels) for name in of_channel]
    return (*found, "size", "surface", *(f"extent {axis}" for axis in range(ndim)))


def trivial(images: np.ndarray | MappedRows, channels: int) -> np.ndarray:
    """The trivial features of images, float64 (n, F), see `names`.

    Args:
      images: uint8 (n, S, S, C) or (n, S, S, S, C).
      channels: number of channels that the features are for; grey images are repeated to it.

    Raises:
      UserError: the images have colours, and `channels` is 1.
    """
    if images.shape[-1] > channels:
        raise UserError(
            f"the images have {images.shape[-1]} channels, and the baseline was fitted to grey ones: give grey images"
        )
    width = len(names(len(images.shape) - 2, channels))
    return np.array([_of_image(np.asarray(image), channels) for image in images], np.float64).reshape(-1, width)


def with_columns(found: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
    """Features (n, F) of images and behind them those of clinical columns (n, K), if there are any."""
    return found if columns is None else np.concatenate([found, columns.astype(found.dtype)], axis=1)


def _of_image(image: np.ndarray, channels: int) -> np.ndarray:
    image = np.broadcast_to(image, (*image.shape[:-1], channels))
    found: list[float] = []
    for channel in range(channels):
        values = image[..., channel].reshape(-1)
        counts = np.bincount(values // (256 // BINS), minlength=BINS)
        wide = values.astype(np.float64)
        found += [wide.mean(), wide.std(), wide.min(), wide.max(), *(counts / len(values))]
    bright = image.mean(-1) > _HALF
    padded = np.pad(bright, 1)
    surface = sum(int((np.diff(padded.astype(np.int8), axis=axis) != 0).sum()) for axis in range(bright.ndim))
    extents = [_extent(bright, axis) for axis in range(bright.ndim)]
    return np.array([*found, bright.sum(), surface, *extents], np.float64)


def _extent(bright: np.ndarray, axis: int) -> int:
    rows = np.flatnonzero(bright.any(tuple(other for other in range(bright.ndim) if other != axis)))
    return int(rows[-1] - rows[0] + 1) if len(rows) else 0
