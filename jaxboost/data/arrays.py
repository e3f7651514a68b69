"""Plain arrays of a user's folder: .npy files, and stored values as levels from 0 to 255."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxboost.data.faults import FaultError, reason
from jaxboost.errors import UserError

SUFFIX = ".npy"
# What a file may hold, unless data.max_pixels or data.max_voxels says otherwise: a mammogram has 2**25 pixels, a CT
# scan of 2,000 slices 2**29 voxels.
MAX_PIXELS = 2**26
MAX_VOXELS = 2**29


def read_npy(path: pathlib.Path) -> np.ndarray:
    """The array.

    Raises:
        FaultError: the file cannot be read, or does not hold numbers.
    """
    try:
        # Opened here: np.load leaves its own file open when the file is damaged.
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError, MemoryError) as error:
        raise FaultError(f"cannot be read as an .npy file ({reason(error)})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise FaultError("is an .npz archive: give one .npy file for each image")
    return check_numbers(array)


def check_numbers(values: np.ndarray) -> np.ndarray:
    """`values` as they are.

    Raises:
        FaultError: they are not real numbers, or not all finite.
    """
    if values.dtype.kind not in "buif":
        raise FaultError(f"holds values of type {values.dtype}, not real numbers")
    if not values.size:
        raise FaultError(f"is empty: its shape is {values.shape}")
    if values.dtype.kind == "f" and (wrong := values.size - np.count_nonzero(np.isfinite(values))):
        raise FaultError(f"has {wrong} values that are NaN or infinite")
    return values


def check_window(window: Sequence[float]) -> None:
    """Raises UserError where data.window is neither empty nor a range."""
    numbers = all(isinstance(end, int | float) for end in window)
    if window and not (numbers and len(window) == 2 and np.isfinite(window).all() and window[0] < window[1]):
        raise UserError(f"data.window={tuple(window)}: give (low, high) with low below high, or () for each file's own")


def nan_value(text: str) -> float | None:
    """data.nan as a number, None where it is empty; raises UserError where it is neither."""
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise UserError(f"data.nan={text!r}: give a number, such as 0, or nothing")
    return value


def check_limits(max_pixels: int, max_voxels: int) -> None:
    """Raises UserError where data.max_pixels or data.max_voxels is below 1."""
    for name, limit in (("max_pixels", max_pixels), ("max_voxels", max_voxels)):
        if limit < 1:
            raise UserError(f"data.{name}={limit}: give 1 or more")


def to_levels(values: np.ndarray, window: Sequence[float] = ()) -> np.ndarray:
    """`values` as float32 levels, 0 for the lower end of the window and below, 255 for its upper end and above.

    Without a window, 8-bit values are levels already, False and True are 0 and 255, and the others' least and greatest
    become 0 and 255; they must differ.
    """
    if values.dtype == np.bool_:
        return values.astype(np.float32) * 255
    if values.dtype == np.uint8 and not window:
        return values.astype(np.float32)
    low, high = map(float, window or (values.min(), values.max()))
    # In float32, whole numbers of 32 bits would lose their last digits before the subtraction.
    narrow = values.dtype.itemsize <= (2 if values.dtype.kind in "iu" else 4)
    wide = np.float32 if narrow else np.float64
    with np.errstate(over="ignore"):
        levels = (values.astype(wide) - wide(low)) / wide(high - low) * wide(255)
    return np.clip(levels, 0, 255).astype(np.float32)


def check_shows(image: np.ndarray, window: Sequence[float] = ()) -> None:
    """Raises FaultError where every value of an image is the same."""
    if image.min() == image.max():
        within = f" within data.window={tuple(window)}" if window else ""
        raise FaultError(f"shows nothing{within}: every value is {image.flat[0]:g}")
