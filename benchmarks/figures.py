"""The file that --json of a benchmark names."""

import pathlib
from typing import Any

from jaxboost import io, outputs


def check_figures(path: str, flag: str) -> None:
    """Checks the JSON file of results that a flag names; nothing for an empty flag. See `outputs.check_file`."""
    if path:
        outputs.check_file(pathlib.Path(path), flag, kind="a JSON file of results", is_ours=_is_json_object)


def write_figures(path: str, figures: dict[str, Any]) -> None:
    """Writes a JSON file of results. Raises UserError if the file cannot be written."""
    with io.writing(path):
        io.write_text(pathlib.Path(path), io.to_json(figures, indent=2) + "\n")


def _is_json_object(path: pathlib.Path) -> bool:
    return isinstance(io.read_json(path), dict)
