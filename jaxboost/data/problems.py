"""Problems of a user's folder: collected while it is read, and reported together."""

import logging
import pathlib

from jaxboost.errors import UserError

_LISTED = 12
_LONGEST_REASON = 160

logger = logging.getLogger(__name__)


class ProblemError(Exception):
    """What is wrong with one file, without its name. It is collected in `Problems` and never shown alone."""


class Problems:
    """The problems found so far in `folder`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._found: list[tuple[int, str]] = []

    def add(self, text: str, *, row: int = 0, file: str = "") -> None:
        """Keeps a problem of `file`, which `row` of labels.csv names; 0 and "" where it belongs to no single one."""
        where = ", ".join(part for part in (f"row {row}" if row else "", file) if part)
        self._found.append((row, f"{where}: {text}" if where else text))

    def raise_any(self) -> None:
        """Raises one UserError with every problem, in the order of the rows.

        Where there are more than a dozen, the message has the first of them, and all are in the log, one a line.
        """
        if not self._found:
            return
        texts = [text for _, text in sorted(self._found, key=lambda problem: problem[0])]
        more = ""
        if len(texts) > _LISTED:
            for text in texts:
                logger.error("%s", text)
            more = f"; and {len(texts) - _LISTED} more, all listed in the lines before"
        count = "1 problem" if len(texts) == 1 else f"{len(texts)} problems"
        rows = " (rows of labels.csv)" if any(row for row, _ in self._found) else ""
        raise UserError(f"{self._folder}: {count} to fix{rows}: {'; '.join(texts[:_LISTED])}{more}")


def reason(error: Exception) -> str:
    """The message of another package's exception as a part of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
