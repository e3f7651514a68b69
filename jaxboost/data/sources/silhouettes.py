"""lidcsilhouettes: the nodules of lidcshapes3d seen from three sides: real data for 2-D models without a network.

Channel c of an image is the shadow of the 28^3 mask along its axis c (z, y, x). Classes, patients, splits and the file
on disk are those of `jaxboost.data.sources.lidc`.
"""

import dataclasses

import numpy as np

from jaxboost.data.dataset import Dataset, DatasetInfo, check_size
from jaxboost.data.sources import lidc
from jaxboost.data.sources.nodules import EDGE_MM

NAME = "lidcsilhouettes"


def describe(size: int) -> DatasetInfo:
    """The description of the data set. Raises UserError when `size` is not 28."""
    check_size(NAME, size, [EDGE_MM])
    return _flat(lidc.describe(size))


def load(*, size: int, root: str) -> Dataset:
    """The data set; see `lidc.load`, which builds the shapes where they are missing."""
    describe(size)
    shapes = lidc.load(size=size, root=root)
    splits = {
        name: dataclasses.replace(split, images=silhouettes(split.images)) for name, split in shapes.splits.items()
    }
    return dataclasses.replace(shapes, info=_flat(shapes.info), splits=splits)


def silhouettes(volumes: np.ndarray) -> np.ndarray:
    """Volumes (n, S, S, S, 1) -> their maxima along each of the three axes, (n, S, S, 3)."""
    return np.stack([volumes[..., 0].max(axis) for axis in (1, 2, 3)], axis=-1)


def _flat(info: DatasetInfo) -> DatasetInfo:
    return dataclasses.replace(info, name=NAME, channels=3, ndim=2)
