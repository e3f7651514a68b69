"""A safetensors file, read by byte ranges so that a file on the hub and a file on disk go the same way."""

import itertools
import json
import math
from collections.abc import Callable, Collection
from typing import Any

import ml_dtypes
import numpy as np

from jaxboost.convert import file_kinds
from jaxboost.convert.names import TensorInfo
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
        # The format's own limit: what lies above is not a header.
        if not 0 < length <= min(file_kinds.MAX_SAFETENSORS_HEADER, size - _LENGTH_BYTES):
            file_kinds.refuse_known(where, read_range(0, min(size, file_kinds.HEAD_BYTES)).tobytes())
            raise UserError(f"{where} is not a safetensors file or is truncated in its header: download it again")
        try:
            text = read_range(_LENGTH_BYTES, self._data_start).tobytes()
            header = json.loads(text, object_pairs_hook=_without_duplicates)
            header.pop("__metadata__", None)
            self._entries = {name: _entry(entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where} has a broken safetensors header: download it again") from error
        places = sorted((start, stop) for _, _, start, stop in self._entries.values())
        end = max((stop for _, stop in places), default=0)
        if self._data_start + end > size:
            raise UserError(
                f"{where} is truncated: its header promises {self._data_start + end} bytes, it has {size}: "
                "download it again"
            )
        if any(after[0] < before[1] for before, after in itertools.pairwise(places)):
            raise UserError(f"{where} has a broken safetensors header, its tensors overlap: download it again")

    @property
    def names(self) -> Collection[str]:
        return self._entries.keys()

    def info(self, name: str) -> TensorInfo:
        dtype, shape, start, stop = self._entries[name]
        if dtype not in _DTYPES:
            return TensorInfo(shape, f"is stored as {dtype}: only {', '.join(_DTYPES)} are read")
        if stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
            return TensorInfo(shape, "has a shape that contradicts its size in bytes")
        return TensorInfo(shape)

    def read(self, name: str) -> np.ndarray:
        dtype, shape, start, stop = self._entries[name]
        raw = self._read_range(self._data_start + start, self._data_start + stop)
        return raw.view(_DTYPES[dtype]).reshape(shape)


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape and place of a tensor, from its entry in the header. Raises ValueError, KeyError or TypeError."""
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = isinstance(shape, list) and all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    if not isinstance(dtype, str) or not whole or start > stop:
        raise ValueError("an entry that is none")
    return dtype, tuple(shape), start, stop


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that is there twice")
    return found
