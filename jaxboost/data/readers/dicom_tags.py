"""Values of single DICOM tags, checked: whole numbers, numbers, items of sequences, and the command that sets a tag."""

import math

import numpy as np
import pydicom

from jaxboost.data.problems import ProblemError, reason


def numbers(dataset: pydicom.Dataset, name: str) -> tuple[float, ...]:
    """The finite numbers of a tag, () where it is absent or empty.

    Raises:
      ProblemError: it holds something else.
    """
    # A value is converted when it is asked for, and a wrong one raises nearly anything then.
    try:
        value = dataset.get(name)
        if isinstance(value, bytes):
            # Written with a value representation that does not give its type.
            value = np.frombuffer(value, "<u2" if dataset.original_encoding[1] is not False else ">u2")
        values = value if isinstance(value, list | tuple | np.ndarray | pydicom.multival.MultiValue) else [value]
        found = tuple(float(entry) for entry in values if entry is not None and str(entry).strip(" \0") != "")
    except Exception as error:
        raise ProblemError(f"has a {name} that is not a number ({reason(error)}): correct or delete it") from error
    if wrong := [entry for entry in found if not math.isfinite(entry)]:
        raise ProblemError(f"has {name} {wrong[0]:g}: correct or delete it")
    return found


def whole(dataset: pydicom.Dataset, name: str) -> int | None:
    """The whole number of a tag, None where it is absent or empty.

    Raises:
      ProblemError: it holds something else.
    """
    found = numbers(dataset, name)
    if len(found) > 1 or (found and not found[0].is_integer()):
        raise ProblemError(f"has {name} {found}, not one whole number: correct it")
    return int(found[0]) if found else None


def word(dataset: pydicom.Dataset, name: str) -> str:
    """A code word in capital letters, "" where it is absent or empty."""
    return str(dataset.get(name) or "").strip(" \0").upper()


def first_item(dataset: pydicom.Dataset, name: str) -> pydicom.Dataset | None:
    """The first item of a sequence, None where it is absent or empty.

    Raises:
      ProblemError: it is no sequence.
    """
    value = dataset.get(name)
    if not value:
        return None
    if not isinstance(value, pydicom.Sequence):
        raise ProblemError(f"has a {name} that is not a sequence: correct or delete it")
    return value[0]


def fix(statement: str) -> str:
    """The command that changes a file with one statement about its dataset `d`; FILE stands for the file's name."""
    start = "import pydicom; d = pydicom.dcmread('FILE', force=True)"
    return f"`python -c \"{start}; {statement}; d.save_as('FILE')\"`"
