"""Arrays that are computed once and kept in an .npz file: checked when read, set aside when damaged."""

import logging
import math
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
    check: Callable[[Mapping[str, np.ndarray]], T],
    *,
    most_bytes: float = math.inf,
) -> T | None:
    """Reads a file that `npz.write_npz` made.

    Args:
      path: the file.
      names: of the arrays to read.
      check: converts the arrays, and raises UserError, ValueError, TypeError or KeyError where they are damaged.
      most_bytes: limit for all arrays together; a damaged header may ask for any amount of memory.

    Returns:
      The value of `check`; None where the arrays have to be computed: there is no file, or it is damaged. A damaged
      file is set aside, with a warning.
    """
    if not path.exists():
        return None
    try:
        return check(open_npz(path, names, most_bytes=most_bytes))
    except (UserError, ValueError, TypeError, KeyError, MemoryError) as error:
        logger.warning("the cached arrays in %s are damaged and are computed again: %s", path.name, error)
    try:
        set_aside(path)
    except OSError as error:
        logger.warning("%s cannot be renamed (%s)", path, error.strerror)
    return None
