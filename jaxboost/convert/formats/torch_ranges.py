"""PyTorch's state dicts (.bin), read by byte ranges: the counterpart of `safetensors_file` for files on the hub.

torch.save writes a zip archive that is not compressed: `data.pkl` says which tensor is in which storage, and each
storage is an entry of its own. torch is not needed, and no code of the file can run: its pickle may only name the few
functions below, all of which are ours.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxboost.convert.formats import kinds
from jaxboost.convert.formats.settings import MAX_BYTES
from jaxboost.convert.formats.tensors import TensorInfo, obstacle_of
from jaxboost.errors import UserError

# PyTorch's name of a kind of storage -> its dtype.
_DTYPES = {"Float": np.float32, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16}
_NAMES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16"}
_LOCAL_HEADER = 30

ReadRange = Callable[[int, int], np.ndarray]


class _Storage(NamedTuple):
    kind: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchRanges:
    """Tensors of one state dict."""

    def __init__(self, where: str, size: int, read_range: ReadRange):
        """Reads the archive's directory and its pickle.

        Args:
          where: the file, for messages.
          size: its size in bytes.
          read_range: returns the bytes [start, stop) as a new uint8 array.

        Raises:
          UserError: the file is truncated, of the old format, or holds more than tensors.
        """
        self._where, self._read_range = where, read_range
        head = read_range(0, min(size, kinds.HEAD_BYTES)).tobytes()
        kinds.check_torch_head(where, head, "download the repository and pass its folder")
        file = _File(size, read_range)
        kinds.check_torch_archive(where, file)
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickled = next(name for name in entries if name.rpartition("/")[2] == "data.pkl")
            self._base = pickled.removesuffix("data.pkl")
            if entries[pickled].file_size > MAX_BYTES:
                raise UserError(f"{where} lists more tensors than a model has: download it again")
            try:
                order = archive.read(f"{self._base}byteorder") if f"{self._base}byteorder" in entries else b"little"
                contents = _Unpickler(io.BytesIO(archive.read(pickled))).load()
            except _UnsafeError as error:
                raise UserError(
                    f"{where} holds more than tensors ({error}): download it, and save its weights alone, with"
                    " torch.save(model.state_dict(), 'pytorch_model.bin')"
                ) from error
            except Exception as error:
                # A damaged pickle can raise any error; nothing but reading happens here.
                raise UserError(f"{where} is truncated or damaged: download it again") from error
        if order != b"little":
            raise UserError(f"{where} was written on a machine with another byte order: take another copy")
        if not isinstance(contents, dict) or not all(
            isinstance(name, str) and isinstance(each, _Tensor) for name, each in contents.items()
        ):
            raise UserError(
                f"{where} is not a plain mapping of names to tensors: download it, and save its weights alone, with"
                " torch.save(model.state_dict(), 'pytorch_model.bin')"
            )
        self._tensors: dict[str, _Tensor] = dict(contents)
        self._entries = entries

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        storage, offset, shape, strides = self._tensors[name]
        if obstacle := obstacle_of(_NAMES.get(storage.kind, storage.kind.lower())):
            return TensorInfo(shape, obstacle)
        entry = self._entries.get(f"{self._base}data/{storage.key}")
        stored = 0 if entry is None else entry.file_size // np.dtype(_DTYPES[storage.kind]).itemsize
        if offset + _extent(shape, strides) > stored:
            return TensorInfo(shape, "has a shape that contradicts its size in bytes")
        if math.prod(shape) > stored:
            return TensorInfo(shape, "repeats its values, so that its file does not hold them all")
        return TensorInfo(shape)

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        storage, offset, shape, strides = self._tensors[name]
        dtype = np.dtype(_DTYPES[storage.kind])
        start = self._entries[f"{self._base}data/{storage.key}"].header_offset
        # The names' lengths in the directory may differ from those here, because torch fills up to a multiple of 64.
        header = self._read_range(start, start + _LOCAL_HEADER).tobytes()
        start += _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start += offset * dtype.itemsize
        flat = self._read_range(start, start + _extent(shape, strides) * dtype.itemsize).view(dtype)
        steps = tuple(stride * dtype.itemsize for stride in strides)
        return np.asarray(np.lib.stride_tricks.as_strided(flat, shape, steps), order="C")


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first one of a tensor to its last one."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if 0 not in shape else 0


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """In the place of torch._utils._rebuild_tensor_v2."""
    numbers = (offset, *shape, *strides)
    sound = isinstance(storage, _Storage) and len(shape) == len(strides)
    if not sound or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("not a tensor")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    """In the place of torch._utils._rebuild_parameter."""
    return tensor


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _UnsafeError(Exception):
    """A pickle names another function than ours."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name.removesuffix("Storage")
        if (module, name) not in _KNOWN:
            raise _UnsafeError(f"{module}.{name}"[:80])
        # A pickle can set attributes of what it gets, which must not outlast it.
        return lambda *given: _KNOWN[module, name](*given)

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, numel = pid
        if what != "storage" or not all(isinstance(each, str) for each in (kind, key)):
            raise ValueError("not a storage")
        return _Storage(kind, key, int(numel))


class _File(io.RawIOBase):
    """What zipfile needs of a file."""

    def __init__(self, size: int, read_range: ReadRange):
        self._size, self._read_range, self._at = size, read_range, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        stop = min(self._at + len(buffer), self._size)
        length = max(0, stop - self._at)
        if length:
            buffer[:length] = self._read_range(self._at, stop).tobytes()
        self._at += length
        return length
