"""The folder of a run: which config it belongs to, and its result."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxboost.errors import UserError
from jaxboost.io import to_json, write_text

# Where things lie and how often they are told: these may change between the sessions of a run. Weights are held to
# their fingerprint instead.
_FREE_FIELDS = {
    "data.root",
    "data.max_pixels",
    "data.max_voxels",
    "model.weights",
    "model.weights_source",
    "model.weights_convert",
    "boost.block",
    "boost.source",
    "boost.convert",
    "llama.block",
    "llama.source",
    "llama.convert",
    "pneumollm.vision",
    "pneumollm.vision_source",
    "pneumollm.vision_convert",
    "train.log_every",
    "train.checkpoint_every",
}


def check(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the result of a finished run in `workdir`; None where the run is new or unfinished. Writes nothing.

    Raises:
      UserError: the folder belongs to a run of another config.
    """
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give another --workdir")
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable ({error}): remove {workdir} or give another --workdir") from None
    before, now = _flat(saved), _flat(to_dict(config))
    # Published data sets are the same wherever they lie.
    held = {"data.root"} if config.data.source else set()
    differing = [
        f"{name} ({before.get(name)!r} there, {now.get(name)!r} now)"
        for name in sorted({*before, *now} - (_FREE_FIELDS - held))
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run of another config, which differs in {', '.join(differing)}:"
            " give another --workdir, or remove it"
        )
    return read_result(workdir)


def create(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes the folder and notes its config."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(to_dict(config), indent=2) + "\n")


def write_result(workdir: pathlib.Path, result: dict[str, Any]) -> dict[str, Any]:
    """Writes result.json, which marks the run as finished; returns what a reader of the file gets."""
    text = to_json(result, indent=2)
    write_text(workdir / "result.json", text + "\n")
    return json.loads(text)


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of a finished run, None where there is none."""
    path = workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples as lists."""
    return json.loads(config.to_json())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
