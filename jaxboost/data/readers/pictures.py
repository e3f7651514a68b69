"""Reads one 2-D image of any accepted format as 8 bits: DICOM, PNG, JPEG, TIFF or .npy."""

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.readers import jpeg, png, tiff
from jaxboost.data.readers.arrays import MAX_PIXELS, SUFFIX, check_numbers, check_shows, read_npy, to_bytes
from jaxboost.data.readers.pixels import Picture, check_pixels
from jaxboost.data.readers.regular_files import open_regular
from jaxboost.data.readers.signatures import HEAD, content

DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (*DICOM_SUFFIXES, *PICTURE_SUFFIXES, SUFFIX)

# Errors are raised. Warnings would only be lines on the terminal without the file's name.
warnings.filterwarnings("ignore", module=r"PIL\.|tifffile")


def read_shown(
    path: pathlib.Path, window: Sequence[float] = (), *, nan: float | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, bool | None]:
    """Reads an image.

    A DICOM file is shown as its tags say. Other files: values of 8 bits and fewer stay unchanged; other values are
    scaled so that the ends of `window` become 0 and 255. A picture is rotated as its orientation tag (EXIF or TIFF)
    says.

    Args:
      path: the file; its extension says whether it is DICOM, .npy or a picture.
      window: (low, high); (): the least and the greatest value of all channels.
      nan: the number that replaces values that are not finite; None: such a file is refused.
      max_pixels: the most pixels that the file may hold; compared with its header before it is decoded.

    Returns:
      uint8 (H, W), or (H, W, 3) if the image is in colour; and whether it has more than 8 bits and is scaled by its own
      range, None for DICOM, where the tags give the range.

    Raises:
      ProblemError: the file cannot be read exactly, or shows nothing.
    """
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return _read_dicom(path, nan, max_pixels), None
    stored = _read_array(path, nan, max_pixels) if suffix == SUFFIX else _read_stored(path, nan, max_pixels)
    check_shows(stored.values)
    levels = stored.values.dtype in (np.uint8, np.bool_)
    used = () if levels else window
    try:
        image = to_bytes(stored.values, used, inverted=stored.inverted)
    except MemoryError:
        raise ProblemError("needs more memory than is available") from None
    check_shows(image, used)
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    return image, not levels and not window


def read_picture(path: pathlib.Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the stored values of a PNG, JPEG or TIFF file, (H, W) or (H, W, 3), without transparency.

    Raises:
      ProblemError: the file cannot be read exactly, has several pages, or has more than 8 bits with white as 0.
    """
    stored = _read_stored(path, None, max_pixels)
    if stored.inverted:
        raise ProblemError("has more than 8 bits and 0 as white: save it with 0 as black")
    return stored.values


def _read_dicom(path: pathlib.Path, nan: float | None, max_pixels: int) -> np.ndarray:
    # Imported here because pydicom is an optional package.
    from jaxboost.data.readers.dicom import read_dicom

    image = read_dicom(path, max_pixels=max_pixels, nan=nan)
    check_shows(image)
    return image


def _read_stored(path: pathlib.Path, nan: float | None, max_pixels: int) -> Picture:
    with open_regular(path) as file:
        start = file.read(HEAD)
        file.seek(0)
        try:
            if start.startswith(png.SIGNATURE):
                return png.read_png(file, max_pixels)
            if start.startswith(jpeg.SIGNATURE):
                return jpeg.read_jpeg(file, max_pixels)
            if start.startswith(tiff.SIGNATURES):
                stored = tiff.read_tiff(file, max_pixels, nan)
                return Picture(check_numbers(stored.values, nan), stored.inverted)
        except ProblemError:
            raise
        except MemoryError:
            raise ProblemError("needs more memory than is available") from None
        # Damaged files make the decoders raise nearly anything.
        except Exception as error:
            # Messages of other types explain nothing; that of a KeyError is only the key.
            explained = isinstance(error, OSError | SyntaxError | ValueError)
            text = reason(error) if explained else "it is damaged"
            raise ProblemError(f"cannot be read ({text}): copy it again, or save it again") from error
    if not start:
        raise ProblemError("is empty: it has 0 bytes: copy it again")
    if other := content(start):
        raise ProblemError(other)
    raise ProblemError("is neither a PNG nor a JPEG nor a TIFF file that can be read: convert it to PNG")


def _read_array(path: pathlib.Path, nan: float | None, max_pixels: int) -> Picture:
    def check(shape: tuple[int, ...]) -> None:
        height, width = _picture_shape(shape)[:2]
        check_pixels(width, height, max_pixels)

    values = read_npy(path, nan=nan, check=check)
    return Picture(values.reshape(_picture_shape(values.shape)))


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without its axes of length 1: (H, W) or (H, W, 3).

    Raises:
      ProblemError: it is not the shape of one picture, or it may be grey or in colour.
    """
    plain = shape if len(shape) == 2 else tuple(side for side in shape if side != 1)
    if len(plain) == 2 and len(shape) > 2 and 3 in plain:
        raise ProblemError(f"has the shape {shape}, which may be grey or in colour: save it as (H, W) or (H, W, 3)")
    if len(plain) == 2 or (len(plain) == 3 and plain[2] == 3):
        return plain
    text = f"has the shape {shape}, not (H, W) or (H, W, 3)"
    if len(plain) == 3 and plain[0] == 3:
        text += ": if its first axis is red, green and blue, save numpy.moveaxis(array.squeeze(), 0, -1)"
    elif len(plain) == 3 and plain[2] == 4:
        text += ": if its last channel is transparency, save array[..., :3]"
    elif len(plain) >= 3:
        text += ": give one file for each image"
    raise ProblemError(text)
