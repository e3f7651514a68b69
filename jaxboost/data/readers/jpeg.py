"""Reads JPEG files: those of 8 bits with Pillow, those of 12 and 16 bits with libjpeg-turbo from imagecodecs.

Source: ITU-T T.81 (segments before the image), ITU-T T.872 and Adobe's Technical Note 5116 (colours).
"""

import os
import re
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.pixels import ORIENTATION, Picture, check_pixels, upright

SIGNATURE = b"\xff\xd8\xff"
_SOS, _EOI, _APP1, _LS = 0xDA, 0xD9, 0xE1, 0xF7
# Start of frame, without DHT, JPG and DAC, whose numbers are in the same range.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: TEM, RSTn and SOI.
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
# Any other marker, which begins a segment; FF 00 is a value of the data.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
# Programs write about a dozen.
_MAX_SCANS = 500
_MAX_GAP = 2**16
_EXIF = b"Exif\0\0"
# The most bytes of other data than pixels, such as profiles and previews.
_MAX_OTHER_BYTES = 2**26


def read_jpeg(file: BinaryIO, max_pixels: int) -> Picture:
    """Reads a picture: uint8, or uint16 if it has more than 8 bits.

    Of a file with several pictures (MPO, from cameras) the first is read, which is the main one.

    Raises:
      ProblemError: it has more pixels than `max_pixels`, or colours that are not defined.
      Exception: of several other types, if the file is damaged.
    """
    bits, width, height, channels, exif = find_frame(file)
    check_pixels(width, height, max_pixels)
    _check_scans(file)
    file.seek(0)
    if bits == 8:
        picture = JpegImageFile(file)
        if picture.size != (width, height):
            raise ProblemError("is a damaged JPEG file: it has several headers: copy it again, or save it again")
        if picture.mode == "CMYK" and "adobe" not in picture.info:
            raise ProblemError(
                "has the colours cyan, magenta, yellow and black, and does not say whether they are inverted: save it"
                " in RGB"
            )
        picture.load()
        mode = "L" if picture.mode == "L" else "RGB"
        values = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        return Picture(upright(values, picture.getexif().get(ORIENTATION)))
    if channels not in (1, 3):
        raise ProblemError(f"has {channels} channels of {bits} bits: save it in grey or RGB")
    size = os.fstat(file.fileno()).st_size
    if size > 4 * width * height * channels + _MAX_OTHER_BYTES:
        raise ProblemError(f"has {size} bytes, far more than {width} x {height} pixels need: save it again")
    # Imported here because few files need it.
    import imagecodecs

    values = imagecodecs.jpeg8_decode(file.read())
    return Picture(upright(values, _orientation(exif)))


def find_frame(file: BinaryIO) -> tuple[int, int, int, int, bytes]:
    """Reads the frame header of a JPEG stream that starts here.

    Returns:
      Bits per channel, width, height, number of channels, and the EXIF data (b"" if there is none).

    Raises:
      ProblemError: there is no frame header.
    """
    exif = b""
    file.read(2)
    while True:
        byte, gap = file.read(1), 0
        while byte not in (b"\xff", b"") and gap < _MAX_GAP:
            byte, gap = file.read(1), gap + 1
        if byte != b"\xff":
            break
        while byte == b"\xff":
            byte = file.read(1)
        marker = byte[0] if byte else _EOI
        if marker in _ALONE or marker == 0:
            continue
        if marker in (_SOS, _EOI):
            break
        if marker == _LS:
            raise ProblemError("is a JPEG-LS file: convert it to PNG, which has all of its bits too")
        length = file.read(2)
        content = file.read(max(int.from_bytes(length, "big") - 2, 0))
        if marker in _FRAMES and len(content) >= 6:
            bits, height, width, channels = struct.unpack(">BHHB", content[:6])
            return bits, width, height, channels, exif
        if marker == _APP1 and content.startswith(_EXIF):
            exif = content
    raise ProblemError("is a damaged JPEG file: it does not say how large it is: copy it again, or save it again")


def _check_scans(file: BinaryIO) -> None:
    """Raises ProblemError if the rest of the file has too many scans: a short scan can decode all pixels again."""
    content, position, scans = file.read(), 0, 0
    while (found := _MARKER.search(content, position)) and found[0][1] != _EOI:
        scans += found[0][1] == _SOS
        if scans > _MAX_SCANS:
            raise ProblemError(f"has more than {_MAX_SCANS} scans, which no program writes: save it again")
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")


def _orientation(exif: bytes) -> object:
    found = Image.Exif()
    found.load(exif)
    return found.get(ORIENTATION)
