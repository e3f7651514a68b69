"""The images of a user's files, read in threads."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers.arrays import MAX_PIXELS, MAX_VOXELS
from jaxboost.data.readers.pictures import read_shown
from jaxboost.data.readers.volumes import read_volume, resample
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.sources.folder.masks import Lookup, bounding_box, stem
from jaxboost.data.walk import not_fetched, some, unreadable

# Spatial dimensions -> threads. One volume can take some GB.
_THREADS = {2: 8, 3: 2}
_DIGEST_BYTES = 1 << 22
_DARK = 32

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image or volume.

    Attributes:
      image: uint8 (S, S) or (S, S, 3), or a volume (S, S, S).
      digest: SHA-256 of the image before it is cropped and resized, or of the volume's stored values.
      own_range: whether it is scaled by its own range of values, see `pictures.read_shown`; None for volumes.
      remarks: kind -> a remark on the file that the user should see.
    """

    image: np.ndarray
    digest: str
    own_range: bool | None = None
    remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)


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


def reader(reading: Reading, masks: Lookup | None = None) -> Callable[[pathlib.Path], Sample]:
    """Returns the function that reads one file: `read_2d` or `read_3d`."""
    if reading.ndim == 2:
        return functools.partial(read_2d, reading=reading, masks=masks)
    return functools.partial(read_3d, reading=reading)


def read_2d(path: pathlib.Path, reading: Reading, masks: Lookup | None = None) -> Sample:
    """Reads a 2-D image, crops it to its mask if there are masks, and resizes it to a square (bicubic).

    Args:
      path: the file.
      reading: how it is read.
      masks: gives the mask of the image; None: the whole image is used.
    """
    image, own_range = read_shown(path, reading.window, nan=reading.nan, max_pixels=reading.max_pixels)
    part = image
    if masks is not None:
        shape = image.shape[:2]
        left, top, right, bottom = bounding_box(masks(stem(path.name), shape), shape)
        part = np.ascontiguousarray(image[top:bottom, left:right])
    picture = Image.fromarray(part).resize((reading.size, reading.size), Image.Resampling.BICUBIC)
    return Sample(np.asarray(picture), _digest(image), own_range)


def read_3d(path: pathlib.Path, reading: Reading) -> Sample:
    """Reads a volume and resamples it to its grid; see `volumes.read_volume` and `volumes.resample`."""
    volume = read_volume(path, nan=reading.nan, max_voxels=reading.max_voxels)
    image = resample(volume, reading.size, window=reading.window, spacing=reading.spacing)
    return Sample(image, _digest(volume.values), remarks=volume.remarks)


def read_all(
    paths: Mapping[Entry, pathlib.Path],
    read: Callable[[pathlib.Path], T],
    ndim: int,
    problems: Problems,
    *,
    what: str = "reading",
    trained: bool = False,
) -> dict[Entry, T]:
    """Calls `read` for every file, in threads.

    Args:
      paths: the file of each entry.
      read: reads one file.
      ndim: 2 or 3, which decides the number of threads.
      problems: receives each ProblemError that `read` raises.
      what: names the work in the progress bar.
      trained: whether the files are for a trained model, whose settings cannot be changed.

    Returns:
      The results of the files without problems.
    """

    def attempt(path: pathlib.Path) -> T | ProblemError:
        # Opening a named pipe would wait forever.
        if text := unreadable(path):
            return ProblemError(text)
        try:
            return read(path)
        except ProblemError as error:
            return ProblemError(text) if (text := not_fetched(path)) else error

    found = {}
    # Decoders, numpy, scipy and Pillow release the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(min(_THREADS[ndim], os.cpu_count() or 1)) as pool:
        results = pool.map(attempt, paths.values())
        bar = tqdm(results, total=len(paths), desc=what, unit="image", disable=None)
        for entry, result in zip(paths, bar, strict=True):
            if isinstance(result, ProblemError):
                entry.report(problems, result.for_trained() if trained else str(result))
            else:
                found[entry] = result
    return found


def warn(samples: Mapping[Entry, Sample], *, trained: bool = False) -> None:
    """Warns of the first file with each kind of remark, and of images that have no common scale of values.

    The latter are images with more than 8 bits, each scaled by its own range, beside images of 8 bits.

    Args:
      samples: the samples.
      trained: see `read_all`.
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


def stack(samples: Sequence[Sample], ndim: int, *, trained: bool = False) -> np.ndarray:
    """Stacks images to uint8 (n, S, S, C), with C = 3 if any of them is in colour, or volumes to (n, S, S, S, 1)."""
    images = [sample.image for sample in samples]
    if ndim == 2 and any(image.ndim == 3 for image in images):
        return np.stack([np.broadcast_to(np.atleast_3d(image), (*image.shape[:2], 3)) for image in images])
    stacked = np.stack(images)[..., np.newaxis]
    if ndim == 3 and stacked.max() < _DARK:
        logger.warning(
            "the greatest value of all volumes is %d of 255, because 8-bit files are not scaled: %s",
            stacked.max(),
            "give volumes with the values of those of the training"
            if trained
            else "for masks and other small values set data.window to the values that should become 0 and 255",
        )
    return stacked


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.str}".encode())
    # In parts, because a volume can take some GB and its axes can be in another order in memory.
    step = max(1, _DIGEST_BYTES * len(pixels) // pixels.nbytes)
    for start in range(0, len(pixels), step):
        digest.update(np.ascontiguousarray(pixels[start : start + step]).data)
    return digest.hexdigest()
