"""Shows the examples of docstrings, which follow `Example::`, as Python code in the API reference."""

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Examples?::\n\n((?:[ \t]+.*\n|\n)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Rewrites the docstrings that griffe has read; mkdocstrings loads this class by its file."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring with its examples as fenced blocks."""

    def block(match: re.Match[str]) -> str:
        return f"```python\n{textwrap.dedent(match[1]).strip()}\n```\n\n"

    return _EXAMPLE.sub(block, text + "\n").rstrip()
