"""PNG and TIFF files written byte by byte, for tests: what is in them does not depend on any library."""

import struct
import zlib

import numpy as np
from PIL import Image

from jaxboost.data.readers.pictures import read_shown

# x of the first pixel, y of it, step along x, step along y of the seven passes of an interlaced PNG.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SHORT, LONG = 3, 4
_SIZES = {1: 1, 2: 1, SHORT: 2, LONG: 4}


def read_image(path, window=(), **options) -> np.ndarray:
    return read_shown(path, window, **options)[0]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of values, each padded to whole bytes, the first value in the highest bits."""
    rows = values.reshape(len(values), -1).astype(np.uint64)
    as_bits = (rows[..., np.newaxis] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return b"".join(np.packbits(row.ravel().astype(bool)).tobytes() for row in as_bits)


def png(
    values: np.ndarray,
    depth: int,
    kind: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
    level: int = 6,
) -> bytes:
    """A PNG file of `values` (H, W) or (H, W, channels), with chunks `before` and `after` its data; no row is filtered.

    Args:
      size: what the header says, (H, W), where it is not the truth.
      level: of compression; 0: none.
    """
    passes = [values[y::down, x::across] for x, y, across, down in ADAM7] if interlaced else [values]
    rows = [packed(part[[number]], depth) for part in passes if part.size for number in range(len(part))]
    height, width = size or values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), level))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + after + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    """EXIF data with this orientation alone."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 274, SHORT, 1, orientation, 0, 0)


def tiff(data: bytes, height: int, width: int, tags: dict[int, tuple[int, object]], *, leave_out: tuple = ()) -> bytes:
    """A little-endian TIFF file of one page whose only strip is `data`.

    Args:
      tags: number -> type (SHORT, LONG, 1 of bytes, 2 of text) and values, beside the usual tags or instead of them.
      leave_out: numbers of usual tags that are not written.
    """
    usual = {
        **{256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [8]), 259: (SHORT, [1]), 262: (SHORT, [1])},
        **{273: (LONG, [8]), 277: (SHORT, [1]), 278: (LONG, [height]), 279: (LONG, [len(data)])},
    }
    entries = sorted({**{code: tag for code, tag in usual.items() if code not in leave_out}, **tags}.items())
    beyond = 8 + len(data) + len(data) % 2 + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack("<H", len(entries)), b""
    for code, (kind, numbers) in entries:
        content = bytes(numbers) if kind in (1, 2) else np.asarray(numbers, f"<u{_SIZES[kind]}").tobytes()
        directory += struct.pack("<HHI", code, kind, len(content) // _SIZES[kind])
        if len(content) <= 4:
            directory += content.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", beyond + len(extra))
            extra += content + b"\0" * (len(content) % 2)
    start = struct.pack("<I", 8 + len(data) + len(data) % 2)
    return b"II*\0" + start + data + b"\0" * (len(data) % 2) + directory + b"\0\0\0\0" + extra


def smooth(channels):
    """uint8 (40, 56, channels), which JPEG hardly changes."""
    coarse = np.random.default_rng(1).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(coarse[..., c]).resize((56, 40))) for c in range(channels)], -1)


def turned(image, orientation):
    """Where pixel (y, x) of the file belongs, by the words of the standard: sides of its first row and first column."""
    sides = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left"}
    sides |= {5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom"}
    first_row, first_column = sides.get(orientation, "top left").split()
    if first_row in ("left", "right"):
        image = np.stack(list(image), axis=1)
        first_row, first_column = first_column, first_row
    image = image if first_row == "top" else np.flip(image, 0)
    return image if first_column == "left" else np.flip(image, 1)
