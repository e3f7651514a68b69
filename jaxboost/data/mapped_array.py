"""Arrays in .npy files that are written row by row, and mapped from disk when they are read."""

import os
import pathlib
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy


def state_of(file: pathlib.Path) -> dict[str, int]:
    """The current size of a file in bytes and its modification time in ns: another state means other content."""
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def open_array(file: pathlib.Path) -> np.memmap:
    """Maps an array, read-only.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no .npy file of numbers, or shorter than its header says.
    """
    return np.load(file, mmap_mode="r", allow_pickle=False)


class ArrayFile:
    """An .npy file under construction. Its number of rows is written last, into the header.

    Writes are not buffered, so that a refused one says which row is not there.

    Attributes:
      count: number of complete rows.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        """Creates the file for rows of a shape and type. Raises OSError if that is refused."""
        self.count = 0
        self._path, self._shape, self._dtype = path, shape, dtype
        self._file = path.open("x+b", buffering=0)
        self._header = self._write_header()

    def add(self, row: np.ndarray) -> None:
        """Appends a row. Raises OSError if the system refuses; the rows before it are complete."""
        self.write(row.astype(self._dtype, copy=False).reshape(self._shape))
        self.count += 1

    def write(self, values: np.ndarray) -> None:
        """Writes all bytes of an array."""
        _write_all(self._file, np.ascontiguousarray(values).data.cast("B") if values.size else b"")

    @property
    def nbytes(self) -> int:
        """Bytes of the complete rows."""
        return self.count * int(np.prod(self._shape)) * self._dtype.itemsize

    def mapped(self) -> np.memmap:
        """Maps the complete rows of a file that is open, read-only; they stay if it is closed, or loses its name.

        Raises:
          OSError: the system refuses.
        """
        shape = (self.count, *self._shape)
        return np.memmap(self._file, self._dtype, "r", self._header, shape)

    def close(self, *, sync: bool) -> None:
        """Cuts off a row that is not complete, and writes the header.

        Args:
          sync: wait until the content is on the disk, so that it survives a power cut.

        Raises:
          OSError: the system refuses; the file is closed, and the rows may not be there.
        """
        if self._file.closed:
            return
        with self._file:
            self._file.truncate(self._header + self.nbytes)
            self._file.seek(0)
            self._write_header()
            if sync:
                os.fsync(self._file.fileno())

    def _write_header(self) -> int:
        """Writes the header; its length does not depend on the number of rows. Returns the length."""
        about: dict[str, Any] = {
            "shape": (self.count, *self._shape),
            "fortran_order": False,
            "descr": npy.dtype_to_descr(self._dtype),
        }
        npy.write_array_header_1_0(self._file, about)
        return self._file.tell()


def _write_all(file: BinaryIO, content: Any) -> None:
    view = memoryview(content)
    while len(view):
        view = view[file.write(view) :]
