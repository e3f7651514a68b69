"""Reads a report's page as a browser does, with the standard library's parser."""

import dataclasses
import functools
from html.parser import HTMLParser

from jaxboost.reporting import report
from tests.reporting import analyses

_VOID = {"meta", "link", "img", "br"}


@dataclasses.dataclass
class Page:
    """What tests look at.

    Attributes:
      tags: name of an element -> its attributes, for each one.
      tables: id of a table -> its rows; a cell is (text, attributes). The first row is the heading.
      text: all text outside of scripts and styles, in one line.
    """

    tags: list[tuple[str, dict[str, str | None]]] = dataclasses.field(default_factory=list)
    tables: dict[str, list[list[tuple[str, dict[str, str | None]]]]] = dataclasses.field(default_factory=dict)
    text: str = ""

    def count(self, name: str) -> int:
        """The number of elements of this name."""
        return sum(tag == name for tag, _ in self.tags)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.open: list[str] = []
        self.table = ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.page.tags.append((tag, attributes))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = attributes.get("id") or ""
            self.page.tables[self.table] = []
        elif tag == "tr":
            self.page.tables[self.table].append([])
        elif tag in ("th", "td"):
            self.page.tables[self.table][-1].append(("", attributes))
        elif "cell" in self._place():
            self._add(" ")

    def handle_startendtag(self, tag, attrs):
        self.page.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.page.text += data
        if "cell" in self._place():
            self._add(data)

    def _place(self):
        return {"cell"} if {"th", "td"} & set(self.open) else set()

    def _add(self, text):
        row = self.page.tables[self.table][-1]
        row[-1] = (row[-1][0] + text, row[-1][1])


def parse(html: str) -> Page:
    """The content of a page. AssertionError if elements are not closed in their order."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    page = parser.page
    page.text = " ".join(page.text.split())
    for rows in page.tables.values():
        for row in rows:
            row[:] = [(" ".join(text.split()), attributes) for text, attributes in row]
    return page


@functools.cache
def contents(name: str) -> dict[str, str]:
    """The files of the report on the analysis that the function `name` of `analyses` makes; tests do not change it."""
    return report.contents(*getattr(analyses, name)())
