"""labels.csv of a folder of radiographs: its rows, its classes, and what is wrong with them."""

import collections
import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxboost.data.faults import Faults
from jaxboost.errors import UserError, nearest

FILE = "labels.csv"
COLUMNS = ("patient_id", "file", "label")
_BETWEEN_LABELS = "|"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: its number as a spreadsheet shows it (the header is row 1), and its cells without blanks around them."""

    number: int
    patient: str
    file: str
    label: str


def read_rows(path: pathlib.Path, faults: Faults) -> list[Row]:
    """The rows of the table, columns in any order, separated by commas or semicolons; others are ignored.

    Raises:
        UserError: the file cannot be read, lacks a column or has no rows. Faults of single rows go to `faults`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: not found: write it, a table with the columns {', '.join(COLUMNS)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text: save it as CSV in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from error
    header = text.partition("\n")[0]
    separator = ";" if header.count(";") > header.count(",") else ","
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file: {error}") from error
    names = [name.strip().lower() for name in table[0]] if table else []
    for column in COLUMNS:
        if names.count(column) != 1:
            fault = "is missing" if column not in names else "is there twice"
            raise UserError(f"{path}: column {column!r} {fault}; found: {', '.join(names)}")
    places = [names.index(column) for column in COLUMNS]
    rows = []
    for number, cells in enumerate(table[1:], 2):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) <= max(places) or any(cells[len(names) :]):
            text = f"has {len(cells)} cells, the header {len(names)}: put cells that hold a {separator!r} in quotes"
            faults.add(text, row=number)
            continue
        rows.append(Row(number, *(cells[place] for place in places)))
    if not rows:
        faults.raise_any()
        raise UserError(f"{path}: no rows: write one for each image")
    return rows


def find_classes(rows: Sequence[Row], *, multi_label: bool) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    return tuple(sorted({label for row in rows for label in _labels(row, multi_label)}))


def check_classes(classes: Sequence[str], where: str, *, multi_label: bool) -> tuple[str, ...]:
    """`classes` as they are, where they can be told apart.

    Args:
        where: they come from, for messages.

    Raises:
        UserError: there are fewer than two, or two that differ in case only.
    """
    if len(classes) < 2:
        raise UserError(f"{where}: {len(classes)} classes ({', '.join(classes)}), at least 2 are needed")
    folded: dict[str, str] = {}
    for name in classes:
        other = folded.setdefault(name.casefold(), name)
        if other is not name:
            raise UserError(f"{where}: the classes {other!r} and {name!r} are the same but for case: write them alike")
    return tuple(classes)


def encode(rows: Sequence[Row], classes: Sequence[str], faults: Faults, *, multi_label: bool) -> np.ndarray:
    """Labels, int64 (n, L): 0/1 for each class of a multi-label task, else the number of the class, (n, 1).

    A row whose label is not one of the classes is a fault, and 0 here.
    """
    index = {name: number for number, name in enumerate(classes)}
    encoded = np.zeros((len(rows), len(classes) if multi_label else 1), np.int64)
    for position, row in enumerate(rows):
        found = _labels(row, multi_label)
        if not multi_label and not found:
            faults.add("the label is empty", row=row.number, file=row.file)
        elif not multi_label and _BETWEEN_LABELS in row.label:
            text = f"{row.label!r} are several labels: give one, or set data.multi_label=True"
            faults.add(text, row=row.number, file=row.file)
        for name in found:
            if name in index:
                encoded[position, index[name] if multi_label else 0] = 1 if multi_label else index[name]
            elif multi_label or _BETWEEN_LABELS not in name:
                faults.add(f"label {name!r} is unknown, {nearest(name, classes)}", row=row.number, file=row.file)
    return encoded


def check_patients(rows: Sequence[Row], faults: Faults, *, multi_label: bool, allow_mixed: bool) -> None:
    """Adds a fault for each row without a patient and, unless `allow_mixed`, for patients with different labels."""
    by_patient: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.patient:
            by_patient[row.patient].append(row)
        else:
            faults.add("patient_id is empty", row=row.number, file=row.file)
    if allow_mixed:
        return
    for patient, (first, *others) in by_patient.items():
        other = next((row for row in others if not same_labels(first, row, multi_label=multi_label)), None)
        if other:
            faults.add(
                f"patient {patient!r} is {first.label!r} here and {other.label!r} in row {other.number}: correct one, "
                "or set data.allow_mixed_patients=True",
                row=first.number,
                file=first.file,
            )


def same_labels(one: Row, other: Row, *, multi_label: bool) -> bool:
    """Whether two rows name the same labels, in any order."""
    return set(_labels(one, multi_label)) == set(_labels(other, multi_label))


def _labels(row: Row, multi_label: bool) -> list[str]:
    parts = row.label.split(_BETWEEN_LABELS) if multi_label else [row.label]
    return [part.strip() for part in parts if part.strip()]
