"""Tables, defined once for the page, CSV, LaTeX and Markdown."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

from jaxboost.reporting import numbers

# A spreadsheet takes a cell that begins so for a formula; names come from users.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKDOWN = r"\`*_{}[]<>#|~"
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    numbers.MINUS: r"$-$",
    "Δ": r"$\Delta$",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column.

    Attributes:
      key: its name in CSV.
      title: its heading.
      numeric: whether it is aligned to the right and sorted by number.
      help: what it means, for people who do not know the term.
      ends: whether its cells have an interval: CSV then has the columns KEY_low and KEY_high too.
      shown: whether the page, LaTeX and Markdown have it; CSV has all columns.
    """

    key: str
    title: str
    numeric: bool = True
    help: str = ""
    ends: bool = False
    shown: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
      text: as the page shows it.
      detail: a second, smaller line, such as an interval.
      value: its value in CSV, by which the page sorts; None for one that is undefined.
      low, high: the ends of its interval.
      badge: a few words in a frame behind the text.
      tone: "good", "bad" or "": the colour of the badge.
    """

    text: str
    detail: str = ""
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    badge: str = ""
    tone: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row; `marked` sets it off."""

    cells: tuple[Cell, ...]
    marked: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
      name: of its files.
      caption: what it shows.
      columns, rows: its content; the first column names the row.
      explained: whether the page explains the columns below the table.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    explained: bool = True

    def to_csv(self) -> str:
        """The table as CSV (RFC 4180), with all digits; "undefined" where a value is undefined."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(
            name
            for column in self.columns
            for name in ([column.key] + ([f"{column.key}_low", f"{column.key}_high"] if column.ends else []))
        )
        for row in self.rows:
            values = []
            for column, cell in zip(self.columns, row.cells, strict=True):
                ends = (cell.low, cell.high) if column.ends else ()
                values += [_csv_value(value) for value in (cell.value, *ends)]
            writer.writerow(values)
        return text.getvalue()

    def to_latex(self) -> str:
        """The table as a LaTeX `tabular`, for the package booktabs."""
        shown = [column for column in self.columns if column.shown]
        kinds = "".join("r" if column.numeric else "l" for column in shown)
        lines = [" & ".join(latex(column.title) for column in shown) + r" \\", r"\midrule"]
        for row in self.rows:
            cells = [
                # The notes of a row's name are too long for a printed table.
                f"{cell.text} {cell.detail}".strip() if column.numeric else cell.text or cell.badge
                for column, cell in zip(self.columns, row.cells, strict=True)
                if column.shown
            ]
            lines.append(" & ".join(map(latex, cells)) + r" \\")
        body = "\n".join(lines)
        head = f"% {latex(self.caption)}\n\\begin{{tabular}}{{{kinds}}}\n\\toprule\n"
        return f"{head}{body}\n\\bottomrule\n\\end{{tabular}}\n"

    def to_markdown(self) -> str:
        """The table as GitHub's Markdown, without the notes of its rows."""
        shown = [column for column in self.columns if column.shown]
        lines = [[column.title for column in shown], ["---:" if column.numeric else "---" for column in shown]]
        for row in self.rows:
            cells = [
                _markdown_cell(column, cell, marked=row.marked)
                for column, cell in zip(self.columns, row.cells, strict=True)
                if column.shown
            ]
            lines.append(cells)
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown(text: str) -> str:
    """A text with the special characters of Markdown escaped, in one line."""
    line = " ".join(text.split())
    return "".join(f"\\{character}" if character in _MARKDOWN else character for character in line)


def _markdown_cell(column: Column, cell: Cell, *, marked: bool) -> str:
    badge = f"({cell.badge})" if cell.text and cell.badge else cell.badge
    text = markdown(f"{cell.text} {cell.detail if column.numeric else badge}".strip())
    return f"**{text}**" if marked and not column.numeric else text


def latex(text: str) -> str:
    """A text with LaTeX's special characters escaped, in one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _csv_value(value: float | str | None) -> str:
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULAS) else value
    return repr(value) if numbers.is_number(value) else numbers.UNDEFINED


def name_cell(text: str, detail: str = "", *, badge: str = "", tone: str = "") -> Cell:
    """A cell with a name."""
    return Cell(text=text, detail=detail, value=text, badge=badge, tone=tone)


def number_cell(value: Any, number: Any = numbers.score, detail: str = "") -> Cell:
    """A cell with one number; `number` makes its text."""
    return Cell(text=number(value), detail=detail, value=value if numbers.is_number(value) else None)


def interval_cell(entry: Mapping[str, Any] | None, value: str = "mean", number: Any = numbers.score) -> Cell:
    """A cell with a number and its interval, from an entry with `value`, "low" and "high"."""
    entry = entry or {}
    low, high = entry.get("low"), entry.get("high")
    found = number_cell(entry.get(value), number)
    if found.value is None and not (numbers.is_number(low) and numbers.is_number(high)):
        return found
    return dataclasses.replace(found, detail=numbers.interval(low, high, number), low=low, high=high)
