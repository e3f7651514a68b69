"""The two layouts of a user's folder: their entries, and the file of each entry."""

import collections
import dataclasses
import importlib.util
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from jaxboost.data.dataset import SPLITS
from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers import pictures, volumes
from jaxboost.data.sources.folder import cell_values, companions, file_names, labels, patients, table_columns
from jaxboost.data.sources.folder.extensions import ALL, SUFFIXES, advice, is_image, suffix_of, wrong_suffix
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.walk import ABSENT, AGAIN, HIDDEN, SYSTEM, UNREAD, Listing, some, summary, unreadable, walk
from jaxboost.errors import UserError, missing_extra, nearest
from jaxboost.io import irregular, user_path

# Extensions, name of the format, and the package and the extra that are needed to read it.
_OPTIONAL = (
    (pictures.DICOM_SUFFIXES, "DICOM", "pydicom", "dicom"),
    (volumes.NIFTI_SUFFIXES, "NIfTI", "nibabel", "nifti"),
)

# Reasons to leave out what is no sample, whatever its extension.
_NO_IMAGES = (SYSTEM, HIDDEN, companions.REASON)

logger = logging.getLogger(__name__)


def open_folder(root: str) -> pathlib.Path:
    """Returns the folder `root`; raises UserError if there is none."""
    if not root:
        raise UserError(f"data.root is empty: set it to the folder that holds {labels.FILE} or a folder for each class")
    folder = user_path(root)
    if os.path.isdir(folder):
        return folder
    if os.path.isfile(folder):
        step = advice(folder) or "give the folder that holds it"
        raise UserError(f"data.root: {folder} is a file, not a folder: {step}")
    if os.path.exists(folder):
        raise UserError(f"data.root: {folder} is {irregular(folder)}, not a folder: give a folder")
    if (text := unreadable(folder)) != ABSENT:
        raise UserError(f"data.root: {folder} {text}")
    raise UserError(f"data.root: there is no folder {folder}: check the path")


def masks_in(folder: pathlib.Path, masks: str) -> pathlib.Path | None:
    """Returns the path of data.masks: relative to `folder` if it exists there, otherwise as given; None for ""."""
    if not masks:
        return None
    path = user_path(masks)
    below = folder / path
    return below if os.path.exists(below) else path


def read_entries(
    folder: pathlib.Path,
    problems: Problems,
    masks: pathlib.Path | None = None,
    *,
    multi_label: bool = False,
    columns: Sequence[str] = (),
    quiet: bool = False,
) -> list[Entry]:
    """Returns the entries of labels.csv if there is one, otherwise the files of the class folders, sorted.

    Args:
      folder: the user's folder.
      problems: receives the problems of single rows and folders.
      masks: the folder of masks, which is not a class.
      multi_label: whether an image may have several labels, separated by "|", or none.
      columns: the clinical columns, see `table_columns.parse`.
      quiet: whether the log does not list the files that are left out.

    Raises:
      UserError: there are neither a table nor class folders, or labels.csv cannot be read or lacks a column.
    """
    wanted = table_columns.parse(columns)
    if _has_table(folder):
        entries = labels.read_entries(folder / labels.FILE, problems, multi_label=multi_label, wanted=wanted)
        table_columns.check(entries, wanted, problems)
        files = file_names.relative(folder, [entry.file for entry in entries])
        pairs = zip(entries, files, strict=True)
        return [entry if entry.file == file else dataclasses.replace(entry, file=file) for entry, file in pairs]
    if wanted:
        raise UserError(
            f"{folder}: data.columns needs {labels.FILE}, a table with the columns file, label and"
            f" {', '.join(column.name for column in wanted)}: write it, or leave data.columns empty"
        )
    listing = walk(folder, skip=masks)
    top = {name.partition("/")[0] for name in (*listing.folders, *listing.same_folders) if name}
    if top & set(SPLITS):
        for name in sorted(top - set(SPLITS)):
            problems.add(f"the folder {name}/ is next to {', '.join(SPLITS)}: {nearest(name, SPLITS)}")
        found = _Classes(listing, SPLITS, multi_label)
    else:
        _check_no_splits(folder, top, _hint(folder, listing))
        found = _Classes(listing, (), multi_label)
    if len(found.names) < 2:
        for name, text in listing.unreadable.items():
            raise UserError(f"{folder / name}: {text}")
        raise UserError(
            f"{folder}: found neither {labels.FILE} nor two class folders or more: write {labels.FILE}, a table with "
            "the columns file, label and, where known, patient_id and split; or put the files of each class into a "
            f"folder of its name, below train/, val/ and test/ if there are splits{_hint(folder, listing)}"
        )
    if wrong := companions.no_classes(found.names):
        raise UserError(
            f"{folder}: {', '.join(f'{name}/' for name in wrong)} would be taken for a class: write {labels.FILE} for"
            " images without class folders; give a folder of masks as data.masks, or move it away"
            f"{_hint(folder, listing)}"
        )
    entries = found.entries(problems)
    problems.excluded |= _count_images(found.left_out)
    if not quiet and (text := summary(found.left_out)):
        logger.warning("%s", text)
    if len({entry.label for entry in entries}) < 2:
        # Perhaps no file of a class could be read.
        problems.raise_any()
    if not entries:
        raise UserError(f"{folder}: its class folders hold no images ({', '.join(ALL)}){_hint(folder, listing)}")
    return patients.from_folders(entries)


def _has_table(folder: pathlib.Path) -> bool:
    """Returns whether there is an entry labels.csv of any kind; raises UserError if its name is spelt differently."""
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
    """Returns the end of a message: which files may hold the labels or the images, and what to do with them."""
    shallow = [name for name in listing.files if name.count("/") < 2]
    tables = [name for name in shallow if name.lower().endswith((".csv", ".tsv", ".xlsx"))]
    if tables:
        return f"; if {some(tables)} has the labels, save it as {folder / labels.FILE} with these columns"
    if flat := [name for name, path in listing.files.items() if "\\" in path.name]:
        return f"; {flat[0]} has backslashes in place of folders: unpack its archive again, with 7z or bsdtar"
    found = {name: step for name, path in listing.files.items() if not is_image(name) and (step := advice(path))}
    return f"; of {some(list(found))}: {next(iter(found.values()))}" if found else ""


class _Classes:
    """The class folders of a listing, and the files that are left out of them.

    Attributes:
      names: the names of the classes.
      left_out: reason -> names of files and folders.
    """

    def __init__(self, listing: Listing, splits: Sequence[str], multi_label: bool):
        """Finds the class folders: below the folders `splits`, or at the top if there are none."""
        self._multi_label = multi_label
        self._listing, self._splits, self._depth = listing, splits, 2 if splits else 1
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)
        for reason, found in listing.left_out.items():
            self.left_out[reason] += found
        every = (name for name in (*listing.folders, *listing.same_folders) if self._is_class(name))
        self.names = {cell_values.label(name.rpartition("/")[2]) for name in every}

    def entries(self, problems: Problems) -> list[Entry]:
        """Returns an entry for each image, sorted by split, class and name; adds what cannot be read to `problems`."""
        self._report(problems)
        inside, outside = [], []
        for name in self._listing.files:
            (inside if self._is_inside(name) else outside).append(name)
        self.left_out["files outside of the class folders"] += outside
        images = [name for name in inside if is_image(name)]
        masks = companions.masks_among(images, self._depth)
        self.left_out[companions.REASON] += masks
        images = [name for name in images if name not in masks]
        # Links to one image in the same folder are one sample. Other copies are found by their pixels.
        again = {
            name
            for name, first in self._listing.repeated(images).items()
            if name.rpartition("/")[0] == first.rpartition("/")[0]
        }
        self.left_out[AGAIN] += again
        self._others([name for name in inside if not is_image(name)], problems)
        entries = [self._entry(name) for name in images if name not in again]
        used = {"/".join(entry.file.split("/")[: self._depth]) for entry in entries}
        empty = (name for name in self._listing.folders if self._is_class(name) and name not in used)
        self.left_out["class folders without images"] += [f"{name}/" for name in empty]
        return sorted(entries, key=lambda entry: SPLITS.index(entry.split)) if self._splits else entries

    def _is_class(self, name: str) -> bool:
        return name.count("/") == self._depth - 1 and bool(name) and self._in_split(name)

    def _is_inside(self, name: str) -> bool:
        return name.count("/") >= self._depth and self._in_split(name)

    def _in_split(self, name: str) -> bool:
        return not self._splits or name.partition("/")[0] in self._splits

    def _entry(self, name: str) -> Entry:
        parts = name.split("/")
        label = cell_values.label(parts[self._depth - 1])
        found = labels.parse(label, multi_label=self._multi_label)
        return Entry(0, name, label, found, split=parts[0] if self._splits else None)

    def _report(self, problems: Problems) -> None:
        """Adds a problem for what cannot be read, and for each folder that a link puts into a second class."""
        listing = self._listing
        for name, text in listing.unreadable.items():
            problems.add(text, file=name)
        for name, text in listing.broken.items():
            # A link without an extension may lead to the folder of a class or a patient.
            no_suffix = "." not in name.rpartition("/")[2] and self._in_split(name)
            if no_suffix or (is_image(name) and self._is_inside(name)):
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
        """Sorts files of class folders without an image's extension: those that may hold images are problems."""
        by_step: dict[str, list[str]] = collections.defaultdict(list)
        for name in found:
            by_step[advice(self._listing.files[name])].append(name)
        self.left_out["files that are not images"] += by_step.pop("", [])
        for step, members in by_step.items():
            problems.add(f"{some(members)}: {'is' if len(members) == 1 else 'are'} not read: {step}")


def _check_no_splits(folder: pathlib.Path, names: Iterable[str], hint: str) -> None:
    """Raises UserError if folders that would be taken for classes have usual names of splits."""
    if alike := [f"{name}/" for name in sorted(names) if companions.is_split(name)]:
        raise UserError(
            f"{folder}: {', '.join(alike)} look like splits and would be taken for classes: name them"
            f" {', '.join(f'{name}/' for name in SPLITS)} and put a folder of each class into each; or join them, so"
            f" that splits are made; or write {labels.FILE}{hint}"
        )


def locate(
    folder: pathlib.Path, entries: Sequence[Entry], ndim: int, problems: Problems, masks: pathlib.Path | None
) -> dict[Entry, pathlib.Path]:
    """Returns the files of the entries that may be readable; adds the problems of the others to `problems`.

    A file of a table is looked for below images/ first, if there is such a folder, and then below `folder`.
    """
    if entries[0].number:
        paths = _of_table(folder, entries, ndim, problems, masks)
    else:
        escaped = walk(folder, skip=masks).files if any("\\" in entry.file for entry in entries) else {}
        paths = {entry: escaped.get(entry.file, folder / entry.file) for entry in entries}
    found = {}
    for entry, path in paths.items():
        if text := wrong_suffix(path, ndim):
            entry.report(problems, text)
        else:
            found[entry] = path
    return _readable(found, problems)


def _of_table(
    folder: pathlib.Path, entries: Sequence[Entry], ndim: int, problems: Problems, masks: pathlib.Path | None
) -> dict[Entry, pathlib.Path]:
    """Returns the files that the rows of a table name; each file may be in one row only."""
    index = file_names.FileIndex(folder, masks)
    first_of: dict[str, Entry] = {}
    found: dict[Entry, pathlib.Path] = {}
    for entry in entries:
        if not entry.file:
            problems.add("file is empty", row=entry.number)
            continue
        try:
            path = index.find(entry.file)
        except ProblemError as error:
            entry.report(problems, str(error))
            continue
        if (first := first_of.setdefault(str(path), entry)) is not entry:
            entry.report(problems, f"is listed{first.place} already")
        else:
            found[entry] = path
    wrong = index.check_guesses()
    pairs = companions.masks_among([entry.file for entry in found])
    for entry in list(found):
        if entry.file in wrong:
            entry.report(problems, wrong[entry.file])
        elif entry.file in pairs:
            fix = "leave its row out, or give it another name"
            entry.report(problems, f"seems to be a mask or small copy of {pairs[entry.file]}: {fix}")
        else:
            continue
        del found[entry]
    listing = index.listing
    for name, text in listing.unreadable.items():
        problems.add(text, file=str(index.base / name))
    left_out = dict(listing.left_out)
    images = {name: path for name, path in listing.files.items() if suffix_of(name) in SUFFIXES[ndim]}
    left_out[f"images without a row in {labels.FILE}"] = [
        name for name, path in images.items() if str(path) not in first_of
    ]
    left_out["files that are not images"] = [
        name for name in listing.files if name not in images and name != labels.FILE and not is_image(name)
    ]
    files = {entry.file for entry in entries}
    left_out[UNREAD] = [name for name in listing.broken if is_image(name) and name not in files]
    problems.excluded |= _count_images(left_out)
    if text := summary(left_out):
        logger.warning("%s", text)
    return found


def _count_images(left_out: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Reason -> number of images among the files that are left out; a file of the system or a text is none."""
    counts = {
        reason: sum(is_image(name) for name in names) for reason, names in left_out.items() if reason not in _NO_IMAGES
    }
    return {reason: count for reason, count in counts.items() if count}


def _readable(found: Mapping[Entry, pathlib.Path], problems: Problems) -> dict[Entry, pathlib.Path]:
    """Returns `found` without files whose package is not installed; that is one problem for all of them."""
    readable = dict(found)
    for suffixes, kind, package, extra in _OPTIONAL:
        files = {entry for entry, path in readable.items() if suffix_of(path.name) in suffixes}
        if files and importlib.util.find_spec(package) is None:
            problems.add(f"{len(files)} {kind} files need the package {package}: {missing_extra(extra)}")
            readable = {entry: path for entry, path in readable.items() if entry not in files}
    return readable
