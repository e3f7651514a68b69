"""One part of a converted folder: a safetensors file, written array by array and read memory-mapped.

The manifest determines which arrays a file has. So the file's header is known before it is opened, and a different
header is refused without parsing it. Any safetensors reader can open these files.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxboost import io
from jaxboost.convert.formats import kinds
from jaxboost.convert.tables.parts import Part, Shapes
from jaxboost.errors import UserError

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SUFFIX = ".safetensors"
_FORMAT_NAMES = {"float32": "F32", "bfloat16": "BF16"}


def stem(key: str) -> str:
    """Name of a part's file without its ending."""
    return f"layer_{int(key):05d}" if key.isdigit() else key


def file_name(key: str) -> str:
    """Name of a part's file, by the part's key in the manifest."""
    return stem(key) + SUFFIX


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        _update(digest, name, array)
    return digest.hexdigest()


class RunningFingerprint:
    """The `fingerprint` of arrays that are given one after the other, in the order of their names."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, array: np.ndarray) -> None:
        """Adds the next array."""
        _update(self._digest, name, array)

    def value(self) -> str:
        """The fingerprint of all arrays so far."""
        return self._digest.hexdigest()


def write(folder: pathlib.Path, part: Part, dtype: np.dtype, progress: Callable[[int], Any]) -> str:
    """Reads a part from its source and writes it into `folder`; one array at a time is in memory.

    Args:
      folder: of all parts, which exists.
      part: what is written.
      dtype: one of DTYPES.
      progress: gets the number of bytes of each array that was written.

    Returns:
      The part's `fingerprint`.

    Raises:
      UserError: an array holds NaN or infinity; or the system refuses to write.
    """
    digest, path = hashlib.sha256(), folder / file_name(part.key)
    with contextlib.ExitStack() as stack:
        with io.writing(folder.parent):
            file = stack.enter_context(path.open("xb"))
            file.write(_header(part.shapes, dtype))
        for name, shape in sorted(part.shapes.items()):
            array = part.read(name, dtype)
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"{name} of {part.key} was read as {array.dtype} {array.shape}, not {dtype} {shape}")
            _check_finite(array, f"{name} of {stem(part.key)}")
            _update(digest, name, array)
            with io.writing(folder.parent):
                file.write(_bytes(array))
            progress(array.nbytes)
        with io.writing(folder.parent):
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest()


def read(
    root: str | os.PathLike, key: str, shapes: Shapes, dtype: np.dtype, sha256: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a part's arrays in the order of their names, and raises at the end if their values were altered.

    The arrays are read-only views of the mapped file. Copy an array to keep it.

    Args:
      root: the converted folder.
      key: of the part.
      shapes: of its arrays.
      dtype: of its arrays.
      sha256: its `fingerprint`, from the manifest.

    Raises:
      UserError: the part is missing or altered, or is not a regular file inside `root`.
    """
    path = pathlib.Path(root) / file_name(key)
    altered = UserError(f"{path} is altered or truncated: convert again")
    header, digest = _header(shapes, dtype), hashlib.sha256()
    offset = len(header)
    size = offset + sum(map(math.prod, shapes.values())) * dtype.itemsize
    try:
        _check_inside(pathlib.Path(root), path)
        with path.open("rb") as file:
            # Checked before anything is mapped: the manifest may describe more bytes than the file has.
            if os.fstat(file.fileno()).st_size != size or file.read(len(header)) != header:
                raise altered
            for name, shape in sorted(shapes.items()):
                # One map for each array, so that its pages are released before the next array.
                array = np.memmap(file, dtype, "r", offset, shape)
                offset += array.nbytes
                _update(digest, name, array)
                yield name, array
    except FileNotFoundError:
        raise UserError(f"{path} is missing: copy the folder again, or convert again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != sha256:
        raise altered


def _header(shapes: Shapes, dtype: np.dtype) -> bytes:
    """The header's length in 8 bytes, then the header: JSON, filled with spaces to a multiple of 8 bytes."""
    entries, offset = {}, 0
    for name, shape in sorted(shapes.items()):
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _FORMAT_NAMES[dtype.name], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_finite(array: np.ndarray, what: str) -> None:
    # min and max both propagate NaN, and need no memory.
    with np.errstate(invalid="ignore"):
        ends = float(array.min()), float(array.max())
    if not np.isfinite(ends).all():
        raise UserError(
            f"{what} holds NaN or infinity in {array.dtype}: the source is damaged or its training diverged: download "
            "it again, or choose another"
        )


def _check_inside(root: pathlib.Path, path: pathlib.Path) -> None:
    """Raises UserError if a part is not a regular file, or a link that leads out of `root`."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{path} is a link that leads out of {root}: replace it by what it links to (`cp -rL` copies a folder so)"
        )
    kinds.check_regular(path)


def _update(digest: "hashlib._Hash", name: str, array: np.ndarray) -> None:
    digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
    digest.update(_bytes(array))


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
