"""Converts a colour DICOM image to 8-bit RGB: RGB, YBR and PALETTE COLOR. ICC profiles are not applied."""

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, convert_color_space

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom_display import look_up
from jaxboost.data.readers.dicom_pixels import PALETTE, Layout, stored_values
from jaxboost.data.readers.dicom_tags import numbers

_NAMES = ("Red", "Green", "Blue")


def to_colour(pixels: np.ndarray, colours: str, layout: Layout, header: pydicom.Dataset) -> np.ndarray:
    """Converts decoded samples to a picture, uint8 (rows, columns, 3).

    Args:
      pixels: samples (rows, columns, 3), or (rows, columns) with a palette.
      colours: their colour space, which may differ from the file's because a decoder has converted it.
      layout: their layout.
      header: the tags.

    Raises:
      ProblemError: the tags make no sense, or the colours are of a kind that is not read.
    """
    if pixels.dtype.kind not in "iu" or (layout.signed and layout.photometric != PALETTE):
        raise ProblemError("is a colour image of signed or floating-point samples: save it as RGB of 8 bits")
    stored = stored_values(pixels, layout)
    if layout.photometric == PALETTE:
        return _palette(stored, header)
    if colours.startswith("YBR"):
        if layout.stored != 8:
            raise ProblemError(f"is a colour image of {layout.stored} bits in {colours}: save it as RGB")
        return convert_color_space(stored.astype(np.uint8), "YBR_FULL", "RGB")
    if layout.stored == 8:
        return stored.astype(np.uint8)
    return np.rint(stored.astype(np.float64) * (255 / (2**layout.stored - 1))).astype(np.uint8)


def _palette(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    if "SegmentedRedPaletteColorLookupTableData" in header:
        return _segmented(stored, header)
    channels = []
    for name in _NAMES:
        descriptor = f"{name}PaletteColorLookupTableDescriptor"
        shown, bits = look_up(stored, header, descriptor, f"{name}PaletteColorLookupTableData")
        _check_bits(bits, float(shown.max()))
        channels.append(np.rint(shown * (255 / (2**bits - 1))).astype(np.uint8))
    return np.stack(channels, axis=-1)


def _segmented(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    entries, first, bits = (int(number) for number in numbers(header, "RedPaletteColorLookupTableDescriptor"))
    entries = entries or 2**16
    if bits == 8 and entries > 256:
        raise ProblemError(f"has a segmented palette of {entries} entries of 8 bits, which is not read: save it as RGB")
    # pydicom's index has as few bits as the entries, so the whole table is read first and indexed here.
    table = apply_color_lut(np.arange(first, first + entries, dtype=np.int32), header)[:, :3]
    return np.rint(table * (255 / (2**bits - 1))).astype(np.uint8)[np.clip(stored.astype(int) - first, 0, entries - 1)]


def _check_bits(bits: int, highest: float) -> None:
    if bits not in (8, 16):
        raise ProblemError(f"has a palette of {bits} bits, where the standard has 8 or 16: correct its tags")
    if bits == 16 and highest < 256:
        raise ProblemError(
            "has a palette of 16 bits without an entry above 255: it may be one of 8 bits, correct its tags"
        )
