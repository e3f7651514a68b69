"""Reads a user's file as an image or a volume, and says what is remarkable about it."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.arrays import MAX_PIXELS, MAX_VOXELS
from jaxboost.data.readers.pictures import read_shown
from jaxboost.data.readers.volumes import read_volume, resample
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.sources.folder.masks import Masks, bounding_box, stem
from jaxboost.data.walk import not_fetched, some, unreadable

_DIGEST_BYTES = 1 << 22
_DARK = 32

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of an image or volume besides its pixels.

    Attributes:
      digest: SHA-256 of the image before it is cropped and resized, or of the volume's stored values.
      greatest: its greatest level.
      own_range: whether it is scaled by its own range of values, see `pictures.read_shown`; None for volumes.
      remarks: kind -> a remark on the file that the user should see.
    """

    digest: str
    greatest: int
    own_range: bool | None = None
    remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The facts from JSON."""
        return cls(**content)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image or volume: uint8 (S, S) or (S, S, 3), or (S, S, S), and the facts about it."""

    image: np.ndarray
    facts: Facts

    def with_channels(self, ndim: int) -> np.ndarray:
        """The image (S, S, C), C = 1 or 3, or the volume (S, S, S, 1), of `ndim` dimensions."""
        return self.image if self.image.ndim > ndim else self.image[..., np.newaxis]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file becomes an image or a volume of `size`.

    Attributes:
      ndim: 2 or 3.
      size: S, pixels or voxels per side.
      window: (low, high), the stored values that become 0 and 255, see `pictures.read_shown` and `volumes.resample`;
        (): the range of each file.
      spacing: mm per voxel of a volume's grid; 0: the longest side of each volume fills the grid.
      nan: the number that replaces values that are not finite; None: files with such values are refused.
      max_pixels: the most pixels that a file may hold.
      max_voxels: the most voxels that a file may hold.
    """

    ndim: int
    size: int
    window: tuple[float, ...] = ()
    spacing: float = 0.0
    nan: float | None = None
    max_pixels: int = MAX_PIXELS
    max_voxels: int = MAX_VOXELS


class Item(NamedTuple):
    """A file to read: its path, and the masks that have its mask; None: the whole image is used."""

    path: pathlib.Path
    masks: Masks | None = None


def read(item: Item, reading: Reading) -> Sample:
    """Reads one file.

    Raises:
      ProblemError: it cannot be read.
    """
    # Opening a named pipe would wait forever.
    if text := unreadable(item.path):
        raise ProblemError(text)
    try:
        return read_2d(*item, reading=reading) if reading.ndim == 2 else read_3d(item.path, reading)
    except ProblemError as error:
        if text := not_fetched(item.path):
            raise ProblemError(text) from error
        raise


def read_2d(path: pathlib.Path, masks: Masks | None = None, *, reading: Reading) -> Sample:
    """Reads a 2-D image, crops it to its mask if there are masks, and resizes it to a square (bicubic)."""
    image, own_range = read_shown(path, reading.window, nan=reading.nan, max_pixels=reading.max_pixels)
    part = image
    if masks is not None:
        shape = image.shape[:2]
        left, top, right, bottom = bounding_box(masks(stem(path.name), shape), shape)
        part = np.ascontiguousarray(image[top:bottom, left:right])
    picture = Image.fromarray(part).resize((reading.size, reading.size), Image.Resampling.BICUBIC)
    resized = np.asarray(picture)
    return Sample(resized, Facts(_digest(image), int(resized.max()), own_range))


def read_3d(path: pathlib.Path, reading: Reading) -> Sample:
    """Reads a volume and resamples it to its grid; see `volumes.read_volume` and `volumes.resample`."""
    volume = read_volume(path, nan=reading.nan, max_voxels=reading.max_voxels)
    image = resample(volume, reading.size, window=reading.window, spacing=reading.spacing)
    facts = Facts(_digest(volume.values), int(image.max()), remarks=volume.remarks)
    return Sample(image, facts)


def warn(samples: Mapping[Entry, Facts], *, trained: bool = False) -> None:
    """Warns of what is remarkable about the files.

    That is the first file with each kind of remark, and images that have no common scale of values, because those of
    more than 8 bits, each scaled by its own range, are beside images of 8 bits.

    Args:
      samples: the facts about each file.
      trained: whether the files are for a trained model, whose settings cannot be changed.
    """
    remarks: dict[str, tuple[str, str, int]] = {}
    for entry, sample in samples.items():
        for kind, text in sample.remarks.items():
            file, first, count = remarks.get(kind, (entry.file, text, 0))
            remarks[kind] = file, first, count + 1
    for file, text, count in remarks.values():
        logger.warning("%s: %s%s", file, text, f" ({count} files are of this kind)" if count > 1 else "")
    own = [entry.file for entry, sample in samples.items() if sample.own_range]
    if own and any(sample.own_range is False for sample in samples.values()):
        logger.warning(
            "images of more than 8 bits, each scaled from its least to its greatest value, are mixed with 8-bit images,"
            " which are not scaled: %s: %s",
            some(own),
            "give all of them as the images of the training were stored"
            if trained
            else "if their values have a common scale, set data.window to its ends",
        )


def warn_of_darkness(samples: Sequence[Facts], ndim: int, *, trained: bool = False) -> None:
    """Warns if all volumes are dark; `trained` as in `warn`."""
    greatest = max(sample.greatest for sample in samples)
    if ndim == 3 and greatest < _DARK:
        logger.warning(
            "the greatest value of all volumes is %d of 255, because 8-bit files are not scaled: %s",
            greatest,
            "give volumes with the values of those of the training"
            if trained
            else "for masks and other small values set data.window to the values that should become 0 and 255",
        )


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks images (S, S, C) to (n, S, S, C), with C = 3 if any of them is in colour, or volumes (S, S, S, 1)."""
    channels = max(image.shape[-1] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:-1], channels)) for image in images])


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.str}".encode())
    # In parts, because a volume can take some GB and its axes can be in another order in memory.
    step = max(1, _DIGEST_BYTES * len(pixels) // pixels.nbytes)
    for start in range(0, len(pixels), step):
        digest.update(np.ascontiguousarray(pixels[start : start + step]).data)
    return digest.hexdigest()
