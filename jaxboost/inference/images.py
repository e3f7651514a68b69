"""Checks images in NumPy arrays before a prediction."""

import numpy as np
import numpy.typing as npt

from jaxboost.data.dataset import MappedRows
from jaxboost.data.sources.folder.inputs import Preprocessing
from jaxboost.errors import UserError


def checked(
    images: npt.ArrayLike | MappedRows, preprocessing: Preprocessing, batch_size: int = 0
) -> np.ndarray | MappedRows:
    """Checks images and adds a missing channel axis: uint8 (n, S, S, C), C = 1 or 3, or volumes (n, S, S, S, 1).

    Args:
      images: uint8, with or without the channel axis; an array, or a list of arrays. S is the run's `data.size`.
      preprocessing: the model's preprocessing.
      batch_size: the user's batch size; 0: that of the model.

    Raises:
      UserError: the images have another type or shape, or there are none; or the batch size is no count.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 0:
        raise UserError(f"batch_size {batch_size!r}: give the number of images in a batch, or leave it out")
    try:
        # Rows on disk are read in batches.
        images = images if isinstance(images, MappedRows) else np.asarray(images)
    except ValueError as error:
        raise UserError(f"images are no array ({error}): give images of one size") from error
    ndim, size = preprocessing.ndim, preprocessing.size
    spatial = (size,) * ndim
    side = ", ".join(map(str, spatial))
    wanted = (
        f"uint8 (n, {side}), (n, {side}, 1) or (n, {side}, 3)" if ndim == 2 else f"uint8 (n, {side}) or (n, {side}, 1)"
    )
    found = f"images are {images.dtype} {images.shape}, the model takes {wanted}"
    if images.dtype != np.uint8:
        raise UserError(
            f"{found}: scale them to grey levels 0 to 255 like the training data, then convert them to uint8"
        )
    if images.shape[1:] == spatial and isinstance(images, np.ndarray):
        images = images[..., np.newaxis]
    if images.shape[1:-1] != spatial or images.shape[-1] not in ((1, 3) if ndim == 2 else (1,)):
        raise UserError(
            f"{found}: resize them like the training data (`jaxboost predict` does this for image files), and give"
            " a single one as image[np.newaxis]"
        )
    if not len(images):
        raise UserError("there are no images to predict: give at least one")
    return images
