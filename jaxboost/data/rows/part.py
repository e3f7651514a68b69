"""A part of a store: rows of one shape in an .npy file, and an index that says what each row is.

Both files are complete before they get their names, the index last, and never change afterwards. A part is closed
after `MOST_BYTES`, so that a killed process loses little.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxboost.data import mapped_array
from jaxboost.data.dataset import digest_of
from jaxboost.io import replacing

FORMAT = 1
MOST_BYTES, MOST_ROWS = 256 << 20, 1 << 16
# Smaller parts are not synced to the disk: what a power cut damages is noticed, and soon made again.
_SYNCED_BYTES = 16 << 20
_ARRAY, _INDEX = ".npy", ".json"
_NAME = "rows-"
_TEMPORARY = ".part"


class StaleError(Exception):
    """The part was made by another version of the code or of a decoder."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows, and what they are.

    Attributes:
      array: (n, ...), mapped from disk, or in memory.
      keys, stamps: what each row was made from, and in which state that was.
      sha256: digest of the bytes of each row.
      about: JSON about each row.
      index: the file of the index; None in memory.
    """

    array: np.ndarray
    keys: Sequence[str]
    stamps: Sequence[str]
    sha256: Sequence[str]
    about: Sequence[Any]
    index: pathlib.Path | None = None


class PartFile:
    """A part that is being written.

    Attributes:
      array: the file of its rows.
    """

    def __init__(self, folder: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        """Creates the file. Raises OSError if that is refused."""
        self._index = folder / f"{_NAME}{uuid.uuid4().hex[:16]}{_INDEX}"
        self._temporary = folder / f".{self._index.stem}{_TEMPORARY}"
        self.array = mapped_array.ArrayFile(self._temporary, shape, dtype)
        self._columns: dict[str, list[Any]] = {"keys": [], "stamps": [], "sha256": [], "about": []}

    def add(self, row: np.ndarray, **facts: Any) -> None:
        """Appends a row; `facts` are its entries in the columns `key`, `stamp`, `sha256` and `about`."""
        self.array.add(row)
        for name, column in self._columns.items():
            column.append(facts[name.removesuffix("s")])

    @property
    def is_full(self) -> bool:
        """Whether the next rows belong into another part."""
        return self.array.nbytes >= MOST_BYTES or self.array.count >= MOST_ROWS

    def close(self, version: str, *, sync: bool) -> Part | None:
        """Gives the files their names. Returns the part, None if it has no rows.

        Args:
          version: see `store.Store`.
          sync: whether there is time to wait for the disk.

        Raises:
          OSError: the system refuses; `mapped` may still have the rows.
        """
        self._cut()
        sync = sync and self.array.nbytes >= _SYNCED_BYTES
        self.array.close(sync=sync)
        if not self.array.count:
            self.discard()
            return None
        file = self._index.with_suffix(_ARRAY)
        about = {
            "format": FORMAT,
            "version": version,
            "state": mapped_array.state_of(self._temporary),
            "array": _kind(mapped_array.open_array(self._temporary)),
        }
        content = json.dumps(about | self._columns).encode()
        with replacing(self._index) as temporary:
            with temporary.open("wb") as opened:
                opened.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                opened.flush()
                if sync:
                    os.fsync(opened.fileno())
            os.replace(self._temporary, file)
        return Part(mapped_array.open_array(file), index=self._index, **self._columns)

    def mapped(self) -> Part:
        """The rows of a file that cannot be completed, because the disk is full: they stay until this process ends."""
        self._cut()
        self.array.close(sync=False)
        part = Part(mapped_array.open_array(self._temporary), **self._columns)
        self.discard()
        return part

    def discard(self) -> None:
        """Removes the file."""
        self._temporary.unlink(missing_ok=True)

    def _cut(self) -> None:
        """A signal can come between the row and its facts."""
        count = min(self.array.count, *map(len, self._columns.values()))
        self.array.count = count
        for column in self._columns.values():
            del column[count:]


def indices(folder: pathlib.Path) -> list[pathlib.Path]:
    """The indices of the parts in a folder, sorted by name."""
    return sorted(folder.glob(f"{_NAME}*{_INDEX}"))


def open_part(index: pathlib.Path, version: str, *, sample: int) -> Part:
    """Maps a part.

    The digests of `sample` rows are compared; those of all rows if the file's time is not that of its writing.

    Raises:
      FileNotFoundError: it was removed.
      StaleError: its version is another one.
      OSError, ValueError, KeyError, TypeError: it is damaged, or cannot be read.
    """
    digest, _, content = index.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its index is not as it was written")
    found = json.loads(content)
    if (found["format"], found["version"]) != (FORMAT, version):
        raise StaleError
    file = index.with_suffix(_ARRAY)
    columns = {name: found[name] for name in ("keys", "stamps", "sha256", "about")}
    state = mapped_array.state_of(file)
    if state["size"] != found["state"]["size"]:
        raise ValueError(f"{file.name} has {state['size']} bytes in place of {found['state']['size']}")
    array = mapped_array.open_array(file)
    if _kind(array) != found["array"]:
        raise ValueError(f"{file.name} has {array.dtype} {array.shape}")
    changed = state["mtime_ns"] != found["state"]["mtime_ns"]
    rows = range(len(array)) if changed else np.unique(np.linspace(0, len(array) - 1, sample).astype(int)).tolist()
    for row in rows:
        if digest_of(array[row]) != columns["sha256"][row]:
            raise ValueError(f"row {row} of {file.name} is not as it was written")
    if changed:
        # As after a copy: the content is right, and need not be compared again.
        with contextlib.suppress(OSError):
            os.utime(file, ns=(found["state"]["mtime_ns"],) * 2)
    return Part(array, index=index, **columns)


def _kind(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, list(array.shape)]


def remove(index: pathlib.Path) -> None:
    """Removes a part, the index first. Arrays that are mapped stay valid, but not on every network file system."""
    index.unlink(missing_ok=True)
    index.with_suffix(_ARRAY).unlink(missing_ok=True)


def set_aside(index: pathlib.Path) -> str:
    """Renames the array of a damaged part, in place of an older damaged one, and removes the index.

    Returns:
      The new name; "" if nothing can be renamed.
    """
    file = index.with_suffix(_ARRAY)
    kept = index.with_name("damaged.npy")
    try:
        os.replace(file if file.exists() else index, kept)
        index.unlink(missing_ok=True)
    except OSError:
        return ""
    return kept.name


def remove_remains(folder: pathlib.Path) -> None:
    """Removes what killed processes left. Only for the owner of the folder's lock."""
    known = {index.with_suffix(_ARRAY) for index in indices(folder)}
    for path in folder.glob(f"{_NAME}*{_ARRAY}"):
        if path not in known:
            path.unlink(missing_ok=True)
    for path in folder.glob(f".{_NAME}*{_TEMPORARY}"):
        path.unlink(missing_ok=True)
