"""labels.csv of a user's folder: its entries, its classes, and the problems with them."""

import collections
import dataclasses
import difflib
import functools
import logging
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from jaxboost.data.dataset import SPLITS
from jaxboost.data.problems import Problems
from jaxboost.data.readers import csv_text
from jaxboost.data.sources.folder import cell_values, table_columns
from jaxboost.data.sources.folder.cell_values import is_missing
from jaxboost.data.sources.folder.table_columns import FIELDS, LONGEST, Wanted
from jaxboost.errors import UserError, nearest

FILE = "labels.csv"
REQUIRED = ("file", "label")
# Names that other tables give these columns, as `cell_values.column` writes them: for messages.
_SIMILAR = {
    "file": (
        *("image", "imageid", "imageindex", "imagename", "imagepath", "filename", "filepath", "id", "idcode", "name"),
    ),
    "patient": ("patientid", "subject", "subjectid", "case", "caseid", "group", "groups"),
    "label": ("labels", "class", "target", "diagnosis", "dx", "finding", "findings", "findinglabels", "category"),
}
# Field -> the function that cleans its cells.
_CLEAN = {
    "file": cell_values.trim,
    "label": cell_values.clean,
    "patient": cell_values.clean,
    "split": cell_values.clean,
}
_LONGEST = 4096  # characters of a cell that is used
_BETWEEN_LABELS = "|"
_ALIKE = 0.8  # difflib's ratio of two spellings of one class
_FEW = 200  # the most classes that are compared with each other

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file: a row of labels.csv with clean cells, or a file of a class folder.

    Attributes:
      number: the row's number in a spreadsheet (the header is row 1); 0 without a table.
      file: its path in the table, or its path below the folder.
      label: the cell of the label.
      labels: the labels in it: several or none in a multi-label task, otherwise one, or none if the cell is empty.
      patient: the patient; None if there is no such column.
      split: the split; None if there is no such column.
      patient_folder: the folder that names the patient, below the user's folder; "" if no folder does.
      cells: those of the clinical columns that are wanted.
    """

    number: int
    file: str
    label: str = ""
    labels: tuple[str, ...] = ()
    patient: str | None = None
    split: str | None = None
    patient_folder: str = ""
    cells: tuple[str, ...] = ()

    @property
    def in_row(self) -> str:
        """The row's number for messages, such as " in row 7"; "" without a table."""
        return f" in row {self.number}" if self.number else ""

    @property
    def place(self) -> str:
        """Where the file is named, for messages: " in row 7", or without a table " (a/1.png)"."""
        return self.in_row or f" ({self.file})"

    def report(self, problems: Problems, text: str) -> None:
        """Adds a problem with this entry's file."""
        problems.add(text, row=self.number, file=self.file)


def parse(cell: str, *, multi_label: bool) -> tuple[str, ...]:
    """Returns the labels in a cell: those between "|" in a multi-label task, otherwise one; () if there is none."""
    parts = cell.split(_BETWEEN_LABELS) if multi_label else [cell]
    return tuple(name for part in parts if (name := cell_values.label(part)))


def read_entries(
    path: pathlib.Path,
    problems: Problems,
    *,
    multi_label: bool = False,
    required: Sequence[str] = REQUIRED,
    wanted: Sequence[Wanted] = (),
    whose: str = table_columns.OF_CONFIG,
) -> list[Entry]:
    """Reads the table. Its columns may be in any order; columns of other names are ignored.

    Args:
      path: labels.csv, separated by commas, semicolons or tabs.
      problems: receives the problems with single rows.
      multi_label: whether a row may have several labels.
      required: fields whose columns must be there; a field of `Entry` without a column keeps its default.
      wanted: clinical columns, whose cells are not checked here.
      whose: who wants them, see `table_columns.find`.

    Returns:
      The entries of the rows that could be read.

    Raises:
      UserError: the file cannot be read, a column is missing, or there are no rows.
    """
    separator, table = csv_text.rows(path, csv_text.read(path))
    entries = []
    with csv_text.long_cells():
        _, header = next(table, (0, []))
        names = [cell_values.clean(name).lower() for name in header]
        columns = _columns(names, path, required)
        further = table_columns.find(names, wanted, path, whose)
        for number, cells in table:
            if not any(map(cell_values.trim, cells)):
                continue
            if len(cells) <= max([*columns.values(), *further]) or any(map(cell_values.trim, cells[len(names) :])):
                text = f"has {len(cells)} cells, the header {len(names)}: put cells that hold a {separator!r} in quotes"
                problems.add(text, row=number)
                continue
            found = {field: _CLEAN[field](cells[column]) for field, column in columns.items()}
            if long := [field for field, cell in found.items() if len(cell) > _LONGEST]:
                problems.add(f"{long[0]} has {len(found[long[0]])} characters: look for a missing quote", row=number)
                continue
            others = tuple(cell_values.clean(cells[column]) for column in further)
            if long := [column.name for column, cell in zip(wanted, others, strict=True) if len(cell) > LONGEST]:
                problems.add(f"column {long[0]!r} has more than {LONGEST} characters", row=number)
                continue
            labels = parse(found.get("label", ""), multi_label=multi_label)
            entries.append(Entry(number, labels=labels, cells=others, **found))
    if not entries:
        problems.raise_any()
        raise UserError(f"{path}: no rows: write one for each image")
    return _same_patients(entries)


def further_columns(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """File -> name of the column -> cell, of the columns that `read_entries` ignores.

    Raises:
      UserError: the file cannot be read, or has no column of files.
    """
    _, table = csv_text.rows(path, csv_text.read(path))
    with csv_text.long_cells():
        _, header = next(table, (0, []))
        names = [cell_values.clean(name) for name in header]
        columns = _columns([name.lower() for name in names], path, ("file",))
        others = {number: name for number, name in enumerate(names) if name and number not in columns.values()}
        rows = [cells for _, cells in table if len(cells) > columns["file"]]
    return {
        _CLEAN["file"](cells[columns["file"]]): {
            name: cell_values.clean(cells[number]) if number < len(cells) else "" for number, name in others.items()
        }
        for cells in rows
    }


def has_column(path: pathlib.Path, field: str) -> bool:
    """Whether the table has a column for a field of `Entry`. Raises UserError if it cannot be read."""
    return any(name in FIELDS[field] for name in _header(path))


def check_not_meant(path: pathlib.Path, field: str, wanted: Sequence[Wanted]) -> None:
    """Raises UserError if another column of a table, which lacks that of `field`, seems to be it.

    Args:
      path: the table.
      field: of `Entry`.
      wanted: clinical columns, which are something else.
    """
    known = {column.name.lower() for column in wanted}
    accepted = FIELDS[field][0]
    for name in _header(path):
        if name not in known and cell_values.column(name) in _SIMILAR[field]:
            raise UserError(
                f"{path}: if the column {name!r} is the {field} of a sample, rename it to {accepted!r}; if not, give it"
                " another name, or leave it out"
            )


def _header(path: pathlib.Path) -> list[str]:
    """The names of a table's columns, clean and in lower case. Raises UserError if the file cannot be read."""
    _, table = csv_text.rows(path, csv_text.read(path))
    _, header = next(table, (0, []))
    return [cell_values.clean(name).lower() for name in header]


def _same_patients(entries: list[Entry]) -> list[Entry]:
    """Writes patient 7.0 as 7 if the column has numbers in both forms: pandas writes 7 as 7.0 in a column with gaps."""
    patients = {entry.patient for entry in entries if entry.patient}
    wholes = {patient: number for patient in patients if (number := cell_values.whole(patient))}
    # Beside 1.1, the id 1.0 is not the number 1.
    fractions = any("." in patient and patient not in wholes and _is_number(patient) for patient in patients)
    if fractions or not patients.intersection(wholes.values()):
        return entries
    logger.warning("patient_id has numbers with and without .0: they are taken as the same, 7.0 as 7")
    return [dataclasses.replace(entry, patient=wholes.get(entry.patient or "", entry.patient)) for entry in entries]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(names: list[str], path: pathlib.Path, required: Sequence[str]) -> dict[str, int]:
    """Returns the number of the column of each field that the table has."""
    columns = {}
    for field, accepted in FIELDS.items():
        found = [number for number, name in enumerate(names) if name in accepted]
        if len(found) > 1:
            raise UserError(f"{path}: column {' or '.join(map(repr, accepted))} appears twice: {', '.join(names)}")
        if not found and field in required:
            wanted = " or ".join(map(repr, accepted))
            meant = [name for name in names if cell_values.column(name) in _SIMILAR[field]]
            step = f": if {meant[0]!r} is it, rename that column to {accepted[0]!r}" if meant else ""
            raise UserError(f"{path}: column {wanted} is missing; found: {', '.join(names)}{step}")
        if found:
            columns[field] = found[0]
    return columns


def find_classes(entries: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the labels that occur, sorted, and apart from them those of a table that mean a missing value, as nan."""
    every = {label for entry in entries for label in entry.labels}
    missing = {label for label in every if is_missing(label)} if entries[0].number else set()
    return tuple(sorted(every - missing)), tuple(sorted(missing))


def check_classes(classes: Sequence[str], where: str, *, multi_label: bool) -> tuple[str, ...]:
    """Returns `classes` as clean text and checks that they can be distinguished.

    Args:
      classes: the classes; one text with commas names all of them.
      where: the origin of the classes, for messages.
      multi_label: whether an image may have several labels.

    Raises:
      UserError: there are fewer than two, or two of them are probably the same: 1 and 01, True and 1, tb and TB.
    """
    # The command line turns 0,1 into numbers, and a,b into one text.
    texts = [part for name in classes for part in (str(name).split(",") if len(classes) == 1 else [str(name)])]
    names = [cell_values.label(text) for text in texts]
    if len(names) < 2:
        raise UserError(f"{where}: {len(names)} classes ({', '.join(names)}), at least 2 are needed")
    if len(set(names)) < len(names):
        name, _ = collections.Counter(names).most_common(1)[0]
        raise UserError(f"{where}: the class {name!r} appears twice")
    if pairs := cell_values.alike(names):
        first, other = pairs[0]
        but = "case" if first.casefold() == other.casefold() else "their form"
        raise UserError(f"{where}: the classes {first!r} and {other!r} differ only in {but}: write them alike")
    known = set(names)
    joined = [name for name in names if ({part.strip() for part in re.split("[,;]", name)} - {name}) & known]
    if multi_label and joined:
        raise UserError(f"{where}: the class {joined[0]!r} seems to be several: put {_BETWEEN_LABELS!r} between labels")
    if pair := cell_values.two_words_for_truth(names):
        raise UserError(f"{where}: the classes {pair[0]!r} and {pair[1]!r} mean the same: write them alike")
    return tuple(names)


def to_numbers(
    entries: Sequence[Entry], classes: Sequence[str], problems: Problems, *, multi_label: bool
) -> np.ndarray:
    """Converts the labels to numbers.

    Returns:
      int64 (n, L): 0 or 1 for each class of a multi-label task; otherwise the number of the class, (n, 1). A label that
      is not one of `classes` is a problem, and becomes 0.
    """
    index = {name: number for number, name in enumerate(classes)}
    guess = functools.cache(lambda name: nearest(name, classes))
    numbers = np.zeros((len(entries), len(classes) if multi_label else 1), np.int64)
    for position, entry in enumerate(entries):
        if not multi_label and not entry.labels:
            entry.report(problems, "the label is empty")
        elif not multi_label and _BETWEEN_LABELS in entry.label:
            entry.report(problems, f"{entry.label!r} is several labels: give one, or set data.multi_label=True")
        for name in entry.labels:
            if name in index:
                numbers[position, index[name] if multi_label else 0] = 1 if multi_label else index[name]
            elif entry.number and is_missing(name):
                fix = "give a label, or name it in data.classes if it is a class"
                entry.report(problems, f"label {name!r} means a missing label: {fix}")
            elif multi_label or _BETWEEN_LABELS not in name:
                entry.report(problems, f"label {name!r} is unknown, {guess(name)}")
    return numbers


def check_splits(entries: Sequence[Entry], classes: Sequence[str], problems: Problems) -> None:
    """Adds a problem for each entry whose split is not train, val or test, and for each split without all classes.

    The split val may be missing. If the entries name no split, all of them together must have all classes.
    """
    guess = functools.cache(lambda name: nearest(name, SPLITS))
    by_split: dict[str | None, list[Entry]] = {name: [] for name in SPLITS}
    if entries[0].split is None:
        by_split = {None: list(entries)}
    for entry in entries:
        if entry.split in SPLITS:
            by_split[entry.split].append(entry)
        elif entry.split is not None:
            entry.report(
                problems, f"split {entry.split!r} is unknown, {guess(entry.split)}" if entry.split else "split is empty"
            )
    if not by_split.get("val", True):
        del by_split["val"]
    for split, members in by_split.items():
        found = {label for entry in members for label in entry.labels}
        where = f"split {split!r}" if split else "the data set"
        if not members:
            problems.add(f"{where} has no sample: give train and test, and val if there is one, or no splits at all")
        elif missing := [repr(name) for name in classes if name not in found]:
            problems.add(f"{where} has no sample of class {', '.join(missing)}")


def warn_of_misspelling(entries: Sequence[Entry], classes: Sequence[str]) -> None:
    """Warns of each class that has one sample and is spelt nearly like another class."""
    if len(classes) > _FEW:
        return
    counts = collections.Counter(label for entry in entries for label in entry.labels)
    for name in classes:
        others = {other.casefold(): other for other in classes if other != name}
        close = difflib.get_close_matches(name.casefold(), others, n=1, cutoff=_ALIKE)
        if counts[name] == 1 and close:
            logger.warning(
                "class %r has one sample and is spelt nearly like %r: correct it, or name the classes in data.classes",
                name,
                others[close[0]],
            )


def same_labels(one: Entry, other: Entry) -> bool:
    """Returns whether two entries name the same labels, in any order."""
    return set(one.labels) == set(other.labels)
