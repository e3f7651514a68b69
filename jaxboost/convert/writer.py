"""Writing a block or a vision encoder: under a temporary name beside it, so that it is whole or absent."""

import contextlib
import dataclasses
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxboost import io
from jaxboost.convert.encoder_layouts import EMBEDDING, NORM
from jaxboost.convert.manifests import MANIFEST, EncoderManifest, Manifest, kind_at, to_text
from jaxboost.convert.names import FINAL_NORM
from jaxboost.convert.store import fingerprint, part_name, save
from jaxboost.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One checkpoint of a folder, not read yet.

    Attributes:
      key: see `store.part_name`.
      size: of all arrays, in elements.
      reads: name -> what reads the array, in the precision that is to be stored.
    """

    key: str
    size: int
    reads: Mapping[str, Callable[[], np.ndarray]]


class BlockWriter:
    """Writes the parts of a block or vision encoder into a folder; see `writing`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.sha256: dict[str, str] = {}

    def add(self, part: Part, progress: Callable[[int], Any]) -> None:
        """Reads and saves one part, which alone is in memory.

        Args:
          progress: gets the bytes of each array that was read.

        Raises:
          UserError: an array holds NaN or infinity, which nothing could be computed with; or see `writing`.
        """
        leaves = {}
        for name, read in part.reads.items():
            array = read()
            # Both pass NaN on, and need no memory.
            with np.errstate(invalid="ignore"):
                ends = float(array.min()), float(array.max())
            if not np.isfinite(ends).all():
                raise UserError(
                    f"{name} of {part_name(part.key)} holds NaN or infinity in {array.dtype}: the source is damaged"
                    " or its training diverged: download it again, or choose another"
                )
            leaves[name] = _on_host(array)
            progress(leaves[name].nbytes)
        self.sha256[part.key] = fingerprint({name: np.asarray(array) for name, array in leaves.items()})
        with _writing(self._folder):
            save(self._folder / part_name(part.key), leaves)

    def finish(self, manifest: Manifest | EncoderManifest) -> None:
        """Writes the manifest."""
        with _writing(self._folder):
            io.write_text(self._folder / MANIFEST, to_text(manifest))


@contextlib.contextmanager
def writing(out: pathlib.Path, *, overwrite: bool) -> Iterator[BlockWriter]:
    """A writer for the folder `out`, which appears when the context ends without an error, and not at all otherwise.

    Raises:
      UserError: see `check_free`; or the folder cannot be written.
    """
    check_free(out, overwrite=overwrite)
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    with io.writing(out.parent):
        temporary.mkdir(parents=True)
    try:
        yield BlockWriter(temporary)
        # Another process may have made it meanwhile.
        check_free(out, overwrite=overwrite)
        with io.writing(out):
            _move_into_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Raises UserError where Orbax, or TensorStore below it, is refused to write."""
    try:
        yield
    except Exception as error:
        if (cause := io.os_error(error)) is None:
            raise
        raise io.refused(folder.parent, cause) from error


def check_free(out: pathlib.Path, *, overwrite: bool) -> None:
    """Raises a `UserError` if `out` exists, unless `writing` made it, nothing was added, and `overwrite` is set."""
    if not out.exists():
        return
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if MANIFEST not in entries:
        raise UserError(f"{out} exists and is not a block or vision encoder (no {MANIFEST}): choose another folder")
    kind = kind_at(out)
    if not overwrite:
        raise UserError(f"{out} is a {kind} already: choose another folder, or replace it with --overwrite")
    known = {MANIFEST, FINAL_NORM, EMBEDDING, NORM}
    strangers = sorted(name for name in entries - known if not name.startswith("layer_"))
    if strangers:
        raise UserError(f"{out} also holds {strangers[0]!r}, which is not part of a {kind}: move it away first")


def _on_host(array: np.ndarray) -> jax.Array:
    # Orbax would copy a NumPy array before it writes, but writes a jax.Array from where it lies.
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = jax.local_devices()[0]
    return jax.block_until_ready(jax.device_put(array, device))


def _move_into_place(temporary: pathlib.Path, out: pathlib.Path) -> None:
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
