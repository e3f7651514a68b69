"""Files that are there whole, or not at all."""

import json
import math
import os
import pathlib
from typing import Any


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file under a temporary name and renames it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as the standard has it: NaN and infinities, which it lacks, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [clean(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(value), indent=indent)
