"""radiographs: a user's own chest radiographs, prepared as in the PneumoLLM paper.

The folder data.root has `images/` (.dcm, .dicom, .png, .jpg, .jpeg) and `labels.csv` with the columns patient_id, file
(below images/) and label. Where masks of the lungs are given (`jaxboost.data.masks`), an image is cut to the smallest
rectangle around both lungs; then it is resized to a square, bicubic, whatever its proportions were.

The whole folder is read before training starts, and everything that is wrong with it is reported in one message. There
are no official splits: the data set has the single split "all", for `jaxboost.data.folds` to divide by patient.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxboost.data import labels
from jaxboost.data.faults import FaultError, Faults
from jaxboost.data.grey import DICOM_SUFFIXES, SUFFIXES, read_grey
from jaxboost.data.labels import Row
from jaxboost.data.masks import Lookup, bounding_box, open_masks, stem
from jaxboost.data.source import MULTI_LABEL, Dataset, DatasetInfo, Split
from jaxboost.errors import UserError

NAME = "radiographs"
SPLIT = "all"
_IMAGES = "images"
_NAMED = 12  # files in a warning

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """An image uint8 (S, S) and the digest of the pixels that it was made of."""

    image: np.ndarray
    digest: str


def describe(size: int, *, root: str, classes: Sequence[str], multi_label: bool) -> DatasetInfo:
    """The description. No file is touched where `classes` are given; otherwise they are those of labels.csv, sorted.

    Raises:
        UserError: the size is below 1, the classes cannot be told apart, or labels.csv is needed and cannot be read.
    """
    if classes:
        return _info(size, labels.check_classes(classes, "data.classes", multi_label=multi_label), multi_label)
    folder = _folder(root)
    rows = labels.read_rows(folder / labels.FILE, Faults(folder))
    return _info(size, _found_classes(folder, rows, multi_label), multi_label)


def load(
    *, size: int, root: str, classes: Sequence[str], multi_label: bool, masks: str, allow_mixed_patients: bool
) -> Dataset:
    """Reads the folder `root`.

    Args:
        size: S, pixels a side of the prepared images.
        root: the folder.
        classes: in label order; empty: those of labels.csv, sorted.
        multi_label: a label may be several, separated by "|", or none.
        masks: "", or a folder of masks or a table, as a path below `root` or of its own.
        allow_mixed_patients: whether the images of one patient may have different labels.

    Returns:
        The split "all": images (n, S, S, 1) in the order of labels.csv, the patients as `groups`, the files as `names`.

    Raises:
        UserError: with all that is wrong with the folder.
    """
    folder = _folder(root)
    faults = Faults(folder)
    rows = labels.read_rows(folder / labels.FILE, faults)
    known = labels.check_classes(classes, "data.classes", multi_label=multi_label) if classes else ()
    info = _info(size, known or _found_classes(folder, rows, multi_label), multi_label)
    if not known:
        _log.info("classes found, in label order (of two the second is the positive one): %s", ", ".join(info.classes))
    targets = labels.encode(rows, info.classes, faults, multi_label=multi_label)
    labels.check_patients(rows, faults, multi_label=multi_label, allow_mixed=allow_mixed_patients)
    readable = _readable(rows, folder / _IMAGES, faults)
    lungs = _lungs(folder, masks, readable, faults)
    samples = _read_all(readable, folder / _IMAGES, size, lungs, faults)
    _check_copies(rows, samples, faults, multi_label=multi_label)
    faults.raise_any()
    split = Split(
        images=np.stack([samples[row].image for row in rows])[..., np.newaxis],
        labels=targets,
        groups=np.array([row.patient for row in rows]),
        names=np.array([row.file for row in rows]),
    )
    return Dataset(info=dataclasses.replace(info, n_samples={SPLIT: len(split)}), splits={SPLIT: split}, baselines={})


def _folder(root: str) -> pathlib.Path:
    if not root:
        raise UserError(f"data.root is empty: set it to the folder that holds {_IMAGES}/ and {labels.FILE}")
    return pathlib.Path(root).expanduser()


def _found_classes(folder: pathlib.Path, rows: Sequence[Row], multi_label: bool) -> tuple[str, ...]:
    found = labels.find_classes(rows, multi_label=multi_label)
    return labels.check_classes(found, str(folder / labels.FILE), multi_label=multi_label)


def _info(size: int, classes: tuple[str, ...], multi_label: bool) -> DatasetInfo:
    if size < 1:
        raise UserError(f"data.size={size}: use 1 or more")
    task = MULTI_LABEL if multi_label else "binary-class" if len(classes) == 2 else "multi-class"
    return DatasetInfo(name=NAME, task=task, classes=classes, channels=1, ndim=2, size=size, n_samples={}, license="")


def _readable(rows: Sequence[Row], folder: pathlib.Path, faults: Faults) -> list[Row]:
    """The rows whose image can be tried; what is wrong with the others goes to `faults`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found: put the images there")
    first_of: dict[pathlib.PurePath, Row] = {}
    readable = []
    for row in rows:
        path = pathlib.PurePath(row.file)
        fault = ""
        if not row.file:
            fault = "file is empty"
        elif path.is_absolute() or ".." in path.parts:
            fault = f"is not below {_IMAGES}/"
        elif path in first_of:
            fault = f"is listed in row {first_of[path].number} already"
        elif not (folder / path).is_file():
            fault = f"not found in {folder}"
        elif path.suffix.lower() not in SUFFIXES:
            fault = f"is not one of {', '.join(SUFFIXES)}"
        if fault:
            faults.add(fault, row=row.number, file=row.file)
        else:
            readable.append(row)
        first_of.setdefault(path, row)
    found = {path.relative_to(folder) for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES}
    if unlisted := sorted(map(str, found - set(first_of))):
        _log.warning("%s has no row for %s: left out", labels.FILE, _some(unlisted))
    if importlib.util.find_spec("pydicom") is None:
        count = len(readable)
        readable = [row for row in readable if not row.file.lower().endswith(DICOM_SUFFIXES)]
        if count > len(readable):
            faults.add(f"{count - len(readable)} DICOM files need the package pydicom: `pip install 'jaxboost[dicom]'`")
    return readable


def _lungs(folder: pathlib.Path, masks: str, rows: Sequence[Row], faults: Faults) -> Lookup | None:
    if not masks:
        return None
    first_of: dict[str, Row] = {}
    for row in rows:
        first = first_of.setdefault(stem(row.file), row)
        if first is not row:
            text = f"has the same mask as {first.file} in row {first.number}: rename one of them"
            faults.add(text, row=row.number, file=row.file)
    own = pathlib.Path(masks).expanduser()
    below = folder / own
    try:
        return open_masks(below if below.exists() else own, first_of)
    except UserError as error:
        faults.add(str(error))
        return None


def _read_all(
    rows: Sequence[Row], folder: pathlib.Path, size: int, lungs: Lookup | None, faults: Faults
) -> dict[Row, _Sample]:
    def attempt(row: Row) -> _Sample | FaultError:
        try:
            return _read(folder / row.file, size, lungs)
        except FaultError as fault:
            return fault

    samples = {}
    # Decoders, numpy and pillow let go of the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = tqdm(pool.map(attempt, rows), total=len(rows), desc="reading", unit="image", disable=None)
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, FaultError):
                faults.add(str(result), row=row.number, file=row.file)
            else:
                samples[row] = result
    return samples


def _read(path: pathlib.Path, size: int, lungs: Lookup | None) -> _Sample:
    grey = read_grey(path)
    picture = Image.fromarray(grey)
    if lungs is not None:
        picture = picture.crop(bounding_box(lungs(stem(path.name), grey.shape), grey.shape))
    image = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return _Sample(image, hashlib.sha256(str(grey.shape).encode() + grey.tobytes()).hexdigest())


def _check_copies(rows: Sequence[Row], samples: dict[Row, _Sample], faults: Faults, *, multi_label: bool) -> None:
    """Images with the same pixels: a fault if patients or labels differ, else a warning."""
    harmless = []
    for first, *copies in _same_pixels(rows, samples):
        for copy in copies:
            fault = ""
            if copy.patient != first.patient:
                fault = f"{copy.patient!r} and {first.patient!r} are one patient, or one file is wrong"
            elif not labels.same_labels(first, copy, multi_label=multi_label):
                fault = f"their labels differ, {copy.label!r} and {first.label!r}"
            if fault:
                text = f"has the same pixels as {first.file} in row {first.number}: {fault}"
                faults.add(text, row=copy.number, file=copy.file)
            else:
                harmless.append(f"{first.file} = {copy.file}")
    if harmless:
        _log.warning("images with the same pixels, of one patient each: %s", _some(harmless))


def _same_pixels(rows: Sequence[Row], samples: dict[Row, _Sample]) -> Iterator[list[Row]]:
    by_digest: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row in samples:
            by_digest[samples[row].digest].append(row)
    return (group for group in by_digest.values() if len(group) > 1)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
