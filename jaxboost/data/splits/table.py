"""A table that says where every sample is, in which fold or which split: written by a run, checked when read again."""

import csv
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from jaxboost.data.dataset import DatasetInfo
from jaxboost.data.walk import printable, unreadable
from jaxboost.errors import UserError
from jaxboost.io import write_text

T = TypeVar("T")
_MAX_BYTES = 1 << 30


def write(
    path: pathlib.Path, column: str, *, names: np.ndarray, groups: np.ndarray, labels: Sequence[str], places: np.ndarray
) -> None:
    """Writes the columns patient_id, file, label, `column` with a row for each sample, under a temporary name first.

    Raises:
      OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_header(column))
    table.writerows(zip(groups.tolist(), names.tolist(), labels, places.tolist(), strict=True))
    write_text(path, text.getvalue())


def read(
    path: pathlib.Path,
    column: str,
    *,
    names: np.ndarray,
    groups: np.ndarray,
    parse: Callable[[str], T | None],
    allowed: str,
    fix: str,
) -> list[T]:
    """The place of every sample, in the order of `names`, from a table that `write` made; its labels are for people.

    Args:
      parse: a cell of `column` -> the place, None where there is no such place.
      allowed: the places in words, for messages.
      fix: what to do about a problem, for messages.

    Raises:
      UserError: the table cannot be read, does not have exactly the samples `names` with their patients `groups`,
        names a place that is not `allowed`, or has a patient in two.
    """
    # Opening a pipe would wait for ever.
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
    patients = dict(zip(names.tolist(), groups.tolist(), strict=True))
    place_of: dict[str, T] = {}
    first: dict[str, tuple[T, int]] = {}
    for row, cells in enumerate(rows, 2):
        problem = ""
        patient, name, _, cell = cells if len(cells) == len(header) else ("", "", "", "")
        place = parse(cell)
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells"
        elif name not in patients:
            problem = f"{name!r} is not in the data set"
        elif name in place_of:
            problem = f"{name!r} is listed twice"
        elif patient != patients[name]:
            problem = f"{name!r} is of patient {patients[name]!r} in the data set, not {patient!r}"
        elif place is None:
            problem = f"{column} {cell!r} is not one of {allowed}"
        elif first.setdefault(patient, (place, row))[0] != place:
            other, where = first[patient]
            problem = f"patient {patient!r} is in {column} {place} here and in {column} {other} in row {where}"
        if problem:
            raise UserError(f"{path} row {row}: {problem}: {fix}")
        place_of[name] = place
    if missing := [name for name in patients if name not in place_of]:
        raise UserError(f"{path}: no row for {missing[0]!r} and {len(missing) - 1} others: {fix}")
    return [place_of[name] for name in patients]


def texts(labels: np.ndarray, info: DatasetInfo) -> list[str]:
    """Every sample's label in words; labels (n, L)."""
    if info.labels_per_sample == 1 and labels.shape[1] == 1 and len(info.classes) > 1:
        return [info.classes[label] for label in labels[:, 0]]
    return ["|".join(name for name, has in zip(info.classes, row, strict=True) if has) for row in labels]


def _header(column: str) -> tuple[str, ...]:
    return ("patient_id", "file", "label", column)
