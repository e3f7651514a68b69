"""The two layouts of a user's folder, as rows, and the file of each row."""

import dataclasses
import importlib.util
import logging
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from jaxboost.data import labels, pictures, volumes
from jaxboost.data.faults import Faults
from jaxboost.data.labels import Row
from jaxboost.data.source import SPLITS
from jaxboost.errors import UserError, nearest

_IMAGES = "images"
_NAMED = 12  # files in a warning
# Names of folders that others give to splits.
_LIKE_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
# Spatial dimensions -> suffixes of their files.
SUFFIXES = {2: pictures.SUFFIXES, 3: volumes.SUFFIXES}
_ALL = tuple(dict.fromkeys((*volumes.SUFFIXES, *pictures.SUFFIXES)))
# Suffixes -> name, package and extra of what reads them.
_OPTIONAL = (
    (pictures.DICOM_SUFFIXES, "DICOM", "pydicom", "dicom"),
    (volumes.NIFTI_SUFFIXES, "NIfTI", "nibabel", "nifti"),
)

_log = logging.getLogger(__name__)


def open_folder(root: str) -> pathlib.Path:
    """The folder `root`; raises UserError where there is none."""
    if not root:
        raise UserError(f"data.root is empty: set it to the folder that holds {labels.FILE} or a folder for each class")
    folder = pathlib.Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root: there is no folder {folder}: check the path")
    return folder


def masks_in(folder: pathlib.Path, masks: str) -> pathlib.Path | None:
    """Where `masks` are, a path below `folder` or of its own; None for none."""
    if not masks:
        return None
    own = pathlib.Path(masks).expanduser()
    below = folder / own
    return below if below.exists() else own


def read_rows(folder: pathlib.Path, faults: Faults, masks: pathlib.Path | None = None) -> list[Row]:
    """The rows of labels.csv where the folder has one, else the files of its class folders, in alphabetical order.

    A folder within a class is a patient's.

    Args:
        masks: is no folder of a class.

    Raises:
        UserError: neither is there, or labels.csv cannot be read. Faults of single rows and folders go to `faults`.
    """
    if (folder / labels.FILE).exists():
        return labels.read_rows(folder / labels.FILE, faults)
    found = [path for path in _folders(folder) if masks is None or path.resolve() != masks.resolve()]
    names = {path.name for path in found}
    if names & set(SPLITS):
        for name in sorted(names - set(SPLITS)):
            faults.add(f"the folder {name}/ is beside {', '.join(SPLITS)}: {nearest(name, SPLITS)}")
        classes = [(name, path) for name in SPLITS for path in _folders(folder / name)]
    else:
        _check_no_splits(folder, names)
        classes = [(None, path) for path in found]
    if len({path.name for _, path in classes}) < 2:
        raise UserError(
            f"{folder}: found neither {labels.FILE} nor two class folders or more: write {labels.FILE}, a table with "
            "the columns file, label and, where known, patient_id and split; or put the files of each class into a "
            "folder of its name, below train/, val/ and test/ where there are splits"
        )
    rows = []
    others = []
    for split, path in classes:
        for file in _files(path):
            name = file.relative_to(folder).as_posix()
            if suffix_of(name) in _ALL:
                rows.append(Row(0, name, path.name, split=split))
            else:
                others.append(name)
    if others:
        _log.warning("files that are no images: %s: left out", some(others))
    if not rows:
        raise UserError(f"{folder}: its class folders hold no images ({', '.join(_ALL)})")
    return _with_patients(rows)


def _check_no_splits(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Raises UserError where folders that would be taken for classes are named as others name splits."""
    if alike := [f"{name}/" for name in sorted(names) if name.casefold() in _LIKE_SPLITS]:
        raise UserError(
            f"{folder}: {', '.join(alike)} look like splits and would be taken for classes: name them"
            f" {', '.join(f'{name}/' for name in SPLITS)}; or join them, for splits to be made"
        )


def _with_patients(rows: Sequence[Row]) -> list[Row]:
    """`rows` of class folders, where the files in a folder within their class, at any depth, are of one patient.

    Folders of the same name are of one patient, whatever their class and split: the person who is filed under two
    classes must not come to two splits. Names that differ in case, Unicode form or blanks around them are the same:
    some file systems and archives change these. A patient is called CLASS/NAME where one class has the name, else NAME.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).strip().casefold()

    inner = [pathlib.PurePath(row.file).parts[1 + (row.split is not None) : -1] for row in rows]
    if not any(inner):
        return list(rows)
    # A name's key -> its classes with how each writes it first.
    classes: dict[str, dict[str, str]] = {}
    for row, folders in zip(rows, inner, strict=True):
        if folders:
            classes.setdefault(key(folders[0]), {}).setdefault(row.label, folders[0])

    def patient(row: Row, folders: Sequence[str]) -> str:
        if not folders:
            return row.file
        found = classes[key(folders[0])]
        return "/".join(next(iter(found.items()))) if len(found) == 1 else next(iter(found.values()))

    return [dataclasses.replace(row, patient=patient(row, folders)) for row, folders in zip(rows, inner, strict=True)]


def locate(
    folder: pathlib.Path, rows: Sequence[Row], ndim: int, faults: Faults, masks: pathlib.Path | None
) -> dict[Row, pathlib.Path]:
    """The files of the rows that can be tried; what is wrong with the others goes to `faults`.

    A row's file is looked for below images/ first, where there is such a folder, and then below `folder`.
    """
    base = folder / _IMAGES if (folder / _IMAGES).is_dir() else folder
    whole = folder.resolve()
    first_of: dict[pathlib.Path, Row] = {}
    found = {}
    for row in rows:
        path = pathlib.PurePath(row.file)
        below = base / path if (base / path).is_file() or not (folder / path).is_file() else folder / path
        fault = ""
        if not row.file:
            fault = "file is empty"
        elif ".." in path.parts or (path.is_absolute() and not path.resolve().is_relative_to(whole)):
            fault = f"is not below {folder}"
        elif below in first_of:
            fault = f"is listed in row {first_of[below].number} already"
        elif not below.is_file():
            fault = f"not found in {base}"
        else:
            fault = _wrong_suffix(path.name, ndim)
        if fault:
            faults.add(fault, row=row.number, file=row.file)
        else:
            found[row] = below
        first_of.setdefault(below, row)
    if rows[0].number:
        present = {path for path in _files(base) if suffix_of(path.name) in SUFFIXES[ndim]}
        unlisted = (path for path in present - set(first_of) if masks is None or masks not in path.parents)
        if names := sorted(path.relative_to(base).as_posix() for path in unlisted):
            _log.warning("%s has no row for %s: left out", labels.FILE, some(names))
    return _readable(found, faults)


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case; ".nii.gz" is one."""
    return next((suffix for suffix in _ALL if name.lower().endswith(suffix)), pathlib.PurePath(name).suffix.lower())


def some(names: Sequence[str]) -> str:
    """The first dozen names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _readable(found: Mapping[Row, pathlib.Path], faults: Faults) -> dict[Row, pathlib.Path]:
    """`found` without files whose package is not installed: that is one fault for all of them."""
    readable = dict(found)
    for suffixes, kind, package, extra in _OPTIONAL:
        files = [row for row in readable if suffix_of(row.file) in suffixes]
        if files and importlib.util.find_spec(package) is None:
            faults.add(f"{len(files)} {kind} files need the package {package}: `pip install 'jaxboost[{extra}]'`")
            readable = {row: path for row, path in readable.items() if row not in files}
    return readable


def _wrong_suffix(name: str, ndim: int) -> str:
    suffix, accepted = suffix_of(name), ", ".join(SUFFIXES[ndim])
    if suffix in SUFFIXES[ndim]:
        return ""
    if suffix in _ALL and ndim == 3:
        return f"is a 2-D image, and model.backbone takes volumes ({accepted})"
    if suffix in _ALL:
        return f"is a volume, and model.backbone takes 2-D images ({accepted})"
    return f"is not one of {accepted}"


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files below, but hidden ones and those in hidden folders."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
