"""What lies in a converted folder, looked at before anything is read: files, their sizes, and the arrays' metadata.

A folder may come from elsewhere. Its manifest says which arrays there are; nothing is allocated for them, and nothing
is opened outside of the folder, before the files agree.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxboost import io
from jaxboost.convert import file_kinds
from jaxboost.errors import UserError

_METADATA = ".zarray"
# zstd packs no more than 128 KiB into the 4 bytes of a block.
_GREATEST_RATIO, _SLACK = 1 << 15, 1 << 17


def check_inside(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Checks that a part of a converted folder consists of regular files and folders that lie inside of it.

    Args:
      root: the converted folder.
      folder: the part.

    Raises:
      UserError: a link leads out of `root`, or there is a pipe or a device.
    """
    inside = root.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = pathlib.Path(parent) / name
            if not path.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} is a link that leads out of {root}: copy what it links to into its place "
                    "(`cp -rL` copies a folder so)"
                )
            if name in files:
                _check_file(path)


def is_sound(array: pathlib.Path, shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether the folder of an array has the metadata that the manifest asks for, and files that can hold it.

    Args:
      array: as `store.save` writes it: zarr's metadata, and one chunk.
      shape, dtype: of the manifest.
    """
    shape, name = list(shape), "bfloat16" if dtype.name == "bfloat16" else dtype.str
    expected: dict[str, Any] = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": shape,
        "dtype": name,
        "order": "C",
        "filters": None,
        "fill_value": None,
        "dimension_separator": ".",
    }
    try:
        found = io.read_json(array / _METADATA)
        compressor = found.pop("compressor")
        size = (array / ".".join("0" for _ in shape)).stat().st_size
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False
    packed = isinstance(compressor, dict) and compressor.get("id") == "zstd"
    if found != expected or not (packed or compressor is None):
        return False
    wanted = math.prod(shape) * dtype.itemsize
    return wanted <= (size * _GREATEST_RATIO + _SLACK if packed else size)


def _check_file(path: pathlib.Path) -> None:
    try:
        file_kinds.check_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
