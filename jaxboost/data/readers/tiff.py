"""Reads TIFF files with tifffile and imagecodecs: all types of values, as stored.

tifffile returns the stored values and the tags. This module checks what tifffile accepts without a message: missing
parts, tags that cannot be read, further planes, and channels whose meaning is unknown. libtiff converts 8-bit YCbCr
without JPEG compression, and old-style JPEG, to RGB.

Source: Adobe, TIFF Revision 6.0 and its Technical Note 2.
"""

import io
import itertools
import logging
import math
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.arrays import replaced
from jaxboost.data.readers.jpeg import find_frame
from jaxboost.data.readers.pixels import ORIENTATION, Picture, check_pixels, upright

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_OTHER_COLOURS = {
    4: "a mask of transparency",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's sensor",
}
_OLD_JPEG, _JPEG = 6, 7
_FAX = (2, 3, 4)
# No compression, LZW, both numbers of Deflate, PackBits, LZMA, Zstandard: decoders stop at the size in the header.
_LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 50000)
_UNKNOWN, _ASSOCIATED = 0, 1  # values of ExtraSamples
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_NO_DATA = 42113  # GDAL
_COLOUR_MAP = 320
_MAX_PAGES = 64
# The tags that affect the pixels.
_NEEDED = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325}
_NEEDED |= {330, 338, 339, 347, 530, 32997, _NO_DATA}


def _damaged(what: str) -> ProblemError:
    return ProblemError(f"is a damaged TIFF file: {what}: copy it again, or save it again")


class _Bounded(io.BufferedReader):
    """A file that never allocates memory for more bytes than it has, however many are asked for."""

    def __init__(self, path: str):
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def read_tiff(file: BinaryIO, max_pixels: int, nan: float | None = None) -> Picture:
    """Reads a picture without its transparency.

    Args:
      file: the open file.
      max_pixels: the most pixels that it may have.
      nan: the number that replaces GDAL's no-data value; None: files with that value are refused. It does not apply to
        8-bit values.

    Raises:
      ProblemError: it has more pixels than `max_pixels`, several images, or values whose meaning is unknown.
      Exception: of several other types, if the file is damaged.
    """
    # Imported here because it takes a while.
    import tifffile

    # Otherwise it logs what it cannot read, without the file's name.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    # For files of some programs, tifffile may open other files (OME) or follow a loop of pages forever.
    plain = {"is_ome": False, "is_lsm": False, "is_ndpi": False, "is_scanimage": False}
    with _Bounded(file.name) as bounded, tifffile.TiffFile(bounded, name="image", **plain) as tiff:
        page = tiff.pages.first
        check_pixels(page.imagewidth, page.imagelength, max_pixels)
        _check_tags(tiff, page)
        _check_single(tiff, page)
        _check_colours(page)
        if page.compression == _OLD_JPEG or (page.photometric == _YCBCR and page.compression != _JPEG):
            return Picture(upright(_with_libtiff(file, page), page.tags.valueof(ORIENTATION)))
        _check_parts(file, page)
        values = page.asarray(maxworkers=1)
        if values.shape != page.shape:
            raise _damaged(f"it holds {values.shape} instead of {page.shape} values")
        values = _colours(values, page)
        if values.dtype != np.uint8:
            values = _without_no_data(values, page, nan)
        inverted = page.photometric == _WHITE_IS_ZERO
        if inverted and values.dtype == np.uint8:
            values, inverted = 255 - values, False
        return Picture(upright(values, page.tags.valueof(ORIENTATION)), inverted)


def _check_tags(tiff: Any, page: Any) -> None:
    """Raises ProblemError for tags that cannot be read: tifffile skips these and uses defaults."""
    handle, form = tiff.filehandle, tiff.tiff
    handle.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    entries = handle.read(count * form.tagsize)
    for start in range(0, len(entries), form.tagsize):
        (code,) = struct.unpack(tiff.byteorder + "H", entries[start : start + 2])
        if code in _NEEDED and page.tags.valueof(code) is None:
            raise _damaged(f"its tag {code} cannot be read")
    if page.tags.valueof(262) is None and page.compression != _OLD_JPEG:
        raise ProblemError("does not say what its values mean (tag PhotometricInterpretation): save it again")


def _check_single(tiff: Any, page: Any) -> None:
    """Raises ProblemError if there are other images than smaller copies and masks of the first."""
    if page.subfiletype & _REDUCED:
        raise ProblemError("has a reduced copy of an image in front of the image: save the image alone")
    others = list(itertools.islice(_pages_after(tiff), _MAX_PAGES))
    if page.subifds:
        others += itertools.islice(page.pages, _MAX_PAGES)
    count = 1 + sum(not other.aspage().subfiletype & (_REDUCED | _MASK) for other in others)
    if count > 1 or len(others) >= _MAX_PAGES:
        raise ProblemError(f"has {count if len(others) < _MAX_PAGES else 'many'} pages: give one file for each image")
    # Files of microscopes have the number of planes in their descriptions.
    planes = max(series.size for series in tiff.series) // max(page.size, 1)
    if page.imagedepth != 1 or planes > 1:
        raise ProblemError(f"has {max(planes, page.imagedepth)} planes: give one file for each image")


def _pages_after(tiff: Any) -> Iterator[Any]:
    """Yields the pages after the first one; endless if a page links back to an earlier one."""
    for number in itertools.count(1):
        try:
            yield tiff.pages[number]
        except IndexError:
            return


def _check_colours(page: Any) -> None:
    expected = _CHANNELS.get(page.photometric)
    if expected is None:
        name = _OTHER_COLOURS.get(page.photometric, f"the kind {int(page.photometric)}")
        raise ProblemError(f"has the colours of {name}: save it in grey or RGB")
    others = page.samplesperpixel - expected
    if others < 0:
        raise _damaged(f"it has {page.samplesperpixel} of {expected} channels")
    if others > 1:
        kind = "grey" if expected == 1 else "colour"
        raise ProblemError(f"has {others} channels in addition to {kind}: save only the image, in grey or RGB")
    # Integers of 17 to 31 bits are refused because writers differ in their byte order.
    if page.dtype is None or page.bitspersample not in (*range(1, 17), 32, 64):
        raise ProblemError(
            f"has values of {page.bitspersample} bits and the format {page.sampleformat}, which are not read: save it"
            " with 8 or 16 bits a channel, or in 32-bit floating point"
        )
    if page.photometric in (_CMYK, _YCBCR) and page.dtype != np.uint8 and page.compression != _JPEG:
        raise ProblemError(f"is not a grey or RGB image and has {page.bitspersample} bits a channel: save it in RGB")
    if page.photometric == _CMYK and page.dtype != np.uint8:
        raise ProblemError(f"has the colours CMYK with {page.bitspersample} bits a channel: save it in RGB")
    if page.compression not in (*_LOSSLESS, *_FAX, _JPEG, _OLD_JPEG):
        name = getattr(page.compression, "name", int(page.compression))
        raise ProblemError(f"has the compression {name}, which is not read: save it with LZW, Deflate or none")


def _check_parts(file: BinaryIO, page: Any) -> None:
    """Checks strips and tiles: tifffile reads missing ones as zeros, and allocates any size that a JPEG part claims."""
    count, size = math.prod(page.chunked), os.fstat(file.fileno()).st_size
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:count]
    if len(parts) < count or any(start < 8 or length < 1 or start + length > size for start, length in parts):
        raise _damaged("parts of its pixels are missing")
    # The size of a tile, or of every strip except the last one, which may be lower.
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    if height * width > 4 * page.imagewidth * page.imagelength + 2**20:
        raise _damaged(f"its tiles have {width} x {height} pixels")
    channels = page.samplesperpixel if page.planarconfig == 1 else 1
    strips = math.ceil(page.imagelength / height)
    for number, (start, length) in enumerate(parts):
        last = not page.is_tiled and number % strips == strips - 1
        rows = page.imagelength - (strips - 1) * height if last else height
        if page.compression == 1 and length < rows * ((width * channels * page.bitspersample + 7) // 8):
            raise _damaged("parts of its pixels are missing")
        if page.compression == _JPEG:
            file.seek(start)
            bits, wide, high, found, _ = find_frame(file)
            if bits != page.bitspersample or wide > width or high > height or found > channels:
                raise _damaged(f"a part has {wide} x {high} x {found} values of {bits} bits")


def _colours(values: np.ndarray, page: Any) -> np.ndarray:
    """Returns the colour channels, (H, W) or (H, W, 3), of the file's `values`; levels if they have up to 8 bits."""
    if values.ndim == 3 and page.planarconfig == 2:
        values = np.moveaxis(values, 0, -1)
    expected, bits = _CHANNELS[page.photometric], page.bitspersample
    if values.ndim == 3:
        if values.shape[2] > expected:
            _check_extra(values[..., expected], page)
        values = values[..., 0] if expected == 1 else np.ascontiguousarray(values[..., :expected])
    if page.photometric == _PALETTE:
        return _look_up(values, page)
    if page.photometric == _CMYK:
        inks = 255 - values.astype(np.uint16)
        return ((inks[..., :3] * inks[..., 3:] + 127) // 255).astype(np.uint8)
    if values.dtype == np.bool_ or (values.dtype == np.uint8 and bits < 8):
        # The greatest value of these bits is white.
        table = np.rint(np.arange(2**bits) * (255 / (2**bits - 1))).astype(np.uint8)
        return table[values.astype(np.uint8)]
    return values


def _check_extra(extra: np.ndarray, page: Any) -> None:
    kind = page.extrasamples[0] if page.extrasamples else _UNKNOWN
    constant = extra.min() == extra.max()
    if kind == _ASSOCIATED:
        opaque = constant and (extra.dtype.kind == "f" or extra.flat[0] == 2**page.bitspersample - 1)
        if not opaque:
            raise ProblemError("has colours that are multiplied by their transparency: save it without transparency")
    elif kind == _UNKNOWN and not constant:
        raise ProblemError("has an additional channel of unknown meaning: save it in grey or RGB")


def _look_up(values: np.ndarray, page: Any) -> np.ndarray:
    """Returns the colours of a palette image, uint8 (H, W, 3)."""
    table = np.ravel(page.tags.valueof(_COLOUR_MAP, ()))
    if values.dtype.kind not in "bu" or values.dtype.itemsize > 2 or len(table) != 3 * 2**page.bitspersample:
        raise _damaged(f"its palette has {len(table) // 3} colours")
    # Entries have 16 bits, but some writers use 8. libtiff accepts both as well.
    table = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    return table.reshape(3, -1).T[values.astype(np.uint16)]


def _without_no_data(values: np.ndarray, page: Any, nan: float | None) -> np.ndarray:
    text = page.tags.valueof(_NO_DATA)
    if text is None:
        return values
    try:
        number = float(str(text).strip(" \0").replace(",", "."))
    except ValueError:
        raise ProblemError(f"has the value {text!r} for no data, which is not a number: correct the tag") from None
    # If the number is NaN, `check_numbers` finds it later.
    missing = values == number if values.dtype.kind != "f" else values == values.dtype.type(number)
    if not missing.any():
        return values
    if nan is None:
        raise ProblemError(
            f"has {np.count_nonzero(missing)} values that stand for no data ({number:g})",
            fix="correct them, or set data.nan to the number that they are read as, such as data.nan=0",
            setting="data.nan=''",
        )
    return replaced(values, missing, nan)


def _with_libtiff(file: BinaryIO, page: Any) -> np.ndarray:
    """Returns uint8 (H, W, 3), not turned."""
    # Imported here because few files need it.
    import imagecodecs

    file.seek(0)
    content = bytearray(file.read())
    if (tag := page.tags.get(ORIENTATION)) is not None:
        # Otherwise libtiff mirrors the image but does not turn it.
        width = tag.valuebytecount
        order = "little" if page.parent.byteorder == "<" else "big"
        content[tag.valueoffset : tag.valueoffset + width] = (1).to_bytes(width, order)
    return np.ascontiguousarray(imagecodecs.tiff_decode(content, asrgb=True)[..., :3])
