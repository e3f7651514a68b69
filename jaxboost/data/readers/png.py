"""Reads PNG files with all of their bits.

Pillow reads images with up to 8 bits per channel, and grey of 16 bits. It drops the low bytes of 16-bit colour and of
16-bit grey with transparency, so libpng (from imagecodecs) reads these. Profiles, gamma, significant bits and
transparency are not applied: the result has the stored values of the colour channels. The decoders do not see such
chunks, so damage in a comment or in a large profile does not stop an image from being read.

Source: W3C, Portable Network Graphics (PNG) Specification, third edition.
"""

import dataclasses
import io
import itertools
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.pixels import ORIENTATION, Picture, check_pixels, upright

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _PALETTE, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _COLOUR: 3, _PALETTE: 1, _GREY_ALPHA: 2, _COLOUR_ALPHA: 4}
# Chunks that affect the result: the image, several images in one file, and the orientation.
_USED = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf"))
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt"))
# Texts that can hold an orientation: XMP, and EXIF in the form of ImageMagick.
_TAGS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
# The most bytes of other data than pixels, such as profiles and text.
_MAX_OTHER_BYTES = 2**26
# Names and contents of chunks, in the order of the file.
Chunks = list[tuple[bytes, bytes]]
# Passes of an interlaced image: first row, first column, and steps along rows and columns.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read_png(file: BinaryIO, max_pixels: int) -> Picture:
    """Reads a picture without its transparency.

    Raises:
      ProblemError: it has more pixels than `max_pixels`, several frames, or a palette that lacks colours.
      Exception: of several other types, if the file is damaged.
    """
    header = file.read(33)
    if header[8:16] != b"\0\0\0\rIHDR":
        raise ProblemError("is a damaged PNG file: its header is not its first chunk")
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    check_pixels(width, height, max_pixels)
    # Compressed data are never much larger than the raw data, whose rows interlacing can only double.
    raw_size = 2 * (height + 8) * (width * depth * _CHANNELS.get(colour, 4) // 8 + 8)
    if (size := os.fstat(file.fileno()).st_size) > raw_size + _MAX_OTHER_BYTES:
        raise ProblemError(f"has {size} bytes, far more than {width} x {height} pixels need: save it again")
    chunks = _chunks(file)
    passes = _passes(chunks, header)
    picture = PngImageFile(io.BytesIO(_joined(chunks)))
    if picture.size != (width, height):
        raise ProblemError("is a damaged PNG file: it has several headers")
    if picture.n_frames > 1:
        raise ProblemError(f"is an animation of {picture.n_frames} frames: give one file for each image")
    picture.load()
    # Read after `load`, because the tag may follow the pixels.
    orientation = picture.getexif().get(ORIENTATION)
    values = _sixteen_bits(passes, header) if depth == 16 and colour != _GREY else _from_pillow(picture)
    return Picture(upright(values, orientation))


def _from_pillow(picture: PngImageFile) -> np.ndarray:
    if picture.mode.startswith("I"):
        return np.asarray(picture)
    if picture.mode == "P":
        _check_palette(picture)
    # Otherwise Pillow warns of a palette's transparency.
    picture.info.pop("transparency", None)
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def _check_palette(picture: Image.Image) -> None:
    palette = picture.palette.palette if picture.palette is not None else b""
    colours, highest = len(palette) // 3, int(np.asarray(picture).max())
    if highest >= colours:
        raise ProblemError(f"has a palette of {colours} colours and pixels of colour {highest}: save it again")


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass: the filtered rows of every `down`-th row and `across`-th column from (y, x); `shape` is (h, w)."""

    y: int
    x: int
    down: int
    across: int
    shape: tuple[int, int]
    rows: memoryview


def _passes(chunks: Chunks, header: bytes) -> list[_Pass]:
    """Inflates the data, but not more than the pixels need, because a few bytes can inflate to any size.

    Raises:
      ProblemError: there is less data than the pixels need; Pillow would show missing pixels as black.
    """
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    found, sizes = [], []
    for y, x, down, across in _ADAM7 if header[28] else ((0, 0, 1, 1),):
        rows, columns = (height - y + down - 1) // down, (width - x + across - 1) // across
        if rows > 0 and columns > 0:
            # A row has a byte for its filter.
            sizes.append(rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8))
            found.append((y, x, down, across, (rows, columns)))
    packed = b"".join(content for name, content in chunks if name == b"IDAT")
    data = memoryview(zlib.decompressobj().decompress(packed, sum(sizes)))
    if len(data) < sum(sizes):
        raise ProblemError("is a damaged PNG file: parts of its pixels are missing")
    ends = list(itertools.accumulate(sizes))
    return [_Pass(*where, data[end - size : end]) for where, size, end in zip(found, sizes, ends, strict=True)]


def _sixteen_bits(passes: list[_Pass], header: bytes) -> np.ndarray:
    """Returns uint16 (H, W) or (H, W, 3) of 16-bit colour, or of 16-bit grey with transparency."""
    width, height, _, colour = struct.unpack(">IIBB", header[16:26])
    values = np.empty((height, width, _CHANNELS[colour]), np.uint16)
    for part in passes:
        pixels = _decode(part, colour).reshape(*part.shape, -1)
        values[part.y :: part.down, part.x :: part.across] = pixels
    return np.ascontiguousarray(values[..., 0] if colour == _GREY_ALPHA else values[..., :3])


def _chunks(file: BinaryIO) -> Chunks:
    """Returns the chunks that are used, up to the end of the image; the bytes after it are ignored.

    Raises:
      ProblemError: a checksum is wrong, the file ends early, or it has a critical chunk that is unknown.
    """
    left = os.fstat(file.fileno()).st_size - file.seek(len(SIGNATURE))
    chunks = []
    while left >= 8:
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"IEND":
            return [*chunks, (name, b"")]
        left -= 12 + length
        # Checked before reading, which would allocate memory for missing bytes.
        if left < 0:
            break
        content, expected = file.read(length), file.read(4)
        # A capital first letter marks a chunk without which the image cannot be read.
        critical = not name[0] & 0x20
        if critical and name not in _USED:
            raise ProblemError(f"is a damaged PNG file: it has a chunk {name!r}, which is unknown")
        if name not in _USED and not (name in _TEXTS and content.startswith(_TAGS)):
            continue
        if zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(expected, "big"):
            text = f"the checksum of its chunk {name.decode()} is wrong"
            raise ProblemError(f"is a damaged PNG file: {text}: copy it again")
        chunks.append((name, content))
    raise ProblemError("is a damaged PNG file: it ends early: copy it again")


def _joined(chunks: Chunks) -> bytes:
    """Returns a PNG file of these chunks."""
    parts = [SIGNATURE]
    for name, content in chunks:
        parts += [struct.pack(">I", len(content)), name, content]
        parts.append(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
    return b"".join(parts)


def _decode(part: _Pass, colour: int) -> np.ndarray:
    """Decodes the 16-bit pixels of one pass with libpng.

    libpng gets no other chunks, because it prints warnings about interlacing and profiles on the terminal.
    """
    # Imported here because few files need it.
    import imagecodecs

    header = struct.pack(">IIBBBBB", part.shape[1], part.shape[0], 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(part.rows, 0)), (b"IEND", b"")]
    return imagecodecs.png_decode(_joined(chunks))
