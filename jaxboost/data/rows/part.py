"""A part of a store: rows of one shape in an .npy file, and an index that says what each row is.

Both files are complete before they get their names, the index last, and never change afterwards. A part is closed
after `MOST_BYTES`, or a part of a large store, so that a killed process loses little.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxboost.data import mapped_array
from jaxboost.data.dataset import digest_of
from jaxboost.io import replacing

FORMAT = 1
MOST_BYTES, MOST_ROWS = 256 << 20, 1 << 16
# Each is mapped, and takes a descriptor.
MOST_PARTS = 256
# Smaller parts are not synced to the disk when they are written. All their rows are compared at the next start.
_SYNCED_BYTES = 16 << 20
_ARRAY, _INDEX = ".npy", ".json"
_NAME = "rows-"
_TEMPORARY = ".part"
_DAMAGED = "damaged.npy"
# Of all files of parts, those that say what is there first.
FILES = (f"{_NAME}*{_INDEX}", f"{_NAME}*{_ARRAY}", f".{_NAME}*{_TEMPORARY}", _DAMAGED)


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
      synced: whether it was on the disk before its index was, or was compared since.
    """

    array: np.ndarray
    keys: Sequence[str]
    stamps: Sequence[str]
    sha256: Sequence[str]
    about: Sequence[Any]
    index: pathlib.Path | None = None
    synced: bool = True


class PartFile:
    """A part that is being written.

    Attributes:
      array: the file of its rows.
    """

    def __init__(self, folder: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, *, most: int = 1):
        """Creates the file; `most` rows will come, in all parts together. Raises OSError if that is refused."""
        self._index = folder / f"{_NAME}{uuid.uuid4().hex[:16]}{_INDEX}"
        self._temporary = folder / f".{self._index.stem}{_TEMPORARY}"
        self.array = mapped_array.ArrayFile(self._temporary, shape, dtype)
        self._columns: dict[str, list[Any]] = {"keys": [], "stamps": [], "sha256": [], "about": []}
        size = int(np.prod(shape)) * dtype.itemsize * most
        self._most_bytes, self._most_rows = max(MOST_BYTES, size // MOST_PARTS), max(MOST_ROWS, most // MOST_PARTS)
        self._rows: np.ndarray | None = None

    def add(self, row: np.ndarray, **facts: Any) -> None:
        """Appends a row; `facts` are its entries in the columns `key`, `stamp`, `sha256` and `about`."""
        self.array.add(row)
        for name, column in self._columns.items():
            column.append(facts[name.removesuffix("s")])

    @property
    def is_full(self) -> bool:
        """Whether the next rows belong into another part."""
        return self.array.nbytes >= self._most_bytes or self.array.count >= self._most_rows

    def close(self, version: str, *, sync: bool) -> Part | None:
        """Gives the files their names. Returns the part, None if it has no rows.

        Args:
          version: see `store.Store`.
          sync: whether there is time to wait for the disk.

        Raises:
          OSError: the system refuses; `mapped` may still have the rows.
        """
        self._map()
        sync = sync and self.array.nbytes >= _SYNCED_BYTES
        self.array.close(sync=sync)
        if not self.array.count:
            self.discard()
            return None
        file = self._index.with_suffix(_ARRAY)
        about = {
            "format": FORMAT,
            "version": version,
            "synced": sync,
            "state": mapped_array.state_of(self._temporary),
            "array": _kind(mapped_array.open_array(self._temporary)),
        }
        _write_index(self._index, about | self._columns, sync=sync, before=lambda: os.replace(self._temporary, file))
        rows = mapped_array.open_array(file) if self._rows is None else self._rows
        return Part(rows, index=self._index, synced=sync, **self._columns)

    def mapped(self) -> Part:
        """The rows of a file that cannot be completed, because the disk is full: they stay until this process ends.

        Raises:
          OSError: they are lost, because somebody has removed the file.
        """
        self._map()
        with contextlib.suppress(OSError):
            self.array.close(sync=False)
        rows = mapped_array.open_array(self._temporary) if self._rows is None else self._rows
        part = Part(rows, **self._columns)
        self.discard()
        return part

    @property
    def keys(self) -> Sequence[str]:
        """What its rows were made from."""
        return self._columns["keys"]

    def discard(self) -> None:
        """Removes the file, unless the system refuses."""
        with contextlib.suppress(OSError):
            self.array.close(sync=False)
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _map(self) -> None:
        """Maps the rows while the file is open: that needs no name, which may be gone when it is needed."""
        self._cut()
        # Windows does not rename a file that is mapped.
        if self._rows is None and self.array.count and os.name == "posix":
            self._rows = self.array.mapped()

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

    The digests of `sample` rows are compared; those of all rows if the file's time is not that of its writing, or if a
    power cut may have taken what was not on the disk yet.

    Raises:
      FileNotFoundError: it was removed.
      StaleError: its version is another one.
      ValueError, KeyError, TypeError: it is damaged.
      OSError, MemoryError: the system does not let it be read, which says nothing about its content.
    """
    found = _read_index(index)
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
    synced = found["synced"]
    rows = (
        range(len(array))
        if changed or not synced
        else np.unique(np.linspace(0, len(array) - 1, sample).astype(int)).tolist()
    )
    for row in rows:
        if digest_of(array[row]) != columns["sha256"][row]:
            raise ValueError(f"row {row} of {file.name} is not as it was written")
    if changed:
        # As after a copy: the content is right, and need not be compared again.
        with contextlib.suppress(OSError):
            os.utime(file, ns=(found["state"]["mtime_ns"],) * 2)
    return Part(array, index=index, synced=synced, **columns)


def note_synced(part: Part) -> Part:
    """Syncs a part whose rows were all compared, so that they need not be again. Only for the owner of the lock.

    Raises:
      OSError: the system refuses.
      ValueError: the index is not as it was written.
    """
    assert part.index
    found = _read_index(part.index)
    # Windows syncs only what is open for writing.
    with part.index.with_suffix(_ARRAY).open("r+b") as file:
        os.fsync(file.fileno())
    _write_index(part.index, found | {"synced": True}, sync=True)
    return dataclasses.replace(part, synced=True)


def _read_index(index: pathlib.Path) -> dict[str, Any]:
    digest, _, content = index.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its index is not as it was written")
    return json.loads(content)


def _write_index(
    index: pathlib.Path, found: dict[str, Any], *, sync: bool, before: Callable[[], None] = lambda: None
) -> None:
    """Writes an index; `before` is called before it gets its name."""
    content = json.dumps(found).encode()
    with replacing(index) as temporary:
        with temporary.open("wb") as opened:
            opened.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            opened.flush()
            if sync:
                os.fsync(opened.fileno())
        before()


def _kind(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, list(array.shape)]


def remove(index: pathlib.Path, *, mapped: bool = False) -> None:
    """Removes a part, the index first.

    Args:
      index: of the part.
      mapped: whether another machine may have mapped the array, which then stays until `remove_remains` of a later
        start. Processes of this machine keep what they have mapped.
    """
    index.unlink(missing_ok=True)
    if not mapped:
        index.with_suffix(_ARRAY).unlink(missing_ok=True)


def set_aside(index: pathlib.Path) -> str:
    """Renames the array of a damaged part, in place of an older damaged one, and removes the index.

    Returns:
      The new name; "" if nothing can be renamed.
    """
    file = index.with_suffix(_ARRAY)
    kept = index.with_name(_DAMAGED)
    try:
        os.replace(file if file.exists() else index, kept)
        index.unlink(missing_ok=True)
    except OSError:
        return ""
    return kept.name


def remains(folder: pathlib.Path) -> list[pathlib.Path]:
    """Arrays without an index: of parts that were removed while another machine used them, or of killed processes."""
    known = {index.with_suffix(_ARRAY) for index in indices(folder)}
    return [path for path in folder.glob(f"{_NAME}*{_ARRAY}") if path not in known]


def remove_remains(folder: pathlib.Path, *, mapped: bool) -> None:
    """Removes `remains` unless another machine may have `mapped` them, and what killed processes were writing.

    Only for the owner of the folder's lock.
    """
    for path in (*(() if mapped else remains(folder)), *folder.glob(f".{_NAME}*{_TEMPORARY}")):
        path.unlink(missing_ok=True)
