"""The table with the split or fold of every sample: a run writes it once, and checks it whenever it reads it again."""

import csv
import io
import pathlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from jaxboost.data.dataset import DatasetInfo, Split
from jaxboost.data.splits import patients
from jaxboost.data.walk import printable, unreadable
from jaxboost.errors import UserError
from jaxboost.io import write_text

T = TypeVar("T")
_MAX_BYTES = 1 << 30


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
      UserError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_header(column))
    labels = label_texts(samples.labels, info)
    table.writerows(zip(samples.patients.tolist(), samples.names.tolist(), labels, values.tolist(), strict=True))
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise UserError(f"{path}: the {column}s cannot be written ({error.strerror}): {fix}") from error


def read(
    path: pathlib.Path, column: str, samples: Split, *, parse: Callable[[str], T | None], allowed: str, fix: str
) -> list[T]:
    """Reads the split or fold of every sample, in the order of `samples`, from a file that `write` made.

    The column of labels is for people only: it is not read.

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
    for row, cells in enumerate(_rows(path, column, fix), 2):
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
        values[name] = value
    names = list(values)
    for first, other in patients.in_two((expected[name] for name in names), values.values()):
        raise UserError(
            f"{path} row {other + 2}: patient {expected[names[other]]!r} is in {column} {values[names[other]]} here and"
            f" in {column} {values[names[first]]} in row {first + 2}: {fix}"
        )
    if missing := [name for name in expected if name not in values]:
        raise UserError(f"{path}: no row for {missing[0]!r} and {len(missing) - 1} others: {fix}")
    return [values[name] for name in expected]


def label_texts(labels: np.ndarray, info: DatasetInfo) -> list[str]:
    """The class names of each sample's label (n, L), several separated by "|"."""
    if info.labels_per_sample == 1 and labels.shape[1] == 1 and len(info.classes) > 1:
        return [info.classes[label] for label in labels[:, 0]]
    return ["|".join(name for name, has in zip(info.classes, row, strict=True) if has) for row in labels]


def _header(column: str) -> tuple[str, ...]:
    return ("patient_id", "file", "label", column)


def _rows(path: pathlib.Path, column: str, fix: str) -> list[list[str]]:
    """The rows below the header, which is checked."""
    # Checked first, because opening a named pipe would block.
    text = unreadable(path) or (path.stat().st_size > _MAX_BYTES and f"it has more than {_MAX_BYTES >> 20} MiB")
    if text:
        raise UserError(f"{path}: cannot be read as a table of {column}s ({text}): {fix}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table of {column}s ({error}): {fix}") from error
    if tuple(header) != _header(column):
        found = printable(", ".join(header)[:200])
        raise UserError(f"{path}: its columns are {found}, not {', '.join(_header(column))}: {fix}")
    return rows
