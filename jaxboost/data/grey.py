"""One radiograph, of any accepted format, as 8-bit grey."""

import pathlib

import numpy as np
from PIL import Image

from jaxboost.data.faults import FaultError, reason

DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = DICOM_SUFFIXES + PICTURE_SUFFIXES
# What pillow raises for a damaged file (SyntaxError: a broken PNG header).
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_grey(path: pathlib.Path) -> np.ndarray:
    """The image, uint8 (H, W): DICOM as its tags say; 8-bit pictures as they are, colour to grey; 16-bit min..max.

    Raises:
        FaultError: the file cannot be read, or shows nothing.
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        # Only here: the package pydicom is optional.
        from jaxboost.data.dicom import read_dicom

        grey = read_dicom(path)
    else:
        grey = _stretched(read_picture(path))
    if grey.min() == grey.max():
        raise FaultError(f"shows nothing: every pixel is {grey.min()}")
    return grey


def read_picture(path: pathlib.Path) -> np.ndarray:
    """A PNG or JPEG file as it is stored, made grey: uint8 or uint16 (H, W).

    Raises:
        FaultError: the file cannot be read.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            deep = picture.mode.startswith("I")
            return np.asarray(picture if deep else picture.convert("L"))
    except Image.UnidentifiedImageError:
        raise FaultError("is neither a PNG nor a JPEG file") from None
    except _DAMAGE as error:
        raise FaultError(f"cannot be read ({reason(error)})") from error


def _stretched(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    lowest, highest = int(pixels.min()), int(pixels.max())
    scale = 255 / max(highest - lowest, 1)
    return np.rint((pixels.astype(np.float32) - lowest) * scale).astype(np.uint8)
