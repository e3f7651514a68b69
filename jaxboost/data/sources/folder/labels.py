"""labels.csv of a user's folder: its rows, its classes, and what is wrong with them."""

import collections
import dataclasses
import difflib
import functools
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.data.dataset import SPLITS
from jaxboost.data.problems import Problems
from jaxboost.data.readers import csv_text
from jaxboost.data.sources.folder import cell_values
from jaxboost.data.sources.folder.cell_values import is_missing
from jaxboost.errors import UserError, nearest

FILE = "labels.csv"
# Field of a row -> names that its column may have; the first two are needed.
_COLUMNS = {
    "file": ("file", "path"),
    "label": ("label",),
    "patient": ("patient_id", "patient"),
    "split": ("split",),
}
_NEEDED = ("file", "label")
# What others call these columns, without case, blanks and underscores: for messages.
_ALSO = {
    "file": (
        "image",
        "imageid",
        "imageindex",
        "imagename",
        "imagepath",
        "filename",
        "filepath",
        "id",
        "idcode",
        "name",
    ),
    "label": ("labels", "class", "target", "diagnosis", "dx", "finding", "findings", "findinglabels", "category"),
}
# How the cell of each field is read.
_READ = {"file": cell_values.trim, "label": cell_values.clean, "patient": cell_values.clean, "split": cell_values.clean}
_LONGEST = 4096  # characters of such a cell
_BETWEEN_LABELS = "|"
_ALIKE = 0.8  # difflib's ratio of two spellings of one class
_FEW = 200  # classes that can be compared with each other

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
    """A file: what labels.csv says of it, without blanks around the cells, or the folders that it is in.

    Attributes:
      number: of the row as a spreadsheet shows it (the header is row 1); 0 without a table.
      file: its path in the table, or below the folder.
      label: as text.
      patient: None where there is no such column.
      split: None where there is no such column.
    """

    number: int
    file: str
    label: str
    patient: str | None = None
    split: str | None = None

    @property
    def place(self) -> str:
        """Where it is found, for messages: " in row 7", or without a table " (a/1.png)"."""
        return f" in row {self.number}" if self.number else f" ({self.file})"


def read_rows(path: pathlib.Path, problems: Problems) -> list[Row]:
    """The rows of the table, columns in any order, separated by commas, semicolons or tabs; others are ignored.

    Raises:
      UserError: the file cannot be read, lacks a column or has no rows. Problems of single rows go to `problems`.
    """
    separator, table = csv_text.rows(path, csv_text.read(path))
    rows = []
    with csv_text.long_cells():
        _, header = next(table, (0, []))
        names = [cell_values.clean(name).lower() for name in header]
        places = _places(names, path)
        for number, cells in table:
            if not any(map(cell_values.trim, cells)):
                continue
            if len(cells) <= max(places.values()) or any(map(cell_values.trim, cells[len(names) :])):
                text = f"has {len(cells)} cells, the header {len(names)}: put cells that hold a {separator!r} in quotes"
                problems.add(text, row=number)
                continue
            found = {field: _READ[field](cells[place]) for field, place in places.items()}
            if long := [field for field, cell in found.items() if len(cell) > _LONGEST]:
                problems.add(f"{long[0]} has {len(found[long[0]])} characters: look for a missing quote", row=number)
                continue
            rows.append(Row(number, **found))
    if not rows:
        problems.raise_any()
        raise UserError(f"{path}: no rows: write one for each image")
    return _joined_patients(rows)


def _joined_patients(rows: list[Row]) -> list[Row]:
    """The rows with patient 7 for 7.0 where the column has both forms: tables that pandas wrote have the second."""
    patients = {row.patient for row in rows if row.patient}
    wholes = {patient: number for patient in patients if (number := cell_values.whole(patient))}
    # 1.0 beside 1.1 is no number of a patient.
    fractions = any("." in patient and patient not in wholes and _is_number(patient) for patient in patients)
    if fractions or not patients.intersection(wholes.values()):
        return rows
    logger.warning("patient_id has numbers with and without .0: they are taken as the same, 7.0 as 7")
    return [dataclasses.replace(row, patient=wholes.get(row.patient, row.patient)) for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _places(names: list[str], path: pathlib.Path) -> dict[str, int]:
    """The number of the column of each field that the table has."""
    places = {}
    for field, columns in _COLUMNS.items():
        found = [number for number, name in enumerate(names) if name in columns]
        if len(found) > 1:
            raise UserError(f"{path}: column {' or '.join(map(repr, columns))} is there twice: {', '.join(names)}")
        if not found and field in _NEEDED:
            wanted = " or ".join(map(repr, columns))
            meant = [name for name in names if name.replace(" ", "").replace("_", "") in _ALSO[field]]
            step = f": if {meant[0]!r} is it, rename that column to {columns[0]!r}" if meant else ""
            raise UserError(f"{path}: column {wanted} is missing; found: {', '.join(names)}{step}")
        if found:
            places[field] = found[0]
    return places


def find_classes(rows: Sequence[Row], *, multi_label: bool) -> tuple[str, ...]:
    """The labels that occur, sorted; without those of a table that say that there is none, such as nan."""
    found = {label for row in rows for label in _labels(row, multi_label) if not (row.number and is_missing(label))}
    return tuple(sorted(found))


def missing_labels(rows: Sequence[Row], *, multi_label: bool) -> tuple[str, ...]:
    """The texts in the place of a label that say that there is none, sorted."""
    found = {label for row in rows if row.number for label in _labels(row, multi_label) if is_missing(label)}
    return tuple(sorted(found))


def check_classes(classes: Sequence[str], where: str, *, multi_label: bool) -> tuple[str, ...]:
    """`classes` as text, where they can be told apart; one text with commas is all of them.

    Args:
      where: they come from, for messages.

    Raises:
      UserError: there are fewer than two, or two that most likely are one: 1 and 01, True and 1, tb and TB.
    """
    # The command line makes numbers of 0,1 and one text of a,b.
    texts = [part for name in classes for part in (str(name).split(",") if len(classes) == 1 else [str(name)])]
    names = [cell_values.label(text) for text in texts]
    if len(names) < 2:
        raise UserError(f"{where}: {len(names)} classes ({', '.join(names)}), at least 2 are needed")
    if len(set(names)) < len(names):
        name, _ = collections.Counter(names).most_common(1)[0]
        raise UserError(f"{where}: the class {name!r} is there twice")
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


def encode(rows: Sequence[Row], classes: Sequence[str], problems: Problems, *, multi_label: bool) -> np.ndarray:
    """Labels, int64 (n, L): 0/1 for each class of a multi-label task, else the number of the class, (n, 1).

    A row whose label is not one of the classes is a problem, and 0 here.
    """
    index = {name: number for number, name in enumerate(classes)}
    guess = functools.cache(lambda name: nearest(name, classes))
    encoded = np.zeros((len(rows), len(classes) if multi_label else 1), np.int64)
    for position, row in enumerate(rows):
        found = _labels(row, multi_label)
        if not multi_label and not found:
            problems.add("the label is empty", row=row.number, file=row.file)
        elif not multi_label and _BETWEEN_LABELS in row.label:
            text = f"{row.label!r} are several labels: give one, or set data.multi_label=True"
            problems.add(text, row=row.number, file=row.file)
        for name in found:
            if name in index:
                encoded[position, index[name] if multi_label else 0] = 1 if multi_label else index[name]
            elif row.number and is_missing(name):
                text = (
                    f"label {name!r} means a missing label: give a label, or name it in data.classes if it is a class"
                )
                problems.add(text, row=row.number, file=row.file)
            elif multi_label or _BETWEEN_LABELS not in name:
                problems.add(f"label {name!r} is unknown, {guess(name)}", row=row.number, file=row.file)
    return encoded


def check_patients(rows: Sequence[Row], problems: Problems, *, multi_label: bool, allow_mixed: bool) -> None:
    """Adds a problem for each row with an empty patient, for patients whose names look alike, for those in two splits
    and, unless `allow_mixed`, for those with different labels.
    """
    by_patient: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.number and row.patient and is_missing(row.patient):
            problems.add(
                f"patient_id is {row.patient!r}, which means a missing value: give an id", row=row.number, file=row.file
            )
        elif row.number and row.patient and cell_values.is_shortened(row.patient):
            text = f"patient_id is {row.patient!r}, a number that a spreadsheet has cut short, so that several patients"
            problems.add(f"{text} may have it: save the column as text", row=row.number, file=row.file)
        elif row.patient:
            by_patient[row.patient].append(row)
        elif row.patient is not None:
            problems.add("patient_id is empty", row=row.number, file=row.file)
    _check_alike(by_patient, problems)
    for patient, (first, *others) in by_patient.items():
        other = next((row for row in others if row.split != first.split), None)
        if other:
            problems.add(
                f"patient {patient!r} is in {first.split} here and in {other.split}{other.place}: give every patient "
                "to one split",
                row=first.number,
                file=first.file,
            )
    if allow_mixed:
        return
    for patient, (first, *others) in by_patient.items():
        other = next((row for row in others if not same_labels(first, row, multi_label=multi_label)), None)
        if other:
            problems.add(
                f"patient {patient!r} is {first.label!r} here and {other.label!r}{other.place}: correct one, or "
                "set data.allow_mixed_patients=True",
                row=first.number,
                file=first.file,
            )


def _check_alike(by_patient: Mapping[str, Sequence[Row]], problems: Problems) -> None:
    """Adds a problem for each pair of names that may mean one patient, as 007 and 7, or p1 and P1."""
    # A file that is a patient of its own is no name that somebody gave.
    names = [patient for patient, (first, *_) in by_patient.items() if patient != first.file]
    for name, other in cell_values.alike(names, fractions=False):
        row, first = by_patient[other][0], by_patient[name][0]
        problems.add(
            f"patient {other!r} is written nearly like {name!r}{first.place}: write them alike if they are one, and"
            " otherwise differently",
            row=row.number,
            file=row.file,
        )


def check_splits(rows: Sequence[Row], classes: Sequence[str], problems: Problems, *, multi_label: bool) -> None:
    """Adds a problem for each row with another split than train, val or test, and for splits that lack a class.

    Val may be missing. Where rows name no split, the classes are looked for in all of them.
    """
    guess = functools.cache(lambda name: nearest(name, SPLITS))
    by_split: dict[str | None, list[Row]] = {name: [] for name in SPLITS}
    if rows[0].split is None:
        by_split = {None: list(rows)}
    for row in rows:
        if row.split in SPLITS:
            by_split[row.split].append(row)
        elif row.split is not None:
            text = f"split {row.split!r} is unknown, {guess(row.split)}" if row.split else "split is empty"
            problems.add(text, row=row.number, file=row.file)
    if not by_split.get("val", True):
        del by_split["val"]
    for split, members in by_split.items():
        found = {label for row in members for label in _labels(row, multi_label)}
        where = f"split {split!r}" if split else "the data set"
        if not members:
            problems.add(f"{where} has no sample: give train and test, and val where there is one, or no splits at all")
        elif missing := [repr(name) for name in classes if name not in found]:
            problems.add(f"{where} has no sample of class {', '.join(missing)}")


def warn_of_misspelling(rows: Sequence[Row], classes: Sequence[str], *, multi_label: bool) -> None:
    """Warns of each class that was found once and is spelt nearly like another."""
    if len(classes) > _FEW:
        return
    counts = collections.Counter(label for row in rows for label in _labels(row, multi_label))
    for name in classes:
        others = {other.casefold(): other for other in classes if other != name}
        close = difflib.get_close_matches(name.casefold(), others, n=1, cutoff=_ALIKE)
        if counts[name] == 1 and close:
            logger.warning(
                "class %r has one sample and is spelt nearly like %r: correct it, or name the classes in data.classes",
                name,
                others[close[0]],
            )


def same_labels(one: Row, other: Row, *, multi_label: bool) -> bool:
    """Whether two rows name the same labels, in any order."""
    return set(_labels(one, multi_label)) == set(_labels(other, multi_label))


def _labels(row: Row, multi_label: bool) -> list[str]:
    parts = row.label.split(_BETWEEN_LABELS) if multi_label else [row.label]
    return [name for part in parts if (name := cell_values.label(part))]
