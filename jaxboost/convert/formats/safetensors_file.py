"""safetensors files, read by byte ranges: the same code reads a file on disk and one on the hub."""

import itertools
import json
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxboost.convert.formats import kinds
from jaxboost.convert.formats.tensors import TensorInfo, obstacle_of
from jaxboost.errors import UserError

_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_LENGTH_BYTES = 8


class SafetensorsFile:
    """Tensors of one file: 8 bytes of header length, the JSON header, then the tensors' bytes."""

    def __init__(self, where: str, size: int, read_range: Callable[[int, int], np.ndarray]):
        """Reads the header only.

        Args:
          where: the file, for messages.
          size: its size in bytes.
          read_range: returns the bytes [start, stop) as a new uint8 array.

        Raises:
          UserError: if the file is truncated or damaged, or is not a safetensors file.
        """
        self._where, self._read_range = where, read_range
        length = int.from_bytes(read_range(0, _LENGTH_BYTES).tobytes(), "little") if size >= _LENGTH_BYTES else 0
        self._data_start = _LENGTH_BYTES + length
        # The format's own limit: more is not a header.
        if not 0 < length <= min(kinds.MAX_SAFETENSORS_HEADER, size - _LENGTH_BYTES):
            kinds.refuse_known(where, read_range(0, min(size, kinds.HEAD_BYTES)).tobytes())
            raise UserError(f"{where} is not a safetensors file or is truncated in its header: download it again")
        try:
            text = read_range(_LENGTH_BYTES, self._data_start).tobytes()
            header = json.loads(text, object_pairs_hook=_without_duplicates)
            header.pop("__metadata__", None)
            self._entries = {name: _entry(entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where} has a broken safetensors header: download it again") from error
        spans = sorted((start, stop) for _, _, start, stop in self._entries.values())
        end = max((stop for _, stop in spans), default=0)
        if self._data_start + end > size:
            raise UserError(
                f"{where} is truncated: its header promises {self._data_start + end} bytes, it has {size}: "
                "download it again"
            )
        if any(after[0] < before[1] for before, after in itertools.pairwise(spans)):
            raise UserError(f"{where} has a broken safetensors header, its tensors overlap: download it again")

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._entries.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        dtype, shape, start, stop = self._entries[name]
        if dtype not in _DTYPES:
            return TensorInfo(shape, obstacle_of(dtype, _DTYPES))
        if stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
            return TensorInfo(shape, "has a shape that contradicts its size in bytes")
        return TensorInfo(shape)

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        dtype, shape, start, stop = self._entries[name]
        raw = self._read_range(self._data_start + start, self._data_start + stop)
        return raw.view(_DTYPES[dtype]).reshape(shape)

    def read_rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of tensor `name`, in this order; nothing else of it is read."""
        dtype, shape, start, _ = self._entries[name]
        size = math.prod(shape[1:]) * np.dtype(_DTYPES[dtype]).itemsize
        starts = [self._data_start + start + row * size for row in rows]
        raw = np.concatenate([self._read_range(first, first + size) for first in starts])
        return raw.view(_DTYPES[dtype]).reshape(len(rows), *shape[1:])


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, start and stop of a tensor in the header. Raises ValueError, KeyError or TypeError."""
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = isinstance(shape, list) and all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    if not isinstance(dtype, str) or not whole or start > stop:
        raise ValueError("not a tensor's entry")
    return dtype, tuple(shape), start, stop


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
