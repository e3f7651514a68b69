"""The images of a user's folder, read in threads, and the copies among them."""

import collections
import concurrent.futures
import dataclasses
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
from jaxboost.data.sources.folder import labels
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.sources.folder.masks import Lookup, bounding_box, stem
from jaxboost.data.walk import not_fetched, some, unreadable

# A volume may hold some GB.
_THREADS = {2: 8, 3: 2}
_DIGEST_BYTES = 1 << 22
_DARK = 32

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image uint8 (S, S) or (S, S, 3), or a volume (S, S, S), and the digest of the pixels that it was made of.

    `own_range`: see `pictures.read_shown`; None for volumes.
    """

    image: np.ndarray
    digest: str
    own_range: bool | None = None


def read_all(
    paths: Mapping[Row, pathlib.Path],
    read: Callable[[pathlib.Path], T],
    ndim: int,
    problems: Problems,
    *,
    what: str = "reading",
) -> dict[Row, T]:
    """`read` of every file; what it raises goes to `problems`.

    Args:
      what: is done, for the progress bar.
    """

    def attempt(path: pathlib.Path) -> T | ProblemError:
        # Opening a named pipe would wait for ever.
        if text := unreadable(path):
            return ProblemError(text)
        try:
            return read(path)
        except ProblemError as problem:
            return ProblemError(text) if (text := not_fetched(path)) else problem

    samples = {}
    # Decoders, numpy, scipy and pillow let go of the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(min(_THREADS[ndim], os.cpu_count() or 1)) as pool:
        results = pool.map(attempt, paths.values())
        bar = tqdm(results, total=len(paths), desc=what, unit="image", disable=None)
        for row, result in zip(paths, bar, strict=True):
            if isinstance(result, ProblemError):
                problems.add(str(result), row=row.number, file=row.file)
            else:
                samples[row] = result
    return samples


def warn_of_ranges(samples: Mapping[Row, Sample]) -> None:
    """Warns where some images are shown over their own range and others, of 8 bits, as they are."""
    own = [row.file for row, sample in samples.items() if sample.own_range]
    if own and any(sample.own_range is False for sample in samples.values()):
        logger.warning(
            "images of more than 8 bits, each shown from its own least to its own greatest value, are among others of "
            "8 bits, which are shown as they are: %s: where their values have one scale, set data.window to its ends",
            some(own),
        )


def read_2d(
    path: pathlib.Path,
    size: int,
    window: Sequence[float],
    lungs: Lookup | None,
    *,
    nan: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """A 2-D image, cut to its mask where there is one and resized to a square, bicubic; see `pictures.read_image`."""
    image, own_range = read_shown(path, window, nan=nan, max_pixels=max_pixels)
    part = image
    if lungs is not None:
        shape = image.shape[:2]
        left, top, right, bottom = bounding_box(lungs(stem(path.name), shape), shape)
        part = np.ascontiguousarray(image[top:bottom, left:right])
    picture = Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC)
    return Sample(np.asarray(picture), _digest(image), own_range)


def read_3d(
    path: pathlib.Path,
    size: int,
    window: Sequence[float],
    spacing: float,
    *,
    nan: float | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Sample:
    """A volume on its grid; see `volumes.read_volume` and `volumes.resample`."""
    volume = read_volume(path, nan=nan, max_voxels=max_voxels)
    return Sample(resample(volume, size, window=window, spacing=spacing), _digest(volume.values))


def stack(samples: Sequence[Sample], ndim: int) -> np.ndarray:
    """uint8 (n, S, S, C), with three channels where any image is in colour, or (n, S, S, S, 1)."""
    images = [sample.image for sample in samples]
    if ndim == 2 and any(image.ndim == 3 for image in images):
        return np.stack([np.broadcast_to(np.atleast_3d(image), (*image.shape[:2], 3)) for image in images])
    volumes = np.stack(images)[..., np.newaxis]
    if ndim == 3 and volumes.max() < _DARK:
        logger.warning(
            "the greatest value of all volumes is %d of 255, for 8-bit files are taken as they are: for masks and the "
            "like set data.window to the values that are to be 0 and 255",
            volumes.max(),
        )
    return volumes


def join_copies(
    rows: Sequence[Row], samples: Mapping[Row, Sample], problems: Problems, *, multi_label: bool
) -> list[Row]:
    """`rows`, where files with the same pixels and no patients are files of one patient.

    Copies whose patients, labels or splits differ are a problem; of the others a warning tells.
    """
    by_digest: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row in samples:
            by_digest[samples[row].digest].append(row)
    harmless, patient_of = [], {}
    for first, *copies in by_digest.values():
        for copy in copies:
            problem = ""
            if copy.patient != first.patient:
                problem = f"{copy.patient!r} and {first.patient!r} are one patient, or one file is wrong"
            elif not labels.same_labels(first, copy, multi_label=multi_label):
                problem = f"their labels differ, {copy.label!r} and {first.label!r}"
            elif copy.split != first.split:
                problem = f"their splits differ, {copy.split} and {first.split}"
            if problem:
                where = f" in row {first.number}" if first.number else ""
                text = f"has the same pixels as {first.file}{where}: {problem}"
                problems.add(text, row=copy.number, file=copy.file)
            else:
                harmless.append(f"{first.file} = {copy.file}")
                patient_of[copy] = first.file
    if harmless:
        logger.warning("images with the same pixels, each taken as one patient: %s", some(harmless))
    if not patient_of or rows[0].patient is not None:
        return list(rows)
    return [dataclasses.replace(row, patient=patient_of.get(row, row.file)) for row in rows]


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.str}".encode())
    # In parts: a volume may take some GB, and its axes may lie in another order.
    step = max(1, _DIGEST_BYTES * len(pixels) // pixels.nbytes)
    for start in range(0, len(pixels), step):
        digest.update(np.ascontiguousarray(pixels[start : start + step]))
    return digest.hexdigest()
