"""Manifests changed after the conversion, as by someone who leaves their checksum out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the entries of the manifest in a converted folder."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    change(fields)
    path.write_text(json.dumps(fields))
