"""Faults of a user's folder: collected while it is read, and reported together."""

import pathlib

from jaxboost.errors import UserError

_LISTED = 12
_LONGEST_REASON = 160


class FaultError(Exception):
    """What is wrong with one file, without its name. It is collected in `Faults` and never shown alone."""


class Faults:
    """The faults found so far in `folder`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._found: list[tuple[int, str]] = []

    def add(self, text: str, *, row: int = 0, file: str = "") -> None:
        """Keeps a fault of `file`, which `row` of the table names; 0 and "" where it belongs to no single row."""
        where = ", ".join(part for part in (f"row {row}" if row else "", file) if part)
        self._found.append((row, f"{where}: {text}" if where else text))

    def raise_any(self) -> None:
        """Raises one UserError with every fault, in the order of the rows; only the first dozen are spelt out."""
        if not self._found:
            return
        texts = [text for _, text in sorted(self._found, key=lambda fault: fault[0])]
        more = f"; and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
        count = "1 fault" if len(texts) == 1 else f"{len(texts)} faults"
        raise UserError(f"{self._folder}: {count} to mend (rows of labels.csv): {'; '.join(texts[:_LISTED])}{more}")


def reason(error: Exception) -> str:
    """The message of another package's exception as a part of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
