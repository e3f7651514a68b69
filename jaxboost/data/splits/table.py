"""The table with the split or fold of every sample: a run writes it once, and checks it whenever it reads it again."""

import collections
import csv
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from jaxboost.data.dataset import DatasetInfo, Split
from jaxboost.data.readers import csv_text
from jaxboost.data.splits import patients
from jaxboost.data.walk import printable, some
from jaxboost.errors import UserError
from jaxboost.io import write_text
from jaxboost.tasks import TASKS

T = TypeVar("T")


def write(path: pathlib.Path, column: str, samples: Split, info: DatasetInfo, values: np.ndarray, *, fix: str) -> None:
    """Writes the columns patient_id, file, label and `column`, with a row for each sample.

    Args:
      path: the CSV file; its folder is made if it is missing.
      column: "split" or "fold".
      samples: samples with names.
      info: the description of the labels.
      values: split or fold of each sample, (n,).
      fix: what the user can do about a problem, for the message.

    Raises:
      UserError: two samples have one name, or the file cannot be written.
    """
    names = samples.names.tolist()
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise UserError(
            f"{path}: the {column}s cannot be written: several samples are named {repeated[0]!r}: rename all but one"
        )
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_header(column))
    labels = (TASKS[info.task].text(labels, info.classes) for labels in samples.labels)
    table.writerows(zip(samples.patients.tolist(), names, labels, values.tolist(), strict=True))
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise UserError(f"{path}: the {column}s cannot be written ({error.strerror}): {fix}") from error


def read(
    path: pathlib.Path, column: str, samples: Split, *, parse: Callable[[str], T | None], allowed: str, fix: str
) -> list[T]:
    """Reads the split or fold of every sample, in the order of `samples`, from a file that `write` made.

    A spreadsheet may have saved it again, with another separator. The column of labels is for people only: it is not
    read.

    Args:
      path: the CSV file.
      column: "split" or "fold".
      samples: samples with names.
      parse: converts a cell of `column`; None for an invalid one.
      allowed: the valid values in words, for the message.
      fix: what the user can do about a problem, for the message.

    Raises:
      UserError: the file cannot be read, does not have exactly these samples with their patients, has an invalid
        value, or has a patient in two splits or folds.
    """
    expected = dict(zip(samples.names.tolist(), samples.patients.tolist(), strict=True))
    values: dict[str, T] = {}
    row_of: dict[str, int] = {}
    for row, cells in _rows(path, column, fix):
        problem = ""
        patient, name, _, cell = cells if len(cells) == len(_header(column)) else ("", "", "", "")
        value = parse(cell)
        if len(cells) != len(_header(column)):
            problem = f"has {len(cells)} cells"
        elif name not in expected:
            problem = f"{name!r} is not in the data set"
        elif name in values:
            problem = f"{name!r} is listed twice"
        elif patient != expected[name]:
            problem = f"{name!r} is of patient {expected[name]!r} in the data set, not {patient!r}"
        elif value is None:
            problem = f"{column} {cell!r} is not one of {allowed}"
        if problem or value is None:
            raise UserError(f"{path} row {row}: {problem}: {fix}")
        values[name], row_of[name] = value, row
    names = list(values)
    for pair in patients.in_two((expected[name] for name in names), values.values()):
        first, other = (names[index] for index in pair)
        raise UserError(
            f"{path} row {row_of[other]}: patient {expected[other]!r} is in {column} {values[other]} here and in"
            f" {column} {values[first]} in row {row_of[first]}: {fix}"
        )
    if missing := [name for name in expected if name not in values]:
        raise UserError(f"{path}: no row for {some(missing)}: {fix}")
    return [values[name] for name in expected]


def _header(column: str) -> tuple[str, ...]:
    return ("patient_id", "file", "label", column)


def _rows(path: pathlib.Path, column: str, fix: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each row below the header, which is checked. Empty rows are skipped."""
    try:
        # As they are written: a name may begin with a blank.
        _, table = csv_text.rows(path, csv_text.read(path), trimmed=False)
        with csv_text.long_cells():
            rows = [(number, cells) for number, cells in table if any(cells)]
    except UserError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: cannot be read as a table of {column}s ({text}): {fix}") from error
    header = rows[0][1] if rows else []
    if tuple(header) != _header(column):
        found = printable(", ".join(header)[:200])
        raise UserError(f"{path}: its columns are {found}, not {', '.join(_header(column))}: {fix}")
    return iter(rows[1:])
