"""Writes a converted folder under a temporary name next to it, then renames it: it is complete or absent."""

import contextlib
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxboost import io, stopping
from jaxboost.convert import part_file
from jaxboost.convert.manifests import MANIFEST, AnyManifest, kind_at, to_text
from jaxboost.convert.tables.parts import Part
from jaxboost.errors import UserError

# The names of parts, as written now and as Orbax wrote them in earlier versions.
_PART = re.compile(
    r"(layer_\d{5}|final_norm|embedding|norm|pool|encoder|text|classes|prompts|question|qformer)(\.safetensors)?"
)


class FolderWriter:
    """Writes the parts of a converted folder; see `writing`.

    Attributes:
      sha256: key of each part that was written -> its fingerprint.
    """

    def __init__(self, folder: pathlib.Path):
        """A writer for a folder that exists."""
        self._folder = folder
        self.sha256: dict[str, str] = {}

    def add(self, part: Part, dtype: np.dtype, progress: Callable[[int], Any]) -> None:
        """Writes one part; see `part_file.write`."""
        self.sha256[part.key] = part_file.write(self._folder, part, dtype, progress)

    def finish(self, manifest: AnyManifest) -> None:
        """Writes the manifest. Raises UserError if the system refuses."""
        with io.writing(self._folder.parent):
            io.write_text(self._folder / MANIFEST, to_text(manifest))


@contextlib.contextmanager
def writing(out: pathlib.Path, *, overwrite: bool) -> Iterator[FolderWriter]:
    """A writer for the folder `out`, which appears when the context ends without an error, and not at all otherwise.

    Args:
      out: the folder.
      overwrite: whether it may replace an earlier one of ours.

    Raises:
      UserError: see `check_free`; or the folder cannot be written.
    """
    check_free(out, overwrite=overwrite)
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    with io.writing(out.parent):
        temporary.mkdir(parents=True)
    try:
        yield FolderWriter(temporary)
        # Another process may have made it meanwhile.
        check_free(out, overwrite=overwrite)
        with io.writing(out):
            _move(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: pathlib.Path, *, overwrite: bool) -> None:
    """Raises UserError if `out` exists, unless it is a converted folder without other files and `overwrite` is set."""
    if not os.path.exists(out):
        return
    try:
        entries = set(os.listdir(out)) if os.path.isdir(out) else set()
    except PermissionError as error:
        raise UserError(f"{out} exists and cannot be read, permission denied: choose another folder") from error
    if MANIFEST not in entries:
        raise UserError(f"{out} exists and is not a converted folder (no {MANIFEST}): choose another folder")
    kind = kind_at(out)
    if not overwrite:
        raise UserError(f"{out} is a {kind} already: choose another folder, or replace it with --overwrite")
    others = sorted(name for name in entries - {MANIFEST} if not _PART.fullmatch(name))
    if others:
        raise UserError(f"{out} also holds {others[0]!r}, which is not part of a {kind}: move it away first")


def _move(temporary: pathlib.Path, out: pathlib.Path) -> None:
    if not os.path.exists(out):
        temporary.rename(out)
        return
    # A folder cannot be replaced in one step: the old one is renamed first, and renamed back if the new one cannot be.
    aside = temporary.with_suffix(".old")
    with stopping.deferred():
        try:
            out.rename(aside)
            temporary.rename(out)
        # Ctrl-C too: without `stopping.watch`, as in a notebook, it is not deferred.
        except BaseException:
            if not os.path.lexists(out):
                aside.rename(out)
            raise
        shutil.rmtree(aside)
