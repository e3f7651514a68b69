"""Reads one DICOM file as an 8-bit picture, shown as its tags say. Needs the packages of the extra `dicom`.

docs/dicom.md lists the tags and their effects.
"""

import pathlib

import numpy as np

from jaxboost.data.readers.arrays import MAX_PIXELS
from jaxboost.data.readers.dicom_colour import to_colour
from jaxboost.data.readers.dicom_display import to_grey
from jaxboost.data.readers.dicom_file import open_dicom
from jaxboost.data.readers.dicom_pixels import GREY, decode, read_layout


def read_dicom(path: pathlib.Path, *, max_pixels: int = MAX_PIXELS, nan: float | None = None) -> np.ndarray:
    """Reads the image of a file.

    Args:
      path: the file.
      max_pixels: the most pixels that it may hold; a larger one is refused before its pixels are read.
      nan: the number that replaces values that are not finite; None: such a file is refused.

    Returns:
      uint8 (H, W), or (H, W, 3) if the image is in colour.

    Raises:
      ProblemError: it is not a DICOM file, holds no image or several, has a compression that no installed package can
        read, is damaged, or its tags do not define the meaning of its values.
    """
    with open_dicom(path) as file:
        layout = read_layout(file, max_pixels)
        pixels, colours = decode(file, layout)
        if layout.photometric in GREY:
            return to_grey(pixels, layout, file.header, nan)
        picture = to_colour(pixels, colours, layout, file.header)
        if (picture == picture[..., :1]).all():
            return np.ascontiguousarray(picture[..., 0])
        return picture
