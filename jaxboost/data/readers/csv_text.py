"""Reads CSV files that people and their programs write, and refuses files that could be read in two ways."""

import contextlib
import csv
import io
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from jaxboost.data.walk import not_fetched, unreadable
from jaxboost.errors import UserError

_SEPARATORS = (",", ";", "\t")
_FIRST_LINE = re.compile(r"[^\r\n]*")
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?[ \t]*\r?\n', re.IGNORECASE)
_COMMENT = re.compile(r"#[^\r\n]*(?:\r\n|\r|\n)")
# A row has about 100 bytes, so a table of a million images has 100 MB.
_MAX_BYTES = 1 << 30
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ARCHIVES = ((b"PK\x03\x04", "an Excel or a zip file"), (b"\xd0\xcf\x11\xe0", "an Excel file"), (b"\x1f\x8b", "a gzip"))


def read(path: pathlib.Path) -> str:
    """Returns the text of the file.

    Raises:
      UserError: the file cannot be read, or is not UTF-8 text; the message says how to save it.
    """
    if reason := "" if os.path.isdir(path) else unreadable(path):
        raise UserError(f"{path}: {reason}")
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise UserError(f"{path}: has {size} bytes, too many for a table: leave other columns out")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from error
    for mark, kind in _ARCHIVES:
        if content.startswith(mark):
            raise UserError(f"{path}: is {kind}, not CSV: open it and save it as CSV in UTF-8")
    zeros = content[:1000].count(0)
    if content.startswith(_UTF16) or zeros > len(content[:1000]) // 4:
        raise UserError(
            f"{path}: not UTF-8 text: save it as CSV in UTF-8; it looks like UTF-16, as Excel's 'Unicode text' is"
        )
    if (position := content.find(0)) >= 0:
        raise UserError(f"{path}: has a NUL byte at byte {position + 1}: the file is damaged, write it again")
    if reason := not_fetched(path):
        raise UserError(f"{path}: {reason}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: not UTF-8 text: save it as CSV in UTF-8 (line {line})") from None


def rows(path: pathlib.Path, text: str, *, trimmed: bool = True) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """Splits the text of a file into rows and cells.

    Lines before the header that begin with # are skipped.

    Args:
      path: the file, for messages.
      text: its text.
      trimmed: whether blanks at the start of a cell are dropped.

    Returns:
      The separator (a comma, a semicolon or a tab), and an iterator over the number and the cells of each row. The
      first row is the header. Rows are numbered as in a spreadsheet, where a cell of several lines is in one row.

    Raises:
      UserError: during the iteration, if a quote is evidently not closed.
    """
    separator, before = "", 0
    if match := _SEPARATOR_LINE.match(text):
        separator, text, before = match[1], text[match.end() :], 1
    while match := _COMMENT.match(text):
        text, before = text[match.end() :], before + 1
    header = _FIRST_LINE.match(text)[0]
    separator = separator or max(_SEPARATORS, key=header.count)
    return separator, _cells(path, text, separator, before, trimmed)


def _cells(
    path: pathlib.Path, text: str, separator: str, before: int, trimmed: bool
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=trimmed, strict=True)
    width = 0
    for number in itertools.count(before + 1):
        line = before + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}: not a CSV file: {error}, in the row that begins in line {line}: look for a quote that is not"
                ' closed, and write "" for a quote within a cell'
            ) from error
        if cells is None:
            return
        width = width or len(cells)
        last = before + reader.line_num
        if last > line and _swallows(cells, separator, width):
            raise UserError(
                f"{path}: a cell of the row that begins in line {line} holds whole rows, up to line {last}: a quote is"
                " not closed"
            )
        yield number, cells


def _swallows(cells: Sequence[str], separator: str, width: int) -> bool:
    """Returns whether a cell has a line that looks like a whole row; a note of several lines does not."""
    lines = (line for cell in cells if "\n" in cell or "\r" in cell for line in cell.splitlines()[1:])
    return any(line.count(separator) + 1 >= max(width, 2) for line in lines)


@contextlib.contextmanager
def long_cells() -> Iterator[None]:
    """Lets csv read cells of any length, because the run lengths of a mask can exceed its limit of 128 KB."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
