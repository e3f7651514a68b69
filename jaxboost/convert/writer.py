"""Writing a block: under a temporary name beside it, so that a block is whole or absent."""

import contextlib
import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from jaxboost.convert.names import FINAL_NORM
from jaxboost.convert.store import MANIFEST, Manifest, fingerprint, layer_name, save
from jaxboost.errors import UserError


class BlockWriter:
    """Writes the parts of a block into a folder; see `writing`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.sha256: dict[str, str] = {}

    def add_layer(self, layer: int, leaves: Mapping[str, jax.Array]) -> None:
        """Saves one layer: name -> array, linear maps (in, out)."""
        self._add(str(layer), layer_name(layer), leaves)

    def add_final_norm(self, scale: jax.Array) -> None:
        """Saves the (D,) final norm."""
        self._add(FINAL_NORM, FINAL_NORM, {"scale": scale})

    def finish(self, manifest: Manifest) -> None:
        """Writes the manifest."""
        text = json.dumps(dataclasses.asdict(manifest), indent=2)
        (self._folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def _add(self, key: str, name: str, leaves: Mapping[str, jax.Array]) -> None:
        self.sha256[key] = fingerprint({leaf: np.asarray(array) for leaf, array in leaves.items()})
        save(self._folder / name, leaves)


@contextlib.contextmanager
def writing(out: Path, *, overwrite: bool) -> Iterator[BlockWriter]:
    """A writer for the block `out`, which appears when the context ends without an error, and not at all otherwise.

    Raises:
      UserError: see `check_free`; or the folder cannot be written.
    """
    check_free(out, overwrite=overwrite)
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        yield BlockWriter(temporary)
        _move_into_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raises a `UserError` if `out` exists, unless it is a block and nothing else, and `overwrite` is set."""
    if not out.exists():
        return
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if MANIFEST not in entries:
        raise UserError(f"{out} exists and is not a block (no {MANIFEST}): choose another folder")
    if not overwrite:
        raise UserError(f"{out} is a block already: choose another folder, or replace it with --overwrite")
    strangers = sorted(name for name in entries if name not in (MANIFEST, FINAL_NORM) and name[:6] != "layer_")
    if strangers:
        raise UserError(f"{out} also holds {strangers[0]!r}, which is not part of a block: move it away first")


def _move_into_place(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    # A folder cannot be replaced in one step: the old block steps aside, and back if the new one cannot move.
    aside = temporary.with_suffix(".old")
    out.rename(aside)
    try:
        temporary.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside)
