"""Checks the counts in a GGUF file's header before the gguf package reads it, which does not check them."""

import mmap
import pathlib
import struct

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# The largest vocabularies have a quarter of a million words. The package reads each element on its own.
_MAX_ELEMENTS = 1 << 22
_MAX_DIMENSIONS = 4
# Bytes of the smallest entries: a key with its kind and one byte; a tensor's name, axes, kind and offset.
_MIN_FIELD, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8


class _Reader:
    """Steps through the header. Raises ValueError for a count that is too large for the rest of the file."""

    def __init__(self, contents: mmap.mmap):
        self._contents, self._at, self._elements = contents, 0, 0
        self.order = "<"

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(self.order + kind, self._contents, self._at)
        self._at += struct.calcsize(kind)
        return value

    def count(self, min_bytes: int) -> int:
        """A number of entries, each of at least `min_bytes`."""
        found = self.number("Q")
        if found * min_bytes > len(self._contents) - self._at:
            raise ValueError
        return found

    def skip(self, size: int) -> None:
        if size > len(self._contents) - self._at:
            raise ValueError
        self._at += size

    def string(self) -> None:
        self.skip(self.count(1))

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY and depth < 2:
            element, length = self.number("I"), self.count(1)
            self._elements += length
            if self._elements > _MAX_ELEMENTS:
                raise ValueError
            if element in _SCALARS:
                self.skip(length * _SCALARS[element])
            else:
                for _ in range(length):
                    self.value(element, depth + 1)
        else:
            raise ValueError


def is_sound(path: pathlib.Path) -> bool:
    """Whether every count in the header fits into the file. The gguf package reads what the entries mean."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            _walk(_Reader(contents))
    except (ValueError, struct.error):
        return False
    return True


def _walk(reader: _Reader) -> None:
    reader.number("I")
    version = reader.number("I")
    if version & 0xFFFF == 0:
        reader.order = ">"
    elif version == 1:
        raise ValueError
    tensors, fields = reader.count(_MIN_TENSOR), reader.count(_MIN_FIELD)
    for _ in range(fields):
        reader.string()
        reader.value(reader.number("I"))
    for _ in range(tensors):
        reader.string()
        axes = reader.number("I")
        if axes > _MAX_DIMENSIONS:
            raise ValueError
        reader.skip(8 * axes + 4 + 8)
