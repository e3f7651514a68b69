"""Manifests changed after the conversion, checksum included, as by somebody who means to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxboost import io

# What is said of a manifest that `change_text` has changed.
BROKEN = r"manifest\.json (is damaged or of another version \(.*\)|was changed after .*): convert again"


def change_text(folder: Path, change: Callable[[str], str]) -> None:
    """Changes the text of the manifest in a converted folder, and keeps its checksum."""
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the entries of the manifest in a converted folder."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    change(fields)
    path.write_text(sealed(fields))


def sealed(fields: Any) -> str:
    """The text of a manifest with these entries and their checksum."""
    return json.dumps(fields | {"checksum": io.json_sha256(fields)} if isinstance(fields, dict) else fields)


def make_earlier(folder: Path) -> None:
    """Turns a converted folder into what an earlier version wrote: Orbax checkpoints, and no kind for blocks."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
        (folder / path.stem / "scale").mkdir(parents=True)
        (folder / path.stem / "scale" / ".zarray").write_text("{}")

    def change(fields):
        fields["format_version"] = 1
        if fields["kind"] == "llama":
            del fields["kind"]

    rewrite(folder, change)
