"""Source "folder": files of a user's own, 2-D images or volumes, with their labels.

The folder data.root is laid out in one of two ways.

A table: labels.csv has the columns `file` (or `path`; below data.root/images/, where there is such a folder, or below
data.root) and `label`. Without a column `patient_id` (or `patient`) every file counts as a patient of its own. A column
`split` (train, test and, where there is one, val) makes official splits; no patient may be in two.

Class folders, where there is no labels.csv: data.root/CLASS/files, or data.root/{train,val,test}/CLASS/files; in either
CLASS/PATIENT/files says whose they are, and val/ may be missing. Folders of one name below two classes or splits are of
one patient.

Where neither says whose the files are, the tags of DICOM files do, with data.patient=tag.

2-D: DICOM (.dcm, .dicom), PNG, JPEG, TIFF, .npy with (H, W) or (H, W, 3); they are resized to a square, bicubic,
whatever their proportions are, and keep their colours, see `readers.pictures`. Where masks of the lungs are given
(`masks`), an image is cut to the smallest rectangle around them first, as in the PneumoLLM paper.
3-D: NIfTI (.nii, .nii.gz), .npy with (D, H, W); they are resampled to a cube, see `jaxboost.data.readers.volumes`.

The whole folder is read before training starts, and everything that is wrong with it is reported in one message.
"""

import dataclasses
import functools
import logging
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from jaxboost import tasks
from jaxboost.data.dataset import SPLITS, Dataset, DatasetInfo, Split
from jaxboost.data.problems import Problems
from jaxboost.data.readers import arrays
from jaxboost.data.sources.folder import duplicates as duplicates_of
from jaxboost.data.sources.folder import labels, layouts, patients, samples
from jaxboost.data.sources.folder.duplicates import JOIN, REFUSE, WARN
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.sources.folder.masks import Lookup, open_masks, stem
from jaxboost.errors import UserError, check_choice, nearest

SOURCE = "folder"
WHOLE = "all"
PATIENT_SOURCES = ("", patients.TAG)

logger = logging.getLogger(__name__)


def describe(
    name: str, size: int, *, ndim: int, root: str, classes: Sequence[str], multi_label: bool, masks: str
) -> DatasetInfo:
    """The description; no image is looked at, so that colour is not known and `channels` is 1.

    No file is touched where `classes` are given; otherwise they are those of the folder, sorted.

    Raises:
      UserError: the name or the size cannot be, the classes cannot be told apart, or the folder is needed and cannot
        be read.
    """
    _check_name(name)
    if classes:
        known = labels.check_classes(classes, "data.classes", multi_label=multi_label)
    else:
        folder = layouts.open_folder(root)
        rows = layouts.read_rows(folder, Problems(folder), layouts.masks_in(folder, masks), quiet=True)
        known = _found_classes(folder, rows, multi_label)
    return _info(name, size, ndim, known, multi_label)


def load(
    name: str,
    *,
    size: int,
    ndim: int,
    root: str,
    classes: Sequence[str],
    multi_label: bool,
    masks: str,
    allow_mixed_patients: bool,
    window: Sequence[float],
    spacing: float,
    nan: str = "",
    max_pixels: int = arrays.MAX_PIXELS,
    max_voxels: int = arrays.MAX_VOXELS,
    patient: str = "",
    duplicates: str = WARN,
    pooled: bool = False,
) -> Dataset:
    """Reads the folder `root`.

    Args:
      name: what the data set is to be called.
      size: S, pixels or voxels a side of the prepared images.
      ndim: 2 or 3.
      root: the folder.
      classes: in label order; empty: those of the folder, sorted.
      multi_label: a label may be several, separated by "|", or none.
      masks: of 2-D images: "", or a folder of masks or a table, as a path below `root` or of its own.
      allow_mixed_patients: whether the images of one patient may have different labels.
      window: (low, high), the stored values that become 0 and 255, of 2-D images where they have more than 8 bits;
        (): the file's own least and greatest.
      spacing: mm a voxel of the grid; 0: the longest side of each volume fills it.
      nan: a number as text, which stored values that are not finite are read as; "": their files are refused.
      max_pixels, max_voxels: that a file may hold; larger ones are refused before they are decoded.
      patient: "tag": DICOM files name their patients where no table does; "": they are not asked.
      duplicates: "warn", "join" or "refuse": what is done about nearly equal images in different splits.
      pooled: the folder's own splits are not used: all images are divided anew, for a cross-validation.

    Returns:
      The official splits, with or without val, or the one split "all", in the order of the rows: images (n, S, S, C)
      or (n, S, S, S, 1), the patients as `groups`, None where they are not known, and the files as `names`.

    Raises:
      UserError: with all that is wrong with the folder.
    """
    _check_name(name)
    _check_options(ndim, masks, window, spacing)
    check_choice(patient, PATIENT_SOURCES, "config field data.patient")
    check_choice(duplicates, (WARN, JOIN, REFUSE), "config field data.duplicates")
    arrays.check_limits(max_pixels, max_voxels)
    value = arrays.nan_value(nan)
    folder = layouts.open_folder(root)
    problems = Problems(folder)
    masks_path = layouts.masks_in(folder, masks)
    rows = layouts.read_rows(folder, problems, masks_path)
    known = labels.check_classes(classes, "data.classes", multi_label=multi_label) if classes else ()
    info = _info(name, size, ndim, known or _found_classes(folder, rows, multi_label), multi_label)
    if known:
        rows = _of_known_folders(rows, known, problems)
    else:
        logger.info(
            "classes found, in label order (of two the second is the positive one): %s", ", ".join(info.classes)
        )
        labels.warn_of_misspelling(rows, info.classes, multi_label=multi_label)
    targets = labels.encode(rows, info.classes, problems, multi_label=multi_label)
    labels.check_splits(rows, info.classes, problems, multi_label=multi_label)
    paths = layouts.locate(folder, rows, ndim, problems, masks_path)
    rows, paths = _find_patients(
        name, rows, paths, problems, source=patient, multi_label=multi_label, allow_mixed=allow_mixed_patients
    )
    if ndim == 2:
        lungs = _lungs(masks_path, list(paths), problems)
        read = functools.partial(
            samples.read_2d, size=size, window=window, lungs=lungs, nan=value, max_pixels=max_pixels
        )
    else:
        read = functools.partial(
            samples.read_3d, size=size, window=window, spacing=spacing, nan=value, max_voxels=max_voxels
        )
    found = samples.read_all(paths, read, ndim, problems)
    samples.warn_of_ranges(found)
    joined = samples.join_copies(rows, found, problems, multi_label=multi_label)
    problems.raise_any()
    images = samples.stack([found[row] for row in rows], ndim)
    treated = duplicates_of.treat(
        joined,
        images,
        problems,
        mode=duplicates,
        multi_label=multi_label,
        allow_mixed=allow_mixed_patients,
        pooled=pooled,
    )
    problems.raise_any()
    return _dataset(info, treated, images, targets)


def _find_patients(
    name: str,
    rows: list[Row],
    paths: dict[Row, pathlib.Path],
    problems: Problems,
    *,
    source: str,
    multi_label: bool,
    allow_mixed: bool,
) -> tuple[list[Row], dict[Row, pathlib.Path]]:
    """`rows` and `paths` with the patients of the table, of the folders, or of the tags where `source` is "tag"."""
    how = patients.FOLDERS
    if rows[0].patient is None:
        how = source
        if not source:
            logger.warning("%s has no patient ids: every file is taken as a patient of its own", name)
    elif not rows[0].number:
        logger.info("files in one folder below their class's folder are taken as one patient")
        if loose := [row.file for row in rows if row.patient == row.file]:
            logger.warning("not in a patient's folder, each taken as a patient of its own: %s", layouts.some(loose))
    else:
        how = ""
    if source:
        rows, paths = patients.from_tags(rows, paths, problems)
    options = {"multi_label": multi_label, "allow_mixed": allow_mixed}
    if how:
        patients.check(rows, problems, how, **options)
    else:
        labels.check_patients(rows, problems, **options)
    return rows, paths


def _dataset(info: DatasetInfo, rows: Sequence[Row], images: np.ndarray, targets: np.ndarray) -> Dataset:
    """The data set with the rows' splits, or with one split of all."""
    whole = Split(
        images=images,
        labels=targets,
        groups=None if rows[0].patient is None else np.array([row.patient for row in rows]),
        names=np.array([row.file for row in rows]),
    )
    splits = {WHOLE: whole}
    if rows[0].split:
        places = np.array([row.split for row in rows])
        splits = {split: whole.take(np.flatnonzero(places == split)) for split in SPLITS if split in places}
    sizes = {split: len(members) for split, members in splits.items()}
    info = dataclasses.replace(info, channels=whole.images.shape[-1], n_samples=sizes)
    return Dataset(info=info, splits=splits, baselines={})


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"config field data.name: {name!r} is what results and files of a data set of your own are called: give "
            "letters, digits, '-', '_' and '.'"
        )


def _check_options(ndim: int, masks: str, window: Sequence[float], spacing: float) -> None:
    arrays.check_window(window)
    if not 0 <= spacing < math.inf:
        raise UserError(f"data.spacing={spacing}: give mm, or 0")
    if ndim == 2 and spacing:
        raise UserError(f"data.spacing={spacing} is for volumes, and model.backbone takes 2-D images: set it to 0")
    if ndim == 3 and masks:
        raise UserError(f"data.masks={masks!r} is for 2-D images, and model.backbone takes volumes: leave it empty")


def _found_classes(folder: pathlib.Path, rows: Sequence[Row], multi_label: bool) -> tuple[str, ...]:
    found = labels.find_classes(rows, multi_label=multi_label)
    where = folder / labels.FILE if rows[0].number else folder
    missing = labels.missing_labels(rows, multi_label=multi_label)
    if len(found) < 2 and missing:
        raise UserError(
            f"{where}: labels: {', '.join((*found, *missing))}; {', '.join(missing)} would mean a missing label: if it"
            " is a class, name the classes in data.classes"
        )
    return labels.check_classes(found, str(where), multi_label=multi_label)


def _of_known_folders(rows: list[Row], classes: Sequence[str], problems: Problems) -> list[Row]:
    """The rows without those of class folders that `classes` do not name: a problem for each of these."""
    if rows[0].number:
        return rows
    for name in sorted({row.label for row in rows} - set(classes)):
        problems.add(f"the folder {name}/ is not one of data.classes, {nearest(name, classes)}")
    kept = [row for row in rows if row.label in classes]
    if not kept:
        problems.raise_any()
    return kept


def _info(name: str, size: int, ndim: int, classes: tuple[str, ...], multi_label: bool) -> DatasetInfo:
    if size < 1:
        raise UserError(f"data.size={size}: use 1 or more")
    task = tasks.name_for(len(classes), multi_label=multi_label)
    return DatasetInfo(
        name=name, task=task, classes=classes, channels=1, ndim=ndim, size=size, n_samples={}, license=""
    )


def _lungs(masks: pathlib.Path | None, rows: Sequence[Row], problems: Problems) -> Lookup | None:
    if masks is None:
        return None
    first_of: dict[str, Row] = {}
    for row in rows:
        first = first_of.setdefault(stem(row.file), row)
        if first is not row:
            where = f" in row {first.number}" if first.number else ""
            text = f"has the same mask as {first.file}{where}: rename one of them"
            problems.add(text, row=row.number, file=row.file)
    try:
        return open_masks(masks, first_of)
    except UserError as error:
        problems.add(str(error))
        return None
