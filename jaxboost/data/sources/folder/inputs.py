"""Files to predict: found and prepared in the same way as the files of a user's folder are for training."""

import collections
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import companions, reading, samples
from jaxboost.data.sources.folder.extensions import SUFFIXES, advice, is_image, suffix_of
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.sources.folder.masks import Masks, by_stem, open_masks, stem
from jaxboost.data.walk import ABSENT, AGAIN, UNREAD, printable, some, summary, unreadable, walk
from jaxboost.errors import UserError, missing_extra
from jaxboost.io import user_path

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing(samples.Reading):
    """How a file becomes the input of a model.

    Attributes:
      masked: whether images are cropped to their lung masks.
      image_size: pixels per side of the model's input, see `pipeline.resize.fitted`.
      resize: the argument `first` of `fitted`.
    """

    masked: bool
    image_size: int
    resize: int


def find(inputs: Sequence[str], ndim: int, *, skip_faulty: bool = False) -> list[pathlib.Path]:
    """Finds the files to predict.

    Args:
      inputs: files with any extension, and folders. A folder stands for its files at any depth with an extension for
        `ndim` dimensions, without those that `walk` leaves out and without masks or small copies of images. One entry
        may name several files or folders, separated by commas.
      ndim: 2 or 3.
      skip_faulty: whether entries of a folder that cannot be read are left out with a warning.

    Returns:
      Each file once, in the order of `inputs`; the files of a folder are sorted. One line of the log lists the files
      that are left out.

    Raises:
      UserError: an input is missing or not a regular file, a folder has no file that is taken, or it has entries that
        cannot be read: links to nothing, or folders that cannot be listed.
    """
    # Paths, and the same paths with all links resolved.
    found: list[tuple[pathlib.Path, str]] = []
    left_out: dict[str, list[str]] = collections.defaultdict(list)
    for entry in inputs:
        # A comma may be part of a name.
        for name in [entry] if os.path.lexists(os.path.expanduser(entry)) else filter(None, entry.split(",")):
            path = user_path(name)
            if os.path.isdir(path):
                found += _files(path, ndim, left_out, skip_faulty)
            elif (problem := unreadable(path)) == ABSENT:
                raise UserError(f"--input {printable(name)}: there is no such file or folder: check the path")
            elif problem:
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


def folders(inputs: Sequence[str]) -> list[pathlib.Path]:
    """The folders among the inputs, which are as for `find`."""
    names = [name for entry in inputs for name in ([entry] if os.path.lexists(user_path(entry)) else entry.split(","))]
    return [path for name in names if name and os.path.isdir(path := user_path(name))]


def read(
    paths: Sequence[pathlib.Path], preprocessing: Preprocessing, *, masks: str = "", skip_faulty: bool = False
) -> tuple[list[pathlib.Path], np.ndarray]:
    """Reads the files.

    Args:
      paths: the files.
      preprocessing: how they are read.
      masks: a folder or a table of lung masks, see `masks.open_masks`, if the model needs them; otherwise "".
      skip_faulty: whether files with problems are left out with a warning.

    Returns:
      The files that could be read, and their images uint8 (n, S, S, C) or volumes (n, S, S, S, 1), where S is `size`.

    Raises:
      UserError: files have problems (the message has all of them), or no file is left without them; masks are missing
        or not used by the model; or the package for a file format is not installed.
    """
    entries = {Entry(0, printable(path)): path for path in paths}
    if len(entries) < len(paths):
        raise UserError("--input: two files have the same name once it is written in UTF-8: rename one of them")
    problems = Problems(pathlib.Path("--input"))
    accepted = {}
    for entry, path in entries.items():
        if suffix_of(path.name) in SUFFIXES[preprocessing.ndim]:
            accepted[entry] = path
        else:
            step = advice(path)
            text = f"is not a file that the model takes ({_accepted(preprocessing.ndim)}){f': {step}' if step else ''}"
            entry.report(problems, text)
    lookup = _open_masks(masks, accepted, masked=preprocessing.masked)
    items = {entry: samples.Item(path, lookup and lookup.only(stem(path.name))) for entry, path in accepted.items()}
    read_one = functools.partial(samples.read, reading=preprocessing)
    try:
        found = reading.read_all(items, read_one, preprocessing.ndim, problems, trained=True)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--input: the package {error.name}, which reads some of the files, is not installed:"
            f" {missing_extra('dicom,nifti')}"
        ) from error
    try:
        problems.raise_any()
    except UserError as error:
        if not skip_faulty or not found:
            raise
        logger.warning("left out: %s", error)
    facts = {entry: sample.facts for entry, sample in found.items()}
    samples.warn(facts, trained=True)
    samples.warn_of_darkness(list(facts.values()), preprocessing.ndim, trained=True)
    images = [sample.with_channels(preprocessing.ndim) for sample in found.values()]
    return [entries[entry] for entry in found], samples.stack(images)


def _files(
    folder: pathlib.Path, ndim: int, left_out: dict[str, list[str]], skip_faulty: bool
) -> list[tuple[pathlib.Path, str]]:
    """Returns the files of a folder that are taken, also with links resolved; adds the others to `left_out`."""
    listing = walk(folder)
    problems = Problems(folder)
    for name, text in (listing.unreadable | listing.broken).items():
        # A link without an extension may lead to a folder.
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
        raise UserError(f"--input {folder}: the folder holds no file that the model takes ({_accepted(ndim)}){others}")
    for reason, names in listing.left_out.items():
        left_out[reason] += [f"{printable(folder)}/{name}" for name in names]
    left_out[companions.REASON] += [printable(folder / name) for name in found if name in masks]
    for name, path in listing.files.items():
        if suffix_of(name) not in SUFFIXES[ndim]:
            step = advice(path)
            left_out[f"other files ({step})" if step else "other files"].append(printable(path))
    again = listing.repeated([name for name in found if name not in masks])
    left_out[AGAIN] += [printable(folder / name) for name in again]
    return [(listing.files[name], listing.real(name)) for name in found if name not in masks and name not in again]


def _accepted(ndim: int) -> str:
    return f"{'2-D images' if ndim == 2 else 'volumes'}: {', '.join(SUFFIXES[ndim])}"


def _open_masks(masks: str, paths: Mapping[Entry, pathlib.Path], *, masked: bool) -> Masks | None:
    if not masked:
        if masks:
            raise UserError(f"--masks {masks}: the model was trained on whole images: leave it out")
        return None
    if not masks:
        raise UserError(
            "--masks is missing: the model was trained on images that were cropped to their lung masks: give the masks"
            " of --input, a folder of PNG files or a table in the format of CheXmask"
        )
    problems = Problems(pathlib.Path("--input"))
    first_of = by_stem(paths, problems)
    problems.raise_any()
    return open_masks(user_path(masks), first_of, "--masks")
