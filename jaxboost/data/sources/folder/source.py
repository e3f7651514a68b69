"""Source "folder": a user's own files, 2-D images or volumes, with their labels.

The folder data.root has one of two layouts:

* A table: labels.csv has the columns `file` (or `path`) and `label`. Files are relative to data.root/images/ if there
  is such a folder, otherwise to data.root. An optional column `patient_id` (or `patient`) names the patients; without
  it every file counts as a separate patient. An optional column `split` (train, test and, optionally, val) gives the
  official splits; no patient may be in two.
* Class folders, if there is no labels.csv: data.root/CLASS/files, or data.root/{train,val,test}/CLASS/files, where val/
  may be missing. CLASS/PATIENT/files names the patients; folders of the same name below two classes or splits belong
  to one patient.

If neither the table nor the folders name the patients, data.patient=tag takes them from the tags of DICOM files.

2-D images are DICOM (.dcm, .dicom), PNG, JPEG, TIFF, or .npy with (H, W) or (H, W, 3); see `readers.pictures`. They are
resized to a square (bicubic, proportions are not kept) and keep their colours. If data.masks gives lung masks, an image
is cropped to the smallest rectangle around its mask first, as in the PneumoLLM paper. Volumes are NIfTI (.nii, .nii.gz)
or .npy with (D, H, W); they are resampled to a cube, see `readers.volumes`.

The whole folder is read before training starts, and all problems with it are reported in one message. Each file is
decoded once and kept on disk, see `reading` and `data.rows`.
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost import tasks
from jaxboost.data.dataset import ALL, SPLITS, Dataset, DatasetInfo, MappedRows, Split
from jaxboost.data.problems import Problems
from jaxboost.data.readers import arrays
from jaxboost.data.rows import place
from jaxboost.data.sources.folder import labels, layouts, patients, samples
from jaxboost.data.sources.folder.duplicates import WARN, join_copies, treat_near_duplicates
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.sources.folder.masks import Masks, by_stem, open_masks
from jaxboost.data.sources.folder.reading import key_of, open_store, read_into
from jaxboost.errors import UserError, nearest

SOURCE = "folder"

logger = logging.getLogger(__name__)


def describe(
    name: str,
    size: int,
    *,
    root: str,
    ndim: int = 2,
    classes: Sequence[str] = (),
    multi_label: bool = False,
    masks: str = "",
) -> DatasetInfo:
    """Describes the data set without opening an image: colour is not known, and `channels` is 1.

    If `classes` are given, no file is touched. Otherwise the classes are those of the folder, sorted. The arguments are
    those of `load`.

    Raises:
      UserError: the name is not valid, two classes cannot be distinguished, or the folder cannot be read.
    """
    _check_name(name)
    if classes:
        known = labels.check_classes(classes, "data.classes", multi_label=multi_label)
    else:
        folder = layouts.open_folder(root)
        where = layouts.masks_in(folder, masks)
        entries = layouts.read_entries(folder, Problems(folder), where, multi_label=multi_label, quiet=True)
        known = _found_classes(folder, entries, multi_label)
    return _info(name, size, ndim, known, multi_label)


def load(
    name: str,
    *,
    size: int,
    root: str,
    ndim: int = 2,
    classes: Sequence[str] = (),
    multi_label: bool = False,
    masks: str = "",
    allow_mixed_patients: bool = False,
    window: Sequence[float] = (),
    spacing: float = 0.0,
    nan: str = "",
    max_pixels: int = arrays.MAX_PIXELS,
    max_voxels: int = arrays.MAX_VOXELS,
    patient: str = "",
    duplicates: str = WARN,
    columns: Sequence[str] = (),
    ignore_splits: bool = False,
    cache: str = place.ON,
    cache_gb: float = place.MOST_GB,
) -> Dataset:
    """Reads the folder. The options that have a field in the config were checked there.

    Args:
      name: name of the data set, for results and files.
      size: S, pixels or voxels per side of the prepared images.
      root: the folder.
      ndim: 2 or 3.
      classes: the classes in label order; empty: those of the folder, sorted.
      multi_label: whether an image may have several labels, separated by "|", or none.
      masks: lung masks of 2-D images: path of a folder or a table, relative to `root` if it exists there; "": none.
      allow_mixed_patients: whether the images of one patient may have different labels.
      window: (low, high), the stored values that become 0 and 255 in files with more than 8 bits; (): the least and the
        greatest value of each file.
      spacing: mm per voxel of the grid; 0: the longest side of each volume fills the grid.
      nan: the number, as text, that replaces values that are not finite; "": files with such values are refused.
      max_pixels, max_voxels: the most that a file may hold; a larger one is refused before it is decoded.
      patient: "tag": the tags of DICOM files name the patients if nothing else does; "": these tags are not read.
      duplicates: "warn", "join" or "refuse": what to do about nearly equal images in different splits.
      columns: clinical columns of labels.csv, see `table_columns.parse`.
      ignore_splits: whether the folder's own splits do not count, because a cross-validation divides all images anew.
      cache, cache_gb: whether decoded images are kept on disk for the next start, see `place.Keeping`.

    Returns:
      The official splits, with or without val, or one split "all": images uint8 (n, S, S, C) or (n, S, S, S, 1), large
      ones mapped from disk, the patients as `groups` (None if unknown), the files as `names`, and the clinical columns
      as `cells`, in the order of the entries; where splits are ignored, in the order of the splits.

    Raises:
      UserError: an option is not valid, or the folder has problems; the message has all of them.
    """
    _check_name(name)
    _check_ndim(ndim, masks, spacing)
    reading = samples.Reading(
        ndim=ndim,
        size=size,
        window=tuple(window),
        spacing=spacing,
        nan=arrays.nan_value(nan),
        max_pixels=max_pixels,
        max_voxels=max_voxels,
    )
    folder = layouts.open_folder(root)
    problems = Problems(folder)
    masks_path = layouts.masks_in(folder, masks)
    entries = layouts.read_entries(folder, problems, masks_path, multi_label=multi_label, columns=columns)
    ignored = {entry.file: entry.split for entry in entries} if ignore_splits else {}
    entries = [dataclasses.replace(entry, split=None) for entry in entries] if ignore_splits else entries
    entries, known = _entries_and_classes(folder, entries, classes, problems, multi_label)
    info = _info(name, size, ndim, known, multi_label)
    targets = labels.to_numbers(entries, info.classes, problems, multi_label=multi_label)
    labels.check_splits(entries, info.classes, problems)
    paths = layouts.locate(folder, entries, ndim, problems, masks_path)
    store = open_store(folder, reading, place.Keeping(cache, cache_gb), masked=bool(masks_path))
    tags = store if patient == patients.TAG else None
    entries, paths = patients.find(name, entries, paths, problems, tags=tags, allow_mixed=allow_mixed_patients)
    masks_of = _open_masks(masks_path, paths, problems) if masks_path else None
    found = read_into(store, folder, paths, reading, masks_of, problems)
    samples.warn(found)
    joined = join_copies(entries, found, problems)
    problems.raise_any()
    samples.warn_of_darkness([found[entry] for entry in entries], ndim)
    images = store.array([key_of(folder, paths[entry]) for entry in entries])
    entries = treat_near_duplicates(
        joined, images, problems, mode=duplicates, allow_mixed=allow_mixed_patients, store=store
    )
    problems.raise_any()
    return _dataset(dataclasses.replace(info, excluded=problems.excluded), entries, images, targets, ignored)


def _entries_and_classes(
    folder: pathlib.Path, entries: list[Entry], classes: Sequence[str], problems: Problems, multi_label: bool
) -> tuple[list[Entry], tuple[str, ...]]:
    """Returns the entries to use, and the classes: those given, or those found."""
    if classes:
        known = labels.check_classes(classes, "data.classes", multi_label=multi_label)
        return _of_known_folders(entries, known, problems), known
    found = _found_classes(folder, entries, multi_label)
    logger.info("classes found, in label order (of two the second is the positive one): %s", ", ".join(found))
    labels.warn_of_misspelling(entries, found)
    return entries, found


def _found_classes(folder: pathlib.Path, entries: Sequence[Entry], multi_label: bool) -> tuple[str, ...]:
    found, missing = labels.find_classes(entries)
    where = folder / labels.FILE if entries[0].number else folder
    if len(found) < 2 and missing:
        raise UserError(
            f"{where}: labels: {', '.join((*found, *missing))}; {', '.join(missing)} would mean a missing label: if it"
            " is a class, name the classes in data.classes"
        )
    return labels.check_classes(found, str(where), multi_label=multi_label)


def _of_known_folders(entries: list[Entry], classes: Sequence[str], problems: Problems) -> list[Entry]:
    """Returns the entries without those of class folders that are no class; each such folder is a problem."""
    if entries[0].number:
        return entries
    for name in sorted({entry.label for entry in entries} - set(classes)):
        problems.add(f"the folder {name}/ is not one of data.classes, {nearest(name, classes)}")
    kept = [entry for entry in entries if entry.label in classes]
    if not kept:
        problems.raise_any()
    return kept


def _open_masks(path: pathlib.Path, paths: Mapping[Entry, pathlib.Path], problems: Problems) -> Masks | None:
    first_of = by_stem(paths, problems)
    try:
        return open_masks(path, first_of)
    except UserError as error:
        problems.add(str(error))
        return None


def _dataset(
    info: DatasetInfo,
    entries: Sequence[Entry],
    images: np.ndarray | MappedRows,
    targets: np.ndarray,
    ignored: Mapping[str, str | None],
) -> Dataset:
    """Builds the data set with the splits of the entries, or with one split of all.

    The latter is in the order of the splits that are `ignored`, file -> split, because folds depend on the order.
    """
    whole = Split(
        images=images,
        labels=targets,
        groups=None if entries[0].patient is None else np.array([entry.patient for entry in entries]),
        names=np.array([entry.file for entry in entries]),
        cells=np.array([entry.cells for entry in entries], str) if entries[0].cells else None,
    )
    if any(ignored.values()):
        order = {split: number for number, split in enumerate(SPLITS)}
        ranks = [order.get(ignored[entry.file] or "", len(order)) for entry in entries]
        whole = whole.take(np.argsort(ranks, kind="stable"))
    splits = {ALL: whole}
    if entries[0].split:
        split_of = np.array([entry.split for entry in entries])
        splits = {split: whole.take(np.flatnonzero(split_of == split)) for split in SPLITS if split in split_of}
    sizes = {split: len(members) for split, members in splits.items()}
    info = dataclasses.replace(info, channels=whole.images.shape[-1], n_samples=sizes)
    return Dataset(info=info, splits=splits, baselines={})


def _info(name: str, size: int, ndim: int, classes: tuple[str, ...], multi_label: bool) -> DatasetInfo:
    task = tasks.name_for(len(classes), multi_label=multi_label)
    return DatasetInfo(
        name=name, task=task, classes=classes, channels=1, ndim=ndim, size=size, n_samples={}, license=""
    )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"config field data.name: {name!r} names the results and files of your data set: use only letters, digits, "
            "'-', '_' and '.'"
        )


def _check_ndim(ndim: int, masks: str, spacing: float) -> None:
    if ndim == 2 and spacing:
        raise UserError(f"data.spacing={spacing} is for volumes, and model.backbone takes 2-D images: set it to 0")
    if ndim == 3 and masks:
        raise UserError(f"data.masks={masks!r} is for 2-D images, and model.backbone takes volumes: leave it empty")
