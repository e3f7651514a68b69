"""Reads and checks single DICOM tags: numbers, integers, code words and items of sequences."""

import math

import numpy as np
import pydicom

from jaxboost.data.problems import ProblemError, reason


def numbers(dataset: pydicom.Dataset, name: str) -> tuple[float, ...]:
    """Returns the finite numbers of a tag; () if it is absent or empty.

    Raises:
      ProblemError: it holds something else.
    """
    # pydicom converts a value on access, and may then raise any error.
    try:
        value = dataset.get(name)
        if isinstance(value, bytes):
            # Its value representation does not give its type.
            value = np.frombuffer(value, "<u2" if dataset.original_encoding[1] is not False else ">u2")
        values = value if isinstance(value, list | tuple | np.ndarray | pydicom.multival.MultiValue) else [value]
        found = tuple(float(entry) for entry in values if entry is not None and str(entry).strip(" \0") != "")
    except Exception as error:
        raise ProblemError(f"has a {name} that is not a number ({reason(error)}): correct or delete it") from error
    if wrong := [entry for entry in found if not math.isfinite(entry)]:
        raise ProblemError(f"has {name} {wrong[0]:g}: correct or delete it")
    return found


def whole(dataset: pydicom.Dataset, name: str) -> int | None:
    """Returns the integer of a tag; None if it is absent or empty.

    Raises:
      ProblemError: it holds something else.
    """
    found = numbers(dataset, name)
    if len(found) > 1 or (found and not found[0].is_integer()):
        raise ProblemError(f"has {name} {found}, not one whole number: correct it")
    return int(found[0]) if found else None


def word(dataset: pydicom.Dataset, name: str) -> str:
    """Returns the code word of a tag in capital letters; "" if it is absent or empty."""
    return str(dataset.get(name) or "").strip(" \0").upper()


def first_item(dataset: pydicom.Dataset, name: str) -> pydicom.Dataset | None:
    """Returns the first item of a sequence; None if it is absent or empty.

    Raises:
      ProblemError: it is not a sequence.
    """
    value = dataset.get(name)
    if not value:
        return None
    if not isinstance(value, pydicom.Sequence):
        raise ProblemError(f"has a {name} that is not a sequence: correct or delete it")
    return value[0]


def fix(statement: str) -> str:
    """Returns the shell command that fixes a file with one statement about its dataset `d`, for messages."""
    start = "import pydicom; d = pydicom.dcmread('FILE', force=True)"
    return f"`python -c \"{start}; {statement}; d.save_as('FILE')\"`"
