"""Puts the tables of all config fields into docs/config.md when the documentation is built."""

from typing import Any

MARKER = "<!-- fields -->"
PAGE = "config.md"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page before it becomes HTML; mkdocs calls this for each page."""
    return markdown.replace(MARKER, tables()) if page.file.src_uri == PAGE else markdown


def tables() -> str:
    """A table for each section of the config, in Markdown."""
    from jaxboost.config import table

    sections: dict[str, list[str]] = {}
    for name, field in table.ALL_FIELDS.items():
        section, _, _ = name.rpartition(".")
        sections.setdefault(section, []).append(_row(name, field))
    lines = []
    for section, rows in sections.items():
        lines += [
            f"## {section or 'Top level'}",
            "",
            "| Field | Default | Meaning | Allowed |",
            "| --- | --- | --- | --- |",
        ]
        lines += [*rows, ""]
    return "\n".join(lines)


def _row(name: str, field: Any) -> str:
    meaning = f"{field.meaning} ({field.unit})" if field.unit else field.meaning
    cells = (f"`{name}`", f"`{field.default!r}`", _escaped(meaning), _escaped(_allowed(field)))
    return f"| {' | '.join(cells)} |"


def _allowed(field: Any) -> str:
    if choices := field.allowed():
        return ", ".join(f"`{choice}`" for choice in (*choices, *(["empty"] if field.optional else [])))
    if (range_ := field.range) is None:
        return ""
    if range_.words:
        return range_.words
    bounds = (("above", range_.above), ("from", range_.least), ("below", range_.below), ("up to", range_.most))
    return ", ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)


def _escaped(text: str) -> str:
    """`|` would end a cell, and `<` could start an HTML tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")
