"""Reads and writes .npz files, and decides which arrays are in memory and which are mapped from disk."""

import contextlib
import json
import logging
import lzma
import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from tqdm import tqdm

from jaxboost.data.mapped_array import open_array, state_of
from jaxboost.errors import UserError
from jaxboost.io import check_free_space, irregular, replacing

# An array of this many bytes is mapped. Reading a smaller one at every start takes a second or two.
LARGE_BYTES = 256 << 20

_SUFFIX = ".npy"
_CHUNK_BYTES = 1 << 20
_ELSEWHERE = "make room there, or choose a folder with more space (data.root or MEDMNIST_ROOT)"
# What numpy and zipfile raise for a damaged archive (RuntimeError: damage that looks like encryption or an unknown
# compression method; SyntaxError, TypeError, TokenError: headers of arrays, which are Python expressions).
_DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError, OverflowError, SyntaxError, TypeError, IndexError),
    *(struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)

logger = logging.getLogger(__name__)


def open_npz(
    path: pathlib.Path,
    names: Sequence[str],
    *,
    md5: str = "",
    folders: Sequence[pathlib.Path] = (),
    most_bytes: float = math.inf,
) -> dict[str, np.ndarray]:
    """Reads arrays of an archive into memory; large ones are mapped from disk if there are `folders` for them.

    Members of a compressed archive, such as MedMNIST's, cannot be mapped. An array of LARGE_BYTES or more is therefore
    unpacked once, to `{name}.npy` in the first writable folder, and returned as a read-only np.memmap of that copy. An
    existing copy in any of the folders is used if it was made from the archive with the MD5 sum `md5` and has not
    changed since; otherwise it is made again.

    Args:
      path: the archive.
      names: the arrays to read.
      md5: MD5 sum of the archive; needed if there are folders.
      folders: folders for copies of this archive alone.
      most_bytes: the most bytes of all arrays in memory, because an archive without a known sum can unpack to any size.

    Returns:
      Name -> array.

    Raises:
      UserError: the file cannot be read, an array (named in the message) is missing, broken or too large, or there is
        no room for the copies.
    """
    if kind := irregular(path):
        raise UserError(f"{path}: cannot read the archive: it is {kind}, not a regular file")
    arrays: dict[str, np.ndarray] = {}
    with _reading(path, "the archive"), path.open("rb") as file:
        if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
            raise UserError(f"{path}: a single array, not an .npz archive")
        with zipfile.ZipFile(file) as archive:
            found = [member.removesuffix(_SUFFIX) for member in archive.namelist() if member.endswith(_SUFFIX)]
            if missing := [name for name in names if name not in found]:
                raise UserError(f"{path}: array {missing[0]} is missing; found: {', '.join(found)}")
            if folders:
                arrays |= _large_arrays(path, archive, names, md5, folders)
            for name in names:
                if name not in arrays:
                    with _reading(path, f"array {name}"):
                        arrays[name] = _read(archive, name, most_bytes)
                        most_bytes -= arrays[name].nbytes
    return arrays


def _read(archive: zipfile.ZipFile, name: str, most_bytes: float) -> np.ndarray:
    """Reads a member. Its header, its size and the limit are compared first, before memory is allocated."""
    size = archive.getinfo(name + _SUFFIX).file_size
    with archive.open(name + _SUFFIX) as member:
        version = read_magic(member)
        # Version 3 differs from 2 only in the names of fields.
        shape, _, dtype = (read_array_header_1_0 if version == (1, 0) else read_array_header_2_0)(member)
        header = member.tell()
    # Objects are refused by numpy below, with the reason.
    if not dtype.hasobject and header + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its shape {shape} of {dtype} does not fit its {size} bytes")
    if size - header > most_bytes:
        raise ValueError(f"its {size} bytes are too many")
    with archive.open(name + _SUFFIX) as member:
        array = read_array(member, allow_pickle=False)
        # At the end of the member its checksum is compared.
        member.read(1)
    return array


def make_note(file: pathlib.Path, md5: str) -> str:
    """Returns a note about the current state of `file`: its size in bytes, its time in ns, and `md5`."""
    return json.dumps({**state_of(file), "md5": md5})


def write_note(file: pathlib.Path, folders: Sequence[pathlib.Path], content: str) -> None:
    """Writes the note that `make_note` made about `file` to the first writable folder. Raises OSError if there is none.

    The note of an archive has its own MD5 sum; the note of an unpacked array has the sum of its archive.
    """
    with replacing(_writable(folders) / f"{file.name}.json") as temporary:
        temporary.write_text(content, encoding="utf-8")


def is_noted(file: pathlib.Path, folders: Sequence[pathlib.Path], md5: str) -> bool:
    """Returns whether one of the `folders` has a note about `file` with `md5` and its current size and time."""
    for folder in folders:
        with contextlib.suppress(OSError):
            note = folder / f"{file.name}.json"
            if os.path.isfile(note) and note.read_bytes() == make_note(file, md5).encode():
                return True
    return False


def _large_arrays(
    path: pathlib.Path, archive: zipfile.ZipFile, names: Sequence[str], md5: str, folders: Sequence[pathlib.Path]
) -> dict[str, np.memmap]:
    sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()}
    copies = {name: _copy(name, md5, folders) for name in names if sizes[name] >= LARGE_BYTES}
    if lacking := [name for name, copy in copies.items() if copy is None]:
        folder = _writable(folders)
        existing, needed = _existing(folder), sum(sizes[name] for name in lacking)
        check_free_space(folder, needed, f"{path}: unpacking its large arrays", _ELSEWHERE)
        logger.info("unpacking the large arrays of %s once, to %s", path, folder)
        try:
            for name in lacking:
                copies[name] = _unpack(path, archive, name, md5, folder)
        finally:
            # Removes new folders that stayed empty because no copy was made.
            with contextlib.suppress(OSError):
                while folder != existing:
                    folder.rmdir()
                    folder = folder.parent
    return {name: open_array(copy) for name, copy in copies.items()}


def _copy(name: str, md5: str, folders: Sequence[pathlib.Path]) -> pathlib.Path | None:
    files = (folder / f"{name}.npy" for folder in folders)
    return next((file for file in files if is_noted(file, [file.parent], md5)), None)


def _unpack(path: pathlib.Path, archive: zipfile.ZipFile, name: str, md5: str, folder: pathlib.Path) -> pathlib.Path:
    """Unpacks the member `{name}.npy`, which is a whole .npy file, into `folder`."""
    target = folder / f"{name}.npy"
    try:
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                for chunk in _chunks(path, archive, name):
                    file.write(chunk)
            with _reading(path, f"array {name}"):
                open_array(temporary)
            # Made here, because another process may replace this copy right after it is renamed.
            content = make_note(temporary, md5)
        write_note(target, [folder], content)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}): {_ELSEWHERE}") from error
    return target


def _chunks(path: pathlib.Path, archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with _reading(path, f"array {name}"), archive.open(f"{name}.npy") as member:
        total = archive.getinfo(f"{name}.npy").file_size
        with tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := member.read(_CHUNK_BYTES):
                bar.update(len(chunk))
                yield chunk


def _writable(folders: Sequence[pathlib.Path]) -> pathlib.Path:
    """Returns the first folder that can be written or made; if there is none, the first of all."""
    return next((folder for folder in folders if os.access(_existing(folder), os.W_OK | os.X_OK)), folders[0])


def _existing(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder itself if it exists, otherwise the nearest parent that does."""
    # Unlike pathlib's `exists`, this one does not raise an error below a folder without permissions.
    return next(each for each in (folder, *folder.parents) if os.path.exists(each))


@contextlib.contextmanager
def _reading(path: pathlib.Path, what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path}: cannot read {what}: {error}") from error


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> None:
    """Writes an archive under a temporary name, then renames it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)
