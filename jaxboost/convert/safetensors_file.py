"""A safetensors file, read by byte ranges so that a file on the hub and a file on disk go the same way."""

import json
import math
from collections.abc import Callable, Collection

import ml_dtypes
import numpy as np

from jaxboost.convert.names import TensorInfo
from jaxboost.errors import UserError

_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_LENGTH_BYTES = 8
# The format's own limit: what lies above is not a header.
_MAX_HEADER_BYTES = 100_000_000


class SafetensorsFile:
    """Tensors of one file: 8 bytes of header length, the JSON header, then the tensors' bytes."""

    def __init__(self, where: str, size: int, read_range: Callable[[int, int], np.ndarray]):
        """Reads the header only.

        Args:
          where: the file, for messages.
          size: its size in bytes.
          read_range: returns the bytes [start, stop) as a new uint8 array.

        Raises:
          UserError: if the file is truncated or is not a safetensors file.
        """
        self._where, self._read_range = where, read_range
        length = int.from_bytes(read_range(0, _LENGTH_BYTES).tobytes(), "little") if size >= _LENGTH_BYTES else 0
        self._data_start = _LENGTH_BYTES + length
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise UserError(
                f"{where} is not a safetensors file (a Git LFS pointer?) or is truncated in its header: "
                "download it again"
            )
        try:
            header = json.loads(read_range(_LENGTH_BYTES, self._data_start).tobytes())
            header.pop("__metadata__", None)
            self._entries = {
                name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in header.items()
            }
            end = max((stop for _, _, _, stop in self._entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} has a broken safetensors header: download it again") from error
        if self._data_start + end > size:
            raise UserError(
                f"{where} is truncated: its header promises {self._data_start + end} bytes, it has {size}: "
                "download it again"
            )

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
