"""Clinical columns of a table (`data.columns`): which are wanted, where they are, and what their cells may hold.

Whether a column is of numbers or of categories is the same in every split and fold: `check` refuses a table with
numbers and texts in a column, unless `:category` is written, so that the cells of any split tell the kind. Mean,
standard deviation and categories are those of the training split, see `jaxboost.data.columns`.
"""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.sources.folder import cell_values
from jaxboost.errors import UserError, nearest

# Field of an entry -> accepted names of its column.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "file": ("file", "path"),
    "label": ("label",),
    "patient": ("patient_id", "patient"),
    "split": ("split",),
}
# After a column's name: its numbers are codes of categories.
CATEGORY = ":category"
LONGEST = 200  # characters of a cell
# Who wants a column, behind its name in messages.
OF_CONFIG, OF_MODEL = "of data.columns", "that the model reads"
_FIELD = "config field data.columns"
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A column that `data.columns` names; `categorical`: by `:category`."""

    name: str
    categorical: bool = False


class Row(Protocol):
    """A row of a table, with its cells of the wanted columns; an `Entry`."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Clean cells, one for each wanted column."""
        ...

    def report(self, problems: Problems, text: str) -> None:
        """Adds a problem with this row."""
        ...


def parse(columns: Sequence[str]) -> tuple[Wanted, ...]:
    """The columns that `data.columns` names; one text with commas names several.

    Raises:
      UserError: a name is empty, is there twice, has a comma, or is that of the label, the file, the patient or the
        split.
    """
    texts = [part for name in columns for part in (str(name).split(",") if len(columns) == 1 else [str(name)])]
    found = []
    for text in map(cell_values.clean, texts):
        categorical = text.lower().endswith(CATEGORY)
        found.append(Wanted(cell_values.clean(text[: -len(CATEGORY)]) if categorical else text, categorical))
    names = [column.name.lower() for column in found]
    for column, name in zip(found, names, strict=True):
        if not name:
            raise UserError(f"{_FIELD}: {tuple(columns)} has an empty name: give names of columns, such as age,sex")
        if "," in name:
            raise UserError(f"{_FIELD}: {column.name!r} has a comma, which separates names: rename it in the table")
        if names.count(name) > 1:
            raise UserError(f"{_FIELD}: {column.name!r} is there twice: name it once")
        for field, reserved in FIELDS.items():
            if name in reserved:
                raise UserError(f"{_FIELD}: {column.name!r} is the {field} of a sample, not known of it: leave it out")
    return tuple(found)


def find(names: Sequence[str], wanted: Sequence[Wanted], path: pathlib.Path, whose: str = OF_CONFIG) -> list[int]:
    """The number of each wanted column.

    Args:
      names: the names in the header, clean and in lower case.
      wanted: the columns.
      path: the table, for messages.
      whose: OF_CONFIG or OF_MODEL, for messages.

    Raises:
      UserError: a column is missing or there twice.
    """
    for column in wanted:
        if (count := names.count(column.name.lower())) > 1:
            raise UserError(f"{path}: column {column.name!r} {whose} appears twice: {', '.join(names)}")
        if not count:
            own = {name for reserved in FIELDS.values() for name in reserved}
            others = [name for name in names if name and name not in own]
            step = f", {nearest(column.name, others)}" if others else ": the table has no further column"
            # One text with commas names several columns.
            parts = {part.strip(): name for name in others if "," in name for part in name.split(",")}
            if whole := parts.get(column.name.lower()):
                step = f": if {whole!r} is meant, rename it in the table, as a comma separates names"
            raise UserError(f"{path}: column {column.name!r} {whose} is missing{step}")
    return [names.index(column.name.lower()) for column in wanted]


def number(cell: str) -> float:
    """The number in a cell that is not missing. Raises ProblemError if there is none, or one that is not finite."""
    if _NUMBER.fullmatch(cell) and math.isfinite(value := float(cell)):
        return value
    if _DECIMAL_COMMA.fullmatch(cell):
        raise ProblemError(f"{cell!r} has a comma: write a decimal point, as in {cell.replace(',', '.')}")
    if _INFINITE.fullmatch(cell) or _NUMBER.fullmatch(cell):
        raise ProblemError(f"{cell!r} is not finite: correct it, or leave the cell empty if the value is missing")
    raise ProblemError(f"{cell!r} is no number")


def is_number(cell: str) -> bool:
    """Whether a cell that is not missing holds a number."""
    try:
        number(cell)
    except ProblemError:
        return False
    return True


def differing(one: Sequence[str], other: Sequence[str]) -> tuple[str, str] | None:
    """The first pair of cells that contradict each other; None if none do. A missing value contradicts nothing."""
    for pair in zip(one, other, strict=True):
        if any(map(cell_values.is_missing, pair)):
            continue
        if all(map(is_number, pair)):
            differ = number(pair[0]) != number(pair[1])
        else:
            differ = cell_values.label(pair[0]) != cell_values.label(pair[1])
        if differ:
            return pair
    return None


def check(rows: Sequence[Row], wanted: Sequence[Wanted], problems: Problems) -> None:
    """Adds the problems of the cells: texts among numbers, and two spellings of one category."""
    for position, column in enumerate(wanted):
        known = [(row, cell) for row in rows if not cell_values.is_missing(cell := row.cells[position])]
        if column.categorical or not _check_numbers(known, column.name, problems):
            _check_categories([cell for _, cell in known], column.name, problems)


def _check_numbers(known: Sequence[tuple[Row, str]], name: str, problems: Problems) -> bool:
    """Adds what is no number in a column of numbers; returns whether it is one, or is neither of both kinds."""
    numbers, others = [], []
    for row, cell in known:
        try:
            number(cell)
            numbers.append(cell)
        except ProblemError as error:
            others.append((row, cell, str(error)))
    numeric = [each for each in others if _DECIMAL_COMMA.fullmatch(each[1]) or _INFINITE.fullmatch(each[1])]
    if not numbers and not numeric:
        return False
    if len(numbers) + len(numeric) < len(others) - len(numeric):
        first, other = (numbers or [numeric[0][1]])[0], next(each[1] for each in others if each not in numeric)
        problems.add(
            f"column {name!r} has texts and numbers, such as {other!r} and {first!r}: if they are categories, write"
            f" {name}{CATEGORY} in data.columns"
        )
        return True
    for row, _, text in others:
        step = ""
        if text.endswith("is no number"):
            step = (
                ", unlike most of the column: correct it, or leave the cell empty if the value is missing; if the"
                f" column has categories, write {name}{CATEGORY} in data.columns"
            )
        row.report(problems, f"column {name!r}: {text}{step}")
    return True


def _check_categories(cells: Sequence[str], name: str, problems: Problems) -> None:
    counts = collections.Counter(map(cell_values.label, cells))
    if pairs := cell_values.alike(counts):
        first, other = pairs[0]
        problems.add(f"column {name!r}: {first!r} and {other!r} differ only in their form: write them alike")
    elif pair := cell_values.two_words_for_truth(counts):
        problems.add(f"column {name!r}: {pair[0]!r} and {pair[1]!r} mean the same: write them alike")
