"""Reads .npy files, checks stored values, and converts them to levels from 0 to 255."""

import fractions
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.readers.regular_files import open_regular
from jaxboost.errors import UserError

SUFFIX = ".npy"
# Defaults of data.max_pixels and data.max_voxels. A mammogram has 2**25 pixels; a CT scan of 2,000 slices has 2**29
# voxels.
MAX_PIXELS = 2**26
MAX_VOXELS = 2**29
# Values that are converted to levels at a time: their copies in float64 take 32 MiB.
_CHUNK_VALUES = 2**22
_SLAB_VALUES = 2**18
# Bytes of an .npy file's header; the header of an array of numbers has about 100.
_MAX_HEADER = 10_000


def read_npy(
    path: pathlib.Path, *, nan: float | None = None, check: Callable[[tuple[int, ...]], object] | None = None
) -> np.ndarray:
    """Reads an .npy file into an array in native byte order.

    The size of the file is compared with its header before memory is allocated.

    Args:
      path: the file.
      nan: the number that replaces values that are not finite; None: such a file is refused.
      check: called with the shape before the values are read; raises ProblemError if the shape is not accepted.

    Raises:
      ProblemError: the file cannot be read, or does not hold numbers.
    """
    with open_regular(path) as file:
        try:
            if file.read(4) == b"PK\x03\x04":
                raise ProblemError("is an .npz archive: save each of its arrays as one .npy file")
            file.seek(0)
            shape, dtype = _npy_header(file)
            _check_type(dtype, shape)
            present, announced = path.stat().st_size - file.tell(), math.prod(shape) * dtype.itemsize
            if present != announced:
                raise ProblemError(
                    f"cannot be read as an .npy file (its shape {shape} of {dtype} takes {announced} bytes, and the"
                    f" file has {present}): write it again with numpy.save"
                )
            if check is not None:
                check(shape)
            file.seek(0)
            array = np.load(file, allow_pickle=False, max_header_size=_MAX_HEADER)
        except ProblemError:
            raise
        # Damaged headers make numpy raise nearly anything.
        except Exception as error:
            raise ProblemError(
                f"cannot be read as an .npy file ({reason(error)}): write it again with numpy.save"
            ) from error
    return check_numbers(array.astype(array.dtype.newbyteorder("="), copy=False), nan=nan)


def npy_shape(path: pathlib.Path) -> tuple[int, ...]:
    """Returns the shape that the header of an .npy file has; its values are not read.

    Raises:
      ProblemError: it is no regular file, or its header is too large.
      OSError, ValueError: it cannot be read.
    """
    with open_regular(path) as file:
        return _npy_header(file)[0]


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
        return shape, dtype
    start = file.tell()
    if (length := int.from_bytes(file.read(4), "little")) > _MAX_HEADER:
        raise ProblemError(f"cannot be read as an .npy file (its header has {length} bytes): write it again")
    file.seek(start)
    # Version 3 differs from 2 only in the names of fields, which an array of numbers does not have.
    shape, _, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=_MAX_HEADER)
    return shape, dtype


def _check_type(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.hasobject:
        raise ProblemError("cannot be read as an .npy file (it holds Python objects): save an array of numbers")
    if dtype.kind not in "buif":
        raise ProblemError(
            f"holds values of type {dtype}, not real numbers: save them as real numbers, such as float32"
        )
    if any(side < 0 for side in shape):
        raise ProblemError(f"has the shape {shape}: write it again")
    if not math.prod(shape):
        raise ProblemError(f"is empty: its shape is {shape}: write it again")


def check_numbers(values: np.ndarray, nan: float | None = None) -> np.ndarray:
    """Returns `values` with `nan`, if it is given, in place of values that are not finite.

    Works in slabs, so that a volume takes no more memory. `values` are changed in place if their type can hold `nan`.

    Raises:
      ProblemError: the values are not real numbers, or they are not all finite and `nan` is None.
    """
    _check_type(values.dtype, values.shape)
    if values.dtype.kind != "f":
        return values
    across = int(np.argmax(np.abs(values.strides)))
    parts = list(slabs(values.shape, across))
    wrong = sum(values[part].size - np.count_nonzero(np.isfinite(values[part])) for part in parts)
    if not wrong:
        return values
    if nan is None:
        raise ProblemError(
            f"has {wrong} values that are NaN or infinite, of {values.size}",
            fix="set data.nan=0 (or another number) to replace them",
            setting="data.nan=''",
        )
    if not values.flags.writeable:
        values = values.copy()
    # In float16 and float32, the number itself may become infinite.
    if abs(nan) > float(np.finfo(values.dtype).max):
        values = values.astype(np.float64)
    for part in parts:
        values[part][~np.isfinite(values[part])] = nan
    return values


def slabs(shape: Sequence[int], axis: int) -> Iterator[tuple[slice, ...]]:
    """Yields slabs of an array along an axis: a quarter of a million values each, or one slice if it is larger."""
    step = max(1, _SLAB_VALUES * shape[axis] // math.prod(shape))
    for start in range(0, shape[axis], step):
        yield tuple(slice(start, start + step) if other == axis else slice(None) for other in range(len(shape)))


def replaced(values: np.ndarray, where: np.ndarray, number: float) -> np.ndarray:
    """Returns a copy of `values` with `number` at `where`; it is float64 if their own type cannot hold the number."""
    whole = float(number).is_integer() and values.dtype.kind in "iu"
    if whole and np.iinfo(values.dtype).min <= number <= np.iinfo(values.dtype).max:
        fits = True
    else:
        fits = values.dtype.kind == "f" and abs(number) <= float(np.finfo(values.dtype).max)
    copy = values.copy() if fits else values.astype(np.float64)
    copy[where] = int(number) if whole else number
    return copy


def check_window(window: Sequence[float]) -> None:
    """Raises UserError if data.window is neither empty nor a range."""
    numbers = all(isinstance(end, int | float) for end in window)
    if window and not (numbers and len(window) == 2 and np.isfinite(window).all() and window[0] < window[1]):
        raise UserError(
            f"data.window={tuple(window)}: give (low, high) with low below high, or () for the range of each file"
        )


def nan_value(text: str) -> float | None:
    """Returns data.nan as a number, None if it is empty; raises UserError if it is neither."""
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise UserError(f"data.nan={text!r}: give a number, such as 0, or nothing")
    return value


def to_levels(values: np.ndarray, window: Sequence[float] = ()) -> np.ndarray:
    """Converts values to float32 levels: 0 at the lower end of the window and below, 255 at its upper end and above.

    False and True become 0 and 255. Without a window, 8-bit values are levels already; of other types the least and
    the greatest value, which must differ, become 0 and 255.
    """
    if values.dtype == np.bool_:
        return values.astype(np.float32) * 255
    if values.dtype == np.uint8 and not window:
        return values.astype(np.float32)
    low, high = window or (values.min(), values.max())
    if values.dtype.kind in "iu" and values.dtype.itemsize > 4:
        return _long_levels(values, _exact(low), _exact(high))
    # In float32, 32-bit integers would lose their last digits before the subtraction.
    narrow = values.dtype.itemsize <= (2 if values.dtype.kind in "iu" else 4)
    number = np.longdouble if values.dtype == np.longdouble else np.float64
    with np.errstate(over="ignore", under="ignore"):
        low, high = number(low), number(high)
        # The difference of two finite numbers can be infinite.
        scale = 1.0 if np.isfinite(high - low) else 0.5
        low, extent = low * scale, high * scale - low * scale
        # The window can be wider or finer than float32 can represent.
        wide = np.float32 if narrow and np.isfinite(np.float32([low, extent])).all() and np.float32(extent) else number
        scaled = values.astype(wide) if scale == 1 else values.astype(wide) * wide(scale)
        levels = (scaled - wide(low)) / wide(extent) * wide(255)
    return np.clip(levels, 0, 255).astype(np.float32)


def _exact(number: float) -> fractions.Fraction:
    return fractions.Fraction(int(number) if isinstance(number, int | np.integer) else float(number))


def _long_levels(values: np.ndarray, low: fractions.Fraction, high: fractions.Fraction) -> np.ndarray:
    """Does the work of `to_levels` for 64-bit integers, which float64 would round before the subtraction."""
    limits = np.iinfo(values.dtype)
    first, last = (min(max(end, limits.min), limits.max) for end in (math.floor(low), math.ceil(high)))
    # Differences of 64-bit integers are exact modulo 2**64, and these differences are smaller.
    above = np.clip(values, first, last).astype(np.uint64) - np.uint64(first % 2**64)
    levels = (above.astype(np.float64) + float(first - low)) / float(high - low) * 255
    return np.clip(levels, 0, 255).astype(np.float32)


def to_bytes(values: np.ndarray, window: Sequence[float] = (), *, inverted: bool = False) -> np.ndarray:
    """Converts values to levels, rounded to uint8, without a floating-point copy of the whole array.

    Args:
      values: the stored values.
      window: see `to_levels`.
      inverted: whether low values are white: the levels are subtracted from 255.
    """
    if values.dtype == np.uint8 and not window:
        return 255 - values if inverted else values

    def rounded(part: np.ndarray) -> np.ndarray:
        levels = to_levels(part, window)
        return np.rint(255 - levels if inverted else levels).astype(np.uint8)

    if values.dtype == np.bool_:
        return rounded(values)
    window = window or (values.min(), values.max())
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        # A lookup table of all possible values.
        unsigned = np.dtype(f"u{values.dtype.itemsize}")
        table = rounded(np.arange(2 ** (8 * unsigned.itemsize), dtype=unsigned).view(values.dtype.newbyteorder("=")))
        return table[np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False).view(unsigned)]
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _CHUNK_VALUES * len(values) // values.size)
    for start in range(0, len(values), rows):
        levels[start : start + rows] = rounded(values[start : start + rows])
    return levels


def check_shows(image: np.ndarray, window: Sequence[float] = ()) -> None:
    """Raises ProblemError if all values of an image are equal."""
    if image.min() == image.max():
        setting = f"data.window={tuple(window)}" if window else ""
        within = f" within {setting}" if window else ""
        raise ProblemError(
            f"shows nothing{within}: every value is {float(image.flat[0]):g}",
            fix="give another data.window, or leave the file out" if window else "leave the file out",
            setting=setting,
        )
