"""Common parts of the readers of PNG, JPEG and TIFF files."""

import dataclasses

import numpy as np

from jaxboost.data.problems import ProblemError

ORIENTATION = 274  # tag of EXIF and TIFF


@dataclasses.dataclass(frozen=True)
class Picture:
    """An upright picture.

    Attributes:
      values: (H, W) or (H, W, 3). Values of 8 bits and fewer are uint8 levels, 0 black and 255 white; others are as
        stored.
      inverted: whether low values are white; always False if `values` are uint8.
    """

    values: np.ndarray
    inverted: bool = False


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raises ProblemError if an image has no pixels, or more than `limit`."""
    if width < 1 or height < 1:
        raise ProblemError(f"has no pixels: its size is {width} x {height}: copy it again, or leave it out")
    if width * height > limit:
        raise ProblemError(
            f"has {width} x {height} = {width * height} pixels, more than data.max_pixels={limit}",
            fix="make it smaller, or raise data.max_pixels if there is enough memory",
            setting=f"data.max_pixels={limit}",
        )


def upright(values: np.ndarray, orientation: object) -> np.ndarray:
    """Returns `values` (H, W, ...) turned and mirrored as the tag Orientation says; unknown orientations are ignored.

    The tag is that of TIFF 6.0 and EXIF: it says where the first row and the first column of the file belong.
    """
    # From 5 on, the rows of the file are columns of the picture.
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
