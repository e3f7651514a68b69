"""One 2-D image of any accepted format, as 8 bits: DICOM, PNG, JPEG, TIFF or .npy."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from jaxboost.data.arrays import MAX_PIXELS, SUFFIX, check_numbers, check_shows, read_npy, to_levels
from jaxboost.data.faults import FaultError, reason

DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (*DICOM_SUFFIXES, *PICTURE_SUFFIXES, SUFFIX)
# What pillow raises for a damaged file (SyntaxError: a broken PNG header; EOFError, RuntimeError: a broken TIFF).
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, KeyError, TypeError, Image.DecompressionBombError)


def read_image(
    path: pathlib.Path, window: Sequence[float] = (), *, nan: float | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The image, uint8 (H, W), or (H, W, 3) where it is in colour.

    DICOM is shown as its tags say, and 8-bit values stay as they are; of others the ends of `window` become 0 and 255,
    or where it is not given the least and the greatest. A picture is turned as its EXIF tag says.

    Args:
        nan: what values that are not finite are read as; None: such a file is refused.
        max_pixels: that the file may hold.

    Raises:
        FaultError: the file cannot be read, or shows nothing.
    """
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        # Only here: the package pydicom is optional.
        from jaxboost.data.dicom import read_dicom

        image = read_dicom(path, max_pixels=max_pixels, nan=nan)
        check_shows(image)
        return image
    stored = read_npy(path) if suffix == SUFFIX else read_picture(path)
    if stored.ndim not in (2, 3) or (stored.ndim == 3 and stored.shape[2] != 3):
        raise FaultError(f"has the shape {stored.shape}, not (H, W) or (H, W, 3)")
    check_shows(stored)
    used = () if stored.dtype == np.uint8 else window
    image = np.rint(to_levels(stored, used)).astype(np.uint8)
    check_shows(image, used)
    if image.ndim == 3 and (image == image[..., :1]).all():
        return np.ascontiguousarray(image[..., 0])
    return image


def read_picture(path: pathlib.Path) -> np.ndarray:
    """A PNG, JPEG or TIFF file as it is stored: (H, W), or uint8 (H, W, 3); transparency is left out.

    Raises:
        FaultError: the file cannot be read, or has several pages.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
            if picture.format == "TIFF" and picture.n_frames > 1:
                raise FaultError(f"has {picture.n_frames} pages: give one file for each image")
            # I and I;16: whole numbers of more than 8 bits; F: floating point.
            if picture.mode.startswith("I") or picture.mode == "F":
                return check_numbers(np.asarray(picture))
            picture = ImageOps.exif_transpose(picture)
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    except Image.UnidentifiedImageError:
        raise FaultError("is neither a PNG nor a JPEG nor a TIFF file that can be read") from None
    except _DAMAGE as error:
        raise FaultError(f"cannot be read ({reason(error)})") from error
