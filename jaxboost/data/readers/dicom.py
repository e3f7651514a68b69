"""One DICOM file as an 8-bit picture, shown as its tags say. Needs the packages of the extra `dicom`.

docs/dicom.md lists what is done with which tag.
"""

import pathlib

import numpy as np

from jaxboost.data.readers.arrays import MAX_PIXELS
from jaxboost.data.readers.dicom_colour import to_colour
from jaxboost.data.readers.dicom_display import to_grey
from jaxboost.data.readers.dicom_file import open_dicom
from jaxboost.data.readers.dicom_pixels import GREY, decode, read_layout


def read_dicom(path: pathlib.Path, *, max_pixels: int = MAX_PIXELS, nan: float | None = None) -> np.ndarray:
    """The image, uint8 (H, W), or (H, W, 3) where it is in colour.

    Args:
      max_pixels: that the file may hold; more are refused before they are read.
      nan: what values that are not finite are read as; None: such a file is refused.

    Raises:
      ProblemError: it is no DICOM file, holds no image or several, is compressed in a way that no installed package
        can read, is damaged, or its tags or pixels leave its values uncertain.
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
