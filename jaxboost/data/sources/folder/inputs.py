"""Files to predict: found, and prepared as those of a user's folder are for training."""

import collections
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jaxboost.data.problems import Problems
from jaxboost.data.readers.arrays import MAX_PIXELS, MAX_VOXELS
from jaxboost.data.sources.folder import companions, samples
from jaxboost.data.sources.folder.extensions import SUFFIXES, advice, is_image, suffix_of
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.sources.folder.masks import Lookup, open_masks, stem
from jaxboost.data.sources.folder.samples import Sample
from jaxboost.data.walk import AGAIN, UNREAD, printable, some, summary, unreadable, walk
from jaxboost.errors import UserError, missing_extra

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a file becomes what a model takes.

    Attributes:
      ndim: 2 or 3.
      size: S, pixels or voxels a side once a file is read; see `samples.read_2d` and `samples.read_3d`.
      window, spacing, max_pixels, max_voxels: see `folder.load`.
      nan: what values that are not finite are read as; None: such files are refused.
      masked: images are cut to the masks of their lungs.
      image_size: pixels a side that the model takes, to which `fitting.fitted` brings images.
      resize: its `first`.
    """

    ndim: int
    size: int
    window: tuple[float, ...]
    spacing: float
    masked: bool
    image_size: int
    resize: int
    nan: float | None = None
    max_pixels: int = MAX_PIXELS
    max_voxels: int = MAX_VOXELS


def find(inputs: Sequence[str], ndim: int, *, skip_faulty: bool = False) -> list[pathlib.Path]:
    """The files that `inputs` name, each once, in their order; those of a folder, at any depth, sorted.

    One line of the log says what is left out of the folders.

    Args:
      inputs: files, whatever their endings, and folders, of which only files with an ending for `ndim` dimensions
        count, and none of those that `walk` leaves out, nor masks or small copies beside their images. An entry may
        name several with commas between them.
      ndim: 2 or 3.
      skip_faulty: what cannot be read in a folder is left out, with a warning.

    Raises:
      UserError: one of them is missing or is no regular file, a folder has no file that counts, or has some that
        cannot be read: links to nothing, and folders that cannot be listed.
    """
    # Paths, and what they are without links.
    found: list[tuple[pathlib.Path, str]] = []
    left_out: dict[str, list[str]] = collections.defaultdict(list)
    for entry in inputs:
        # A comma may be a part of a name.
        for name in [entry] if os.path.lexists(os.path.expanduser(entry)) else filter(None, entry.split(",")):
            path = pathlib.Path(name).expanduser()
            if path.is_dir():
                found += _files(path, ndim, left_out, skip_faulty)
            elif not os.path.lexists(path):
                raise UserError(f"--input {printable(name)}: there is no such file or folder: check the path")
            elif problem := unreadable(path):
                raise UserError(f"--input {printable(name)}: {problem}")
            else:
                found.append((path, os.path.realpath(path)))
    if not found:
        raise UserError("--input is empty: give files or a folder")
    first_of: dict[str, pathlib.Path] = {}
    for path, real in found:
        if first_of.setdefault(real, path) != path:
            left_out[AGAIN].append(printable(path))
    if text := summary(left_out):
        logger.warning("--input: %s", text)
    files = list(first_of.values())
    if changed := [text for path in files if (text := printable(path)) != os.fspath(path)]:
        are, they = ("name is", "it is") if len(changed) == 1 else ("names are", "they are")
        logger.warning("--input: %d file %s not plain UTF-8: %s written as %s", len(changed), are, they, some(changed))
    return files


def read(
    paths: Sequence[pathlib.Path], preparation: Preparation, *, masks: str = "", skip_faulty: bool = False
) -> tuple[list[pathlib.Path], np.ndarray]:
    """The files that could be read, and their images uint8 (n, S, S, C), or volumes (n, S, S, S, 1), S being `size`.

    Args:
      masks: of the lungs, a folder or a table as `masks.open_masks` takes it; where the model wants some.
      skip_faulty: files with problems are left out, with a warning.

    Raises:
      UserError: with the problems of all files, or where nothing is left without them; masks that are missing or not
        wanted; a package that reads such files is not installed.
    """
    rows = {Row(0, printable(path), ""): path for path in paths}
    if len(rows) < len(paths):
        raise UserError("--input: two files have the same name once it is written in UTF-8: rename one of them")
    problems = Problems(pathlib.Path("--input"))
    accepted = {}
    for row, path in rows.items():
        if suffix_of(path.name) in SUFFIXES[preparation.ndim]:
            accepted[row] = path
        else:
            step = advice(path)
            text = f"is not a file that the model takes ({_endings(preparation.ndim)}){f': {step}' if step else ''}"
            problems.add(text, file=row.file)
    lungs = _open_masks(masks, accepted, preparation)
    try:
        images = samples.read_all(accepted, _reader(preparation, lungs), preparation.ndim, problems)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--input: the package {error.name}, which reads some of the files, is not installed:"
            f" {missing_extra('dicom,nifti')}"
        ) from error
    try:
        problems.raise_any()
    except UserError as error:
        if not skip_faulty or not images:
            raise
        logger.warning("left out: %s", error)
    samples.warn_of_ranges(images)
    kept = [row for row in accepted if row in images]
    return [rows[row] for row in kept], samples.stack([images[row] for row in kept], preparation.ndim)


def _files(
    folder: pathlib.Path, ndim: int, left_out: dict[str, list[str]], skip_faulty: bool
) -> list[tuple[pathlib.Path, str]]:
    """The files of a folder that count, and what they are without links; others go to `left_out`, by reason."""
    listing = walk(folder)
    problems = Problems(folder)
    for name, text in (listing.unreadable | listing.broken).items():
        # A link without an ending may be one to a folder.
        if name in listing.unreadable or suffix_of(name) in SUFFIXES[ndim] or "." not in name.rpartition("/")[2]:
            problems.add(text, file=name)
        else:
            left_out[UNREAD].append(printable(folder / name))
    try:
        problems.raise_any()
    except UserError as error:
        if not skip_faulty:
            raise UserError(f"--input {error}") from None
        logger.warning("left out: %s", error)
    found = [name for name in listing.files if suffix_of(name) in SUFFIXES[ndim]]
    # A mask of a 2-D image can be a volume, and the other way round.
    masks = companions.masks_among([name for name in listing.files if is_image(name)])
    if not found:
        names = list(listing.files)
        step = next(filter(None, (advice(listing.files[name]) for name in names)), "")
        others = f"; it has {some(names)}{f': {step}' if step else ''}" if names else ""
        raise UserError(f"--input {folder}: the folder holds no file that the model takes ({_endings(ndim)}){others}")
    for reason, names in listing.left_out.items():
        left_out[reason] += [f"{printable(folder)}/{name}" for name in names]
    left_out[companions.REASON] += [printable(folder / name) for name in found if name in masks]
    for name, path in listing.files.items():
        if suffix_of(name) not in SUFFIXES[ndim]:
            step = advice(path)
            left_out[f"other files ({step})" if step else "other files"].append(printable(path))
    # A file's own name counts before that of a link to it.
    again = listing.twice([name for name in found if name not in masks])
    left_out[AGAIN] += [printable(folder / name) for name in again]
    return [(listing.files[name], listing.real(name)) for name in found if name not in masks and name not in again]


def _endings(ndim: int) -> str:
    return f"{'2-D images' if ndim == 2 else 'volumes'}: {', '.join(SUFFIXES[ndim])}"


def _open_masks(masks: str, rows: Iterable[Row], preparation: Preparation) -> Lookup | None:
    if not preparation.masked:
        if masks:
            raise UserError(f"--masks {masks}: the model was trained on whole images: leave it out")
        return None
    if not masks:
        raise UserError(
            "--masks is missing: the model was trained on images that were cut to the masks of their lungs: give those"
            " of --input, a folder of PNG files or a table as CheXmask's"
        )
    problems, first_of = Problems(pathlib.Path("--input")), dict[str, Row]()
    for row in rows:
        if (first := first_of.setdefault(stem(row.file), row)) is not row:
            problems.add(f"has the same mask as {first.file}: rename one of them", file=row.file)
    problems.raise_any()
    return open_masks(pathlib.Path(masks).expanduser(), first_of)


def _reader(preparation: Preparation, lungs: Lookup | None) -> functools.partial[Sample]:
    common = dict(size=preparation.size, window=preparation.window, nan=preparation.nan)
    if preparation.ndim == 2:
        return functools.partial(samples.read_2d, lungs=lungs, max_pixels=preparation.max_pixels, **common)
    return functools.partial(samples.read_3d, spacing=preparation.spacing, max_voxels=preparation.max_voxels, **common)
