"""labels.csv of a user's folder: its rows, its classes, and what is wrong with them."""

import collections
import csv
import dataclasses
import difflib
import io
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxboost.data.faults import Faults
from jaxboost.data.source import SPLITS
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
_BETWEEN_LABELS = "|"
_ALIKE = 0.8  # difflib's ratio of two spellings of one class

_log = logging.getLogger(__name__)


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


def read_rows(path: pathlib.Path, faults: Faults) -> list[Row]:
    """The rows of the table, columns in any order, separated by commas or semicolons; others are ignored.

    Raises:
        UserError: the file cannot be read, lacks a column or has no rows. Faults of single rows go to `faults`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
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
    places = _places(names, path)
    rows = []
    for number, cells in enumerate(table[1:], 2):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) <= max(places.values()) or any(cells[len(names) :]):
            text = f"has {len(cells)} cells, the header {len(names)}: put cells that hold a {separator!r} in quotes"
            faults.add(text, row=number)
            continue
        rows.append(Row(number, **{field: cells[place] for field, place in places.items()}))
    if not rows:
        faults.raise_any()
        raise UserError(f"{path}: no rows: write one for each image")
    return rows


def _places(names: list[str], path: pathlib.Path) -> dict[str, int]:
    """The number of the column of each field that the table has."""
    places = {}
    for field, columns in _COLUMNS.items():
        found = [number for number, name in enumerate(names) if name in columns]
        if len(found) > 1:
            raise UserError(f"{path}: column {' or '.join(map(repr, columns))} is there twice: {', '.join(names)}")
        if not found and field in _NEEDED:
            wanted = " or ".join(map(repr, columns))
            raise UserError(f"{path}: column {wanted} is missing; found: {', '.join(names)}")
        if found:
            places[field] = found[0]
    return places


def find_classes(rows: Sequence[Row], *, multi_label: bool) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    return tuple(sorted({label for row in rows for label in _labels(row, multi_label)}))


def check_classes(classes: Sequence[str], where: str, *, multi_label: bool) -> tuple[str, ...]:
    """`classes` as text, where they can be told apart; one text with commas is all of them.

    Args:
        where: they come from, for messages.

    Raises:
        UserError: there are fewer than two, or two that differ in case only.
    """
    # The command line makes numbers of 0,1 and one text of a,b.
    names = [part.strip() for name in classes for part in (str(name).split(",") if len(classes) == 1 else [str(name)])]
    if len(names) < 2:
        raise UserError(f"{where}: {len(names)} classes ({', '.join(names)}), at least 2 are needed")
    folded: dict[str, str] = {}
    for name in names:
        if name.casefold() in folded:
            other = folded[name.casefold()]
            raise UserError(f"{where}: the classes {other!r} and {name!r} are the same but for case: write them alike")
        folded[name.casefold()] = name
    return tuple(names)


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
    """Adds a fault for each row with an empty patient, for patients in two splits and, unless `allow_mixed`, for
    patients with different labels.
    """
    by_patient: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.patient:
            by_patient[row.patient].append(row)
        elif row.patient is not None:
            faults.add("patient_id is empty", row=row.number, file=row.file)
    for patient, (first, *others) in by_patient.items():
        other = next((row for row in others if row.split != first.split), None)
        if other:
            faults.add(
                f"patient {patient!r} is in {first.split} here and in {other.split} in row {other.number}: give every "
                "patient to one split",
                row=first.number,
                file=first.file,
            )
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


def check_splits(rows: Sequence[Row], classes: Sequence[str], faults: Faults, *, multi_label: bool) -> None:
    """Adds a fault for each row with another split than train, val or test, and for splits that lack a class.

    Val may be missing. Where rows name no split, the classes are looked for in all of them.
    """
    by_split: dict[str | None, list[Row]] = {name: [] for name in SPLITS}
    if rows[0].split is None:
        by_split = {None: list(rows)}
    for row in rows:
        if row.split in SPLITS:
            by_split[row.split].append(row)
        elif row.split is not None:
            text = f"split {row.split!r} is unknown, {nearest(row.split, SPLITS)}" if row.split else "split is empty"
            faults.add(text, row=row.number, file=row.file)
    if not by_split.get("val", True):
        del by_split["val"]
    for split, members in by_split.items():
        found = {label for row in members for label in _labels(row, multi_label)}
        where = f"split {split!r}" if split else "the data set"
        if not members:
            faults.add(f"{where} has no sample: give train and test, and val where there is one, or no splits at all")
        elif missing := [repr(name) for name in classes if name not in found]:
            faults.add(f"{where} has no sample of class {', '.join(missing)}")


def warn_of_misspelling(rows: Sequence[Row], classes: Sequence[str], *, multi_label: bool) -> None:
    """Warns of each class that was found once and is spelt nearly like another."""
    counts = collections.Counter(label for row in rows for label in _labels(row, multi_label))
    for name in classes:
        others = {other.casefold(): other for other in classes if other != name}
        close = difflib.get_close_matches(name.casefold(), others, n=1, cutoff=_ALIKE)
        if counts[name] == 1 and close:
            _log.warning(
                "class %r has one sample and is spelt nearly like %r: correct it, or name the classes in data.classes",
                name,
                others[close[0]],
            )


def same_labels(one: Row, other: Row, *, multi_label: bool) -> bool:
    """Whether two rows name the same labels, in any order."""
    return set(_labels(one, multi_label)) == set(_labels(other, multi_label))


def _labels(row: Row, multi_label: bool) -> list[str]:
    parts = row.label.split(_BETWEEN_LABELS) if multi_label else [row.label]
    return [part.strip() for part in parts if part.strip()]
