"""Prepares docstrings for the API reference: examples become Python code, and joined arguments get a line each."""

import re
import textwrap
from typing import Any

import griffe

# `Example::` with plain code, or `Example:` with `>>>` before each line.
_EXAMPLE = re.compile(r"^Examples?::?\n\n?((?:[ \t]+.*\n|\n)+)", re.MULTILINE)
_SECTION = re.compile(r"^(?:Args|Attributes):\n(?: +.*\n)+", re.MULTILINE)
# `heads, head_dim: text`, with the lines of the text.
_JOINED = re.compile(r"^  (\w+(?:, \w+)+): (.*\n(?:   .*\n)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstrings that griffe has read; mkdocstrings loads this class by its file."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = fenced(split(obj.docstring.value))


def fenced(text: str) -> str:
    """A docstring with its examples as fenced blocks."""

    def block(match: re.Match[str]) -> str:
        code = re.sub(r"^>>> ", "", textwrap.dedent(match[1]).strip(), flags=re.MULTILINE)
        return f"```python\n{code}\n```\n\n"

    return _EXAMPLE.sub(block, text + "\n").rstrip()


def split(text: str) -> str:
    """A docstring whose arguments have a line each: griffe reads `a, b: text` as one argument of that name."""

    def lines(match: re.Match[str]) -> str:
        return "".join(f"  {name}: {match[2]}" for name in match[1].split(", "))

    return _SECTION.sub(lambda section: _JOINED.sub(lines, section[0]), text + "\n").rstrip()
