"""What a user's folder holds, by the names of its files: no image is opened."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers import arrays, pictures, volumes
from jaxboost.data.sources.folder import file_names, layouts
from jaxboost.data.sources.folder.extensions import is_image, suffix_of
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.walk import walk

_NPY = arrays.SUFFIX
_NDIM = {
    **{suffix: 2 for suffix in pictures.SUFFIXES if suffix != _NPY},
    **{suffix: 3 for suffix in volumes.SUFFIXES if suffix != _NPY},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder holds.

    Attributes:
      ndim: 2 if most of its files are images, 3 if most are volumes; None if their names do not tell.
      count: number of samples.
      train: number of samples in the split "train"; None if the folder has no splits.
    """

    ndim: int | None
    count: int
    train: int | None


def read(root: str, *, masks: str = "") -> Contents:
    """Reads the table or lists the folders of a user's folder; of .npy files the header of the first one is read.

    Args:
      root, masks: see `source.load`.

    Raises:
      UserError: the folder cannot be read, or has neither of the two layouts.
    """
    folder = layouts.open_folder(root)
    masks_path = layouts.masks_in(folder, masks)
    # Whether a label holds several classes does not matter here.
    entries = layouts.read_entries(folder, Problems(folder), masks_path, multi_label=True, quiet=True)
    splits = [entry.split for entry in entries]
    return Contents(
        ndim=_ndim(folder, entries, masks_path),
        count=len(entries),
        train=splits.count("train") if any(splits) else None,
    )


def _ndim(folder: pathlib.Path, entries: Sequence[Entry], masks: pathlib.Path | None) -> int | None:
    names = [entry.file for entry in entries]
    if not any(map(is_image, names)):
        # A table may name files without their extensions.
        names = list(walk(folder, skip=masks).files)
    counts = collections.Counter(map(suffix_of, names))
    found = collections.Counter({2: 0, 3: 0})
    for suffix, ndim in _NDIM.items():
        found[ndim] += counts[suffix]
    if found[2] != found[3]:
        return 2 if found[2] > found[3] else 3
    return _ndim_of_npy(folder, [name for name in names if suffix_of(name) == _NPY])


def _ndim_of_npy(folder: pathlib.Path, names: Sequence[str]) -> int | None:
    """Of the first .npy file: (H, W) and (H, W, 3) are images, (D, H, W) is a volume."""
    index = file_names.FileIndex(folder)
    for name in names[:1]:
        try:
            shape = arrays.npy_shape(index.find(name))
        except (ProblemError, OSError, ValueError):
            return None
        is_picture = len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3)
        return 2 if is_picture else 3
    return None
