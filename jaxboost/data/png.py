"""PNG files, with all of their bits.

Pillow reads what has up to 8 bits a channel, and grey of 16. It cuts the low bytes of 16-bit colour and of 16-bit grey
with transparency off: libpng, from imagecodecs, reads these. Profiles, gamma, significant bits and transparency are not
applied: the stored values of the colour channels are what counts.

Source: W3C, Portable Network Graphics (PNG) Specification, third edition.
"""

import dataclasses
import itertools
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from jaxboost.data.faults import FaultError
from jaxboost.data.pixels import ORIENTATION, Picture, check_pixels, upright

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _PALETTE, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _COLOUR: 3, _PALETTE: 1, _GREY_ALPHA: 2, _COLOUR_ALPHA: 4}
# Bytes beside the pixels: profiles, text and the like.
_BESIDE = 2**26
# First row, first column and steps along rows and columns of the passes of an interlaced image.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read_png(file: BinaryIO, max_pixels: int) -> Picture:
    """The picture; transparency is left out.

    Raises:
        FaultError: it has more pixels than `max_pixels`, several frames, or a palette that lacks colours.
        Exception: of several other types, for damaged files.
    """
    header = file.read(33)
    if header[8:16] != b"\0\0\0\rIHDR":
        raise FaultError("is a damaged PNG file: its header is not the first")
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    check_pixels(width, height, max_pixels)
    # Compressed data are never much larger than what was compressed; also with rows of their own for interlacing.
    raw_size = 2 * (height + 8) * (width * depth * _CHANNELS.get(colour, 4) // 8 + 8)
    if (size := os.fstat(file.fileno()).st_size) > raw_size + _BESIDE:
        raise FaultError(f"has {size} bytes, far more than {width} x {height} pixels need: save it again")
    file.seek(0)
    # The check sums of all chunks: while an image is read, Pillow skips those of its data.
    PngImageFile(file).verify()
    passes = _passes(file, header)
    file.seek(0)
    picture = PngImageFile(file)
    if picture.size != (width, height):
        raise FaultError("is a damaged PNG file: it has several headers")
    if picture.n_frames > 1:
        raise FaultError(f"is an animation of {picture.n_frames} frames: give one file for each image")
    picture.load()
    # After load, for the tag may be behind the pixels.
    orientation = picture.getexif().get(ORIENTATION)
    values = _sixteen_bits(passes, header) if depth == 16 and colour != _GREY else _as_pillow_has_it(picture)
    return Picture(upright(values, orientation))


def _as_pillow_has_it(picture: PngImageFile) -> np.ndarray:
    if picture.mode.startswith("I"):
        return np.asarray(picture)
    if picture.mode == "P":
        _check_palette(picture)
    # Pillow would warn of a palette's transparency.
    picture.info.pop("transparency", None)
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def _check_palette(picture: Image.Image) -> None:
    palette = picture.palette.palette if picture.palette is not None else b""
    colours, highest = len(palette) // 3, int(np.asarray(picture).max())
    if highest >= colours:
        raise FaultError(f"has a palette of {colours} colours and pixels of colour {highest}: save it again")


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Filtered rows of every `down`-th row and `across`-th column from (y, x) on, which has `shape` (h, w)."""

    y: int
    x: int
    down: int
    across: int
    shape: tuple[int, int]
    rows: memoryview


def _passes(file: BinaryIO, header: bytes) -> list[_Pass]:
    """The inflated data, no more than the pixels need: a few bytes can stand for any number of them.

    Raises:
        FaultError: there are less. Pillow would take what is missing as black.
    """
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    found, sizes = [], []
    for y, x, down, across in _ADAM7 if header[28] else ((0, 0, 1, 1),):
        rows, columns = (height - y + down - 1) // down, (width - x + across - 1) // across
        if rows > 0 and columns > 0:
            # A row has a byte for its filter.
            sizes.append(rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8))
            found.append((y, x, down, across, (rows, columns)))
    data = memoryview(zlib.decompressobj().decompress(_image_data(file, len(header)), sum(sizes)))
    if len(data) < sum(sizes):
        raise FaultError("is a damaged PNG file: parts of its pixels are missing")
    ends = list(itertools.accumulate(sizes))
    return [_Pass(*where, data[end - size : end]) for where, size, end in zip(found, sizes, ends, strict=True)]


def _sixteen_bits(passes: list[_Pass], header: bytes) -> np.ndarray:
    """uint16 (H, W) or (H, W, 3) of colour or with transparency."""
    width, height, _, colour = struct.unpack(">IIBB", header[16:26])
    values = np.empty((height, width, _CHANNELS[colour]), np.uint16)
    for part in passes:
        pixels = _decode(part, colour).reshape(*part.shape, -1)
        values[part.y :: part.down, part.x :: part.across] = pixels
    return np.ascontiguousarray(values[..., 0] if colour == _GREY_ALPHA else values[..., :3])


def _image_data(file: BinaryIO, start: int) -> bytes:
    """The compressed data; the chunks' check sums are right."""
    file.seek(start)
    parts = []
    while True:
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"IEND":
            return b"".join(parts)
        if name == b"IDAT":
            parts.append(file.read(length))
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)


def _decode(part: _Pass, colour: int) -> np.ndarray:
    """Its pixels of 16 bits, by libpng.

    It is given nothing else: it prints warnings about interlacing, profiles and the like on the terminal.
    """
    # Only here: few files need it.
    import imagecodecs

    header = struct.pack(">IIBBBBB", part.shape[1], part.shape[0], 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(part.rows, 0)), (b"IEND", b""))
    parts = [SIGNATURE]
    for name, content in chunks:
        parts += [struct.pack(">I", len(content)), name, content]
        parts.append(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
    return imagecodecs.png_decode(b"".join(parts))
