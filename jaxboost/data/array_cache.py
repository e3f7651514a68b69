"""Cached arrays in .npz files. They are checked when they are read; a damaged file is renamed."""

import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from jaxboost.data.readers.npz import open_npz
from jaxboost.errors import UserError
from jaxboost.io import set_aside

T = TypeVar("T")

logger = logging.getLogger(__name__)


def read(
    path: pathlib.Path,
    names: Sequence[str],
    convert: Callable[[Mapping[str, np.ndarray]], T],
    *,
    most_bytes: float = math.inf,
) -> T | None:
    """Reads a file that `npz.write_npz` made.

    Args:
      path: the file.
      names: names of the arrays to read.
      convert: converts the arrays, and raises UserError, ValueError, TypeError or KeyError if they are damaged.
      most_bytes: limit for all arrays together; a damaged header may ask for any amount of memory.

    Returns:
      The value of `convert`; None if there is no file, or if it is damaged. A damaged file is renamed, with a warning.
    """
    if not os.path.exists(path):
        return None
    try:
        return convert(open_npz(path, names, most_bytes=most_bytes))
    except (UserError, ValueError, TypeError, KeyError, MemoryError) as error:
        logger.warning("the cached arrays in %s are damaged and are computed again: %s", path.name, error)
    try:
        set_aside(path)
    except OSError as error:
        logger.warning("%s cannot be renamed (%s)", path, error.strerror)
    return None
