"""The two layouts of a user's folder, as rows, and the file of each row."""

import collections
import dataclasses
import importlib.util
import logging
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from jaxboost.data.dataset import SPLITS
from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers import pictures, volumes
from jaxboost.data.sources.folder import cell_values, companions, file_names, labels
from jaxboost.data.sources.folder.extensions import ALL, SUFFIXES, advice, is_image, suffix_of, wrong_ending
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.walk import AGAIN, UNREAD, Listing, some, summary, unreadable, walk
from jaxboost.errors import UserError, missing_extra, nearest
from jaxboost.io import irregular

# Folders within a class that hold all of its images, and are no patients.
_OF_ALL_IMAGES = frozenset(("image", "images", "img", "imgs"))
# Suffixes -> name, package and extra of what reads them.
_OPTIONAL = (
    (pictures.DICOM_SUFFIXES, "DICOM", "pydicom", "dicom"),
    (volumes.NIFTI_SUFFIXES, "NIfTI", "nibabel", "nifti"),
)

logger = logging.getLogger(__name__)


def open_folder(root: str) -> pathlib.Path:
    """The folder `root`; raises UserError where there is none."""
    if not root:
        raise UserError(f"data.root is empty: set it to the folder that holds {labels.FILE} or a folder for each class")
    folder = pathlib.Path(root).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        step = advice(folder) or "give the folder that holds it"
        raise UserError(f"data.root: {folder} is a file, not a folder: {step}")
    if folder.exists():
        raise UserError(f"data.root: {folder} is {irregular(folder)}, not a folder")
    if folder.is_symlink():
        raise UserError(f"data.root: {folder} {unreadable(folder)}")
    raise UserError(f"data.root: there is no folder {folder}: check the path")


def masks_in(folder: pathlib.Path, masks: str) -> pathlib.Path | None:
    """Where `masks` are, a path below `folder` or of its own; None for none."""
    if not masks:
        return None
    own = pathlib.Path(masks).expanduser()
    below = folder / own
    return below if below.exists() else own


def read_rows(
    folder: pathlib.Path, problems: Problems, masks: pathlib.Path | None = None, *, quiet: bool = False
) -> list[Row]:
    """The rows of labels.csv where the folder has one, else the files of its class folders, in alphabetical order.

    A folder within a class is a patient's.

    Args:
      masks: is no folder of a class.
      quiet: nothing is logged about files that are left out.

    Raises:
      UserError: neither is there, or labels.csv cannot be read. Problems of single rows and folders go to `problems`.
    """
    if _has_table(folder):
        rows = labels.read_rows(folder / labels.FILE, problems)
        files = file_names.below(folder, [row.file for row in rows])
        pairs = zip(rows, files, strict=True)
        return [row if row.file == file else dataclasses.replace(row, file=file) for row, file in pairs]
    listing = walk(folder, skip=masks)
    top = {name.partition("/")[0] for name in (*listing.folders, *listing.same_folders) if name}
    if top & set(SPLITS):
        for name in sorted(top - set(SPLITS)):
            problems.add(f"the folder {name}/ is beside {', '.join(SPLITS)}: {nearest(name, SPLITS)}")
        found = _Classes(listing, SPLITS)
    else:
        _check_no_splits(folder, top, _hint(folder, listing))
        found = _Classes(listing, ())
    if len(found.names) < 2:
        for name, text in listing.unreadable.items():
            raise UserError(f"{folder / name}: {text}")
        raise UserError(
            f"{folder}: found neither {labels.FILE} nor two class folders or more: write {labels.FILE}, a table with "
            "the columns file, label and, where known, patient_id and split; or put the files of each class into a "
            f"folder of its name, below train/, val/ and test/ where there are splits{_hint(folder, listing)}"
        )
    if wrong := companions.no_classes(found.names):
        raise UserError(
            f"{folder}: {', '.join(f'{name}/' for name in wrong)} would be taken for a class: write {labels.FILE} for"
            " images without class folders; give a folder of masks as data.masks, or move it away"
            f"{_hint(folder, listing)}"
        )
    rows = found.rows(problems)
    if not quiet and (text := summary(found.left_out)):
        logger.warning("%s", text)
    if len({row.label for row in rows}) < 2:
        # What could not be read may be all of a class.
        problems.raise_any()
    if not rows:
        raise UserError(f"{folder}: its class folders hold no images ({', '.join(ALL)}){_hint(folder, listing)}")
    return _with_patients(rows)


def _has_table(folder: pathlib.Path) -> bool:
    """Whether there is an entry labels.csv, whatever it is; raises UserError where its name is written differently."""
    try:
        present = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be listed ({error.strerror}): check its permissions") from error
    if labels.FILE in present:
        return True
    if alike := [name for name in present if name.lower() in (labels.FILE, f"{labels.FILE}.txt")]:
        raise UserError(f"{folder / alike[0]}: name it {labels.FILE}")
    return False


def _hint(folder: pathlib.Path, listing: Listing) -> str:
    """For the end of a message: what may hold the labels or the images, and what to do with it."""
    shallow = [name for name in listing.files if name.count("/") < 2]
    tables = [name for name in shallow if name.lower().endswith((".csv", ".tsv", ".xlsx"))]
    if tables:
        return f"; if {some(tables)} has the labels, save it as {folder / labels.FILE} with these columns"
    if flat := [name for name, path in listing.files.items() if "\\" in path.name]:
        return f"; {flat[0]} has back-slashes in the place of folders: unpack its archive again, with 7z or bsdtar"
    found = {name: step for name, path in listing.files.items() if not is_image(name) and (step := advice(path))}
    return f"; of {some(list(found))}: {next(iter(found.values()))}" if found else ""


class _Classes:
    """The class folders of a listing, and what is left out of them.

    Attributes:
      names: of the classes.
      left_out: reason -> names of files and folders.
    """

    def __init__(self, listing: Listing, splits: Sequence[str]):
        """Args: `splits` are the first folders, or () where the classes are."""
        self._listing, self._splits, self._depth = listing, splits, 2 if splits else 1
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)
        for reason, found in listing.left_out.items():
            self.left_out[reason] += found
        every = (name for name in (*listing.folders, *listing.same_folders) if self._is_class(name))
        self.names = {cell_values.label(name.rpartition("/")[2]) for name in every}

    def rows(self, problems: Problems) -> list[Row]:
        """A row for each image, by split, class and name; what cannot be read goes to `problems`."""
        self._report(problems)
        inside, outside = [], []
        for name in self._listing.files:
            (inside if self._is_inside(name) else outside).append(name)
        self.left_out["files outside of the class folders"] += outside
        images = [name for name in inside if is_image(name)]
        masks = companions.masks_among(images, self._depth)
        self.left_out[companions.REASON] += masks
        images = [name for name in images if name not in masks]
        # Links to one image of the same patient, class and split are one sample; of others the pixels tell.
        again = {
            name
            for name, first in self._listing.twice(images).items()
            if name.rpartition("/")[0] == first.rpartition("/")[0]
        }
        self.left_out[AGAIN] += again
        self._others([name for name in inside if not is_image(name)], problems)
        rows = [self._row(name) for name in images if name not in again]
        used = {"/".join(row.file.split("/")[: self._depth]) for row in rows}
        empty = (name for name in self._listing.folders if self._is_class(name) and name not in used)
        self.left_out["class folders without images"] += [f"{name}/" for name in empty]
        return sorted(rows, key=lambda row: SPLITS.index(row.split)) if self._splits else rows

    def _is_class(self, name: str) -> bool:
        return name.count("/") == self._depth - 1 and bool(name) and self._in_split(name)

    def _is_inside(self, name: str) -> bool:
        return name.count("/") >= self._depth and self._in_split(name)

    def _in_split(self, name: str) -> bool:
        return not self._splits or name.partition("/")[0] in self._splits

    def _row(self, name: str) -> Row:
        parts = name.split("/")
        label = cell_values.label(parts[self._depth - 1])
        return Row(0, name, label, split=parts[0] if self._splits else None)

    def _report(self, problems: Problems) -> None:
        """Adds what cannot be read, and folders that are in two classes by a link."""
        listing = self._listing
        for name, text in listing.unreadable.items():
            problems.add(text, file=name)
        for name, text in listing.broken.items():
            # A link without an ending may be one to the folder of a class or a patient.
            no_ending = "." not in name.rpartition("/")[2] and self._in_split(name)
            if no_ending or (is_image(name) and self._is_inside(name)):
                problems.add(text, file=name)
            else:
                self.left_out[UNREAD].append(name)
        for name, first in listing.same_folders.items():
            context, other = (tuple(path.split("/")[: self._depth]) for path in (name, first))
            if context == other:
                self.left_out[AGAIN].append(f"{name}/")
            else:
                problems.add(f"is the same folder as {first}/, in another class or split: remove one", file=f"{name}/")

    def _others(self, found: Sequence[str], problems: Problems) -> None:
        """Files of class folders that are no images by their ending: those that may hold some are problems."""
        by_step: dict[str, list[str]] = collections.defaultdict(list)
        for name in found:
            by_step[advice(self._listing.files[name])].append(name)
        self.left_out["files that are not images"] += by_step.pop("", [])
        for step, members in by_step.items():
            problems.add(f"{some(members)}: {'is' if len(members) == 1 else 'are'} not read: {step}")


def _check_no_splits(folder: pathlib.Path, names: Iterable[str], hint: str) -> None:
    """Raises UserError where folders that would be taken for classes are named as others name splits."""
    if alike := [f"{name}/" for name in sorted(names) if companions.is_split(name)]:
        raise UserError(
            f"{folder}: {', '.join(alike)} look like splits and would be taken for classes: name them"
            f" {', '.join(f'{name}/' for name in SPLITS)} and put a folder of each class into each; or join them, for"
            f" splits to be made; or write {labels.FILE}{hint}"
        )


def _with_patients(rows: Sequence[Row]) -> list[Row]:
    """`rows` of class folders, where the files in a folder within their class, at any depth, are of one patient.

    Folders of the same name are of one patient, whatever their class and split: the person who is filed under two
    classes must not come to two splits. Names that differ in case, Unicode form or blanks around them are the same:
    some file systems and archives change these. A patient is called CLASS/NAME where one class has the name, else NAME.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).strip().casefold()

    # Below the class, without folders that hold all images of it, such as CLASS/images/.
    inner = [
        tuple(
            name
            for name in pathlib.PurePath(row.file).parts[1 + (row.split is not None) : -1]
            if name.lower() not in _OF_ALL_IMAGES
        )
        for row in rows
    ]
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
    folder: pathlib.Path, rows: Sequence[Row], ndim: int, problems: Problems, masks: pathlib.Path | None
) -> dict[Row, pathlib.Path]:
    """The files of the rows that can be tried; what is wrong with the others goes to `problems`.

    A row's file is looked for below images/ first, where there is such a folder, and then below `folder`.
    """
    if rows[0].number:
        paths = _of_table(folder, rows, ndim, problems, masks)
    else:
        escaped = walk(folder, skip=masks).files if any("\\" in row.file for row in rows) else {}
        paths = {row: escaped.get(row.file, folder / row.file) for row in rows}
    found = {}
    for row, path in paths.items():
        if problem := wrong_ending(path, ndim):
            problems.add(problem, row=row.number, file=row.file)
        else:
            found[row] = path
    return _readable(found, problems)


def _of_table(
    folder: pathlib.Path, rows: Sequence[Row], ndim: int, problems: Problems, masks: pathlib.Path | None
) -> dict[Row, pathlib.Path]:
    """The files that the rows of a table name, each in one row."""
    shelf = file_names.Shelf(folder, masks)
    first_of: dict[str, Row] = {}
    found: dict[Row, pathlib.Path] = {}
    for row in rows:
        if not row.file:
            problems.add("file is empty", row=row.number)
            continue
        try:
            path = shelf.find(row.file)
        except ProblemError as problem:
            problems.add(str(problem), row=row.number, file=row.file)
            continue
        if (first := first_of.setdefault(str(path), row)) is not row:
            problems.add(f"is listed{first.place} already", row=row.number, file=row.file)
        else:
            found[row] = path
    wrong = shelf.settle()
    pairs = companions.masks_among([row.file for row in found])
    for row in list(found):
        if row.file in wrong:
            problems.add(wrong[row.file], row=row.number, file=row.file)
        elif row.file in pairs:
            text = f"seems to be a mask or small copy of {pairs[row.file]}: leave its row out, or give it another name"
            problems.add(text, row=row.number, file=row.file)
        else:
            continue
        del found[row]
    listing = shelf.listing
    for name, text in listing.unreadable.items():
        problems.add(text, file=str(shelf.base / name))
    left_out = dict(listing.left_out)
    images = {name: path for name, path in listing.files.items() if suffix_of(name) in SUFFIXES[ndim]}
    left_out[f"images without a row in {labels.FILE}"] = [
        name for name, path in images.items() if str(path) not in first_of
    ]
    left_out["files that are not images"] = [
        name for name in listing.files if name not in images and name != labels.FILE and not is_image(name)
    ]
    files = {row.file for row in rows}
    left_out[UNREAD] = [name for name in listing.broken if is_image(name) and name not in files]
    if text := summary(left_out):
        logger.warning("%s", text)
    return found


def _readable(found: Mapping[Row, pathlib.Path], problems: Problems) -> dict[Row, pathlib.Path]:
    """`found` without files whose package is not installed: that is one problem for all of them."""
    readable = dict(found)
    for suffixes, kind, package, extra in _OPTIONAL:
        files = {row for row, path in readable.items() if suffix_of(path.name) in suffixes}
        if files and importlib.util.find_spec(package) is None:
            problems.add(f"{len(files)} {kind} files need the package {package}: {missing_extra(extra)}")
            readable = {row: path for row, path in readable.items() if row not in files}
    return readable
