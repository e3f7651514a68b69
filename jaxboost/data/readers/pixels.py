"""What the readers of PNG, JPEG and TIFF files have in common."""

import dataclasses

import numpy as np

from jaxboost.data.problems import ProblemError

ORIENTATION = 274  # the tag of EXIF and TIFF


@dataclasses.dataclass(frozen=True)
class Picture:
    """Stored values (H, W) or (H, W, 3), upright.

    Attributes:
      values: of 8 bits and fewer, uint8 levels where 0 is black and 255 white; else as they are stored.
      inverted: low values are white. Never where `values` are uint8.
    """

    values: np.ndarray
    inverted: bool = False


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raises ProblemError where an image has no pixels or more than `limit`."""
    if width < 1 or height < 1:
        raise ProblemError(f"has no pixels: its size is {width} x {height}")
    if width * height > limit:
        raise ProblemError(
            f"has {width} x {height} = {width * height} pixels, more than data.max_pixels={limit}: make it smaller, or"
            " raise data.max_pixels where memory allows it"
        )


def upright(values: np.ndarray, orientation: object) -> np.ndarray:
    """`values` (H, W, ...) turned and mirrored as the tag Orientation says; unknown values of it are ignored.

    The values are those of TIFF 6.0 and of EXIF: where the first row and the first column of the file belong.
    """
    # Numbers of 5 and above: the rows of the file are columns.
    turned = {
        2: lambda v: v[:, ::-1],
        3: lambda v: v[::-1, ::-1],
        4: lambda v: v[::-1],
        5: lambda v: v.swapaxes(0, 1),
        6: lambda v: v[::-1].swapaxes(0, 1),
        7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
        8: lambda v: v[:, ::-1].swapaxes(0, 1),
    }
    turn = turned.get(orientation) if isinstance(orientation, int) else None
    return values if turn is None else np.ascontiguousarray(turn(values))
