"""Reading and writing .npz files: one place that decides how arrays come into memory."""

import contextlib
import os
import pathlib
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxboost.errors import UserError

# What numpy and zipfile raise for a damaged archive (RuntimeError: damage that looks like encryption or an unknown
# compression method).
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


def open_npz(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays `names` of the file, whole, in memory.

    Members of a compressed archive cannot be mapped, and MedMNIST's are compressed; a later way to map large files
    belongs here.

    Raises:
        UserError: the file cannot be read, or an array is missing or broken; the message names the array.
    """
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        # Opened here: np.load leaves its own file open when the archive is damaged.
        with path.open("rb") as file, _archive(np.load(file, allow_pickle=False), path) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise UserError(f"{path}: array {missing[0]} is missing; found: {', '.join(archive.files)}")
            for name in names:
                arrays[name] = archive[name]
    except _DAMAGE as error:
        member = f"array {name}" if name else "the archive"
        raise UserError(f"{path}: cannot read {member}: {error}") from error
    return arrays


def _archive(loaded: object, path: pathlib.Path) -> np.lib.npyio.NpzFile:
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: a single array, not an .npz archive")
    return loaded


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed archive under a temporary name and moves it into place."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, renamed to `path` when the block ends well and removed when it does not.

    The folder is made where it is missing. The name is unique, so that two processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
