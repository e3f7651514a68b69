"""Decompresses pixel data of DICOM files. Needs the package imagecodecs (the extra `dicom`).

The size in the header of the compressed image is compared with the tags before it is decoded. imagecodecs decodes all
compressions. GDCM is not used because some damaged files make it end the process, and it reads neither 12-bit JPEG
nor HTJ2K; pydicom decodes run lengths byte by byte and without a limit.
"""

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets

from jaxboost.data.problems import ProblemError, reason

if TYPE_CHECKING:
    from jaxboost.data.readers.dicom_pixels import Layout

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000, uid.JPEG2000Lossless, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
_LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)
# Bytes that an RLE segment may have beyond its pixels, because writers pad segments.
_RLE_SLACK = 256
_HUFFMAN = (0xC0, 0xC1, 0xC2)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The header of a JPEG or JPEG 2000 image. `colours`: "RGB" or "YBR_FULL" by its markers, "" if it has none."""

    rows: int
    columns: int
    components: int
    precision: int
    colours: str = ""


def decompress(value: bytes, syntax: uid.UID, layout: "Layout") -> tuple[np.ndarray, str]:
    """Decompresses the samples.

    Returns:
      The samples (rows, columns) or (rows, columns, 3), and their colour space.

    Raises:
      ProblemError: no installed package can do it, or the image is damaged or has another size than the tags say.
    """
    if syntax not in (*_JPEG, *_JPEG_LS, *_JPEG_2000, uid.RLELossless):
        raise ProblemError(f"has the transfer syntax {syntax.name}, which is not read: save it uncompressed")
    if layout.high != layout.stored - 1:
        raise ProblemError(f"is compressed and has HighBit {layout.high} with BitsStored {layout.stored}: correct them")
    codecs = _imagecodecs(syntax)
    frame = _only_frame(value, syntax)
    if syntax == uid.RLELossless:
        return _run_lengths(frame, layout, codecs), layout.photometric
    stream = _jpeg_2000(frame) if syntax in _JPEG_2000 else _jpeg(frame)
    if stream is None:
        raise ProblemError(f"is damaged: its compressed image ({syntax.name}) has no header that can be read")
    if (stream.rows, stream.columns, stream.components) != (layout.rows, layout.columns, layout.samples):
        found = f"{stream.rows} x {stream.columns} pixels of {stream.components} samples"
        said = f"{layout.rows} x {layout.columns} of {layout.samples}"
        raise ProblemError(f"holds a compressed image of {found}, but its tags say {said}: correct its tags")
    if stream.precision > layout.allocated:
        text = f"holds a compressed image of {stream.precision} bits, but its tags say {layout.allocated}"
        raise ProblemError(f"{text}: correct its tags")
    try:
        pixels, colours = _decode(frame, stream, syntax, layout, codecs)
    except Exception as error:
        text = f"is damaged: its compressed image ({syntax.name}) cannot be decompressed ({reason(error)})"
        raise ProblemError(text) from error
    if pixels.shape != ((layout.rows, layout.columns, 3)[: 2 + (layout.samples == 3)]):
        raise ProblemError(f"is damaged: its compressed image has the shape {pixels.shape}")
    return _with_sign(pixels, stream, syntax, layout), colours


def _imagecodecs(syntax: uid.UID) -> Any:
    try:
        import imagecodecs
    except ImportError:
        text = f"is compressed ({syntax.name}) and no decoder is installed"
        raise ProblemError(f"{text}: `pip install imagecodecs`") from None
    return imagecodecs


def _only_frame(value: bytes, syntax: uid.UID) -> bytes:
    try:
        # The first fragment is the table of offsets. A frame may have several fragments.
        fragments = list(generate_fragments(value))[1:]
        starts = sum(fragment.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) for fragment in fragments)
        frames = max(len(parse_basic_offsets(value)), len(fragments) if syntax == uid.RLELossless else starts)
        frame = get_frame(value, 0, number_of_frames=1)
    except Exception as error:
        raise ProblemError(f"is damaged: its compressed pixels are not in order ({reason(error)})") from error
    if frames > 1:
        raise ProblemError(f"has {frames} frames, though its NumberOfFrames says 1: give one file for each image")
    return frame


def _decode(frame: bytes, stream: _Stream, syntax: uid.UID, layout: "Layout", codecs: Any) -> tuple[np.ndarray, str]:
    if syntax in _JPEG_LS:
        return codecs.jpegls_decode(frame), layout.photometric
    if syntax in _JPEG_2000:
        # The codec reverses its own colour transform.
        colours = "RGB" if layout.photometric in ("YBR_ICT", "YBR_RCT") else layout.photometric
        return codecs.jpeg2k_decode(frame, verbose=0), colours
    if layout.samples == 1:
        return codecs.jpeg8_decode(frame), layout.photometric
    colours = stream.colours or layout.photometric
    # By default, the codec takes an image without markers for YCbCr, whatever the tags say.
    space = "RGB" if colours == "RGB" else "YCBCR"
    return codecs.jpeg8_decode(frame, colorspace=space, outcolorspace="RGB"), "RGB"


def _with_sign(pixels: np.ndarray, stream: _Stream, syntax: uid.UID, layout: "Layout") -> np.ndarray:
    """Converts samples to the type in the tags. Most codecs ignore the sign but keep the bits of a value."""
    if layout.samples == 1:
        kind = "i" if layout.signed else "u"
        size = 8 * pixels.dtype.itemsize
        if pixels.dtype.kind != kind:
            unused = size - min(stream.precision, layout.stored)
            bits = pixels.view(f"u{size // 8}")
            pixels = (bits << bits.dtype.type(unused)).view(f"{kind}{size // 8}")
            pixels = pixels >> pixels.dtype.type(unused)
        if syntax in _LOSSY:
            # If the codec works with more bits than are stored, lossy values can be slightly outside of their range.
            least = -(2 ** (layout.stored - 1)) if layout.signed else 0
            info = np.iinfo(pixels.dtype)
            pixels = np.clip(pixels, max(least, info.min), min(least + 2**layout.stored - 1, info.max))
    return pixels.astype(f"{pixels.dtype.kind}{layout.allocated // 8}", copy=False)


def _jpeg(frame: bytes) -> _Stream | None:
    """Reads the frame header of a JPEG or JPEG-LS image; None if it is missing or the markers are out of order."""
    stream, colours, start = None, "", 2
    while frame[:2] == b"\xff\xd8" and start + 4 <= len(frame) and frame[start] == 0xFF:
        marker = frame[start + 1]
        if marker == 0xFF:
            start += 1
            continue
        size = int.from_bytes(frame[start + 2 : start + 4], "big")
        content = frame[start + 4 : start + 2 + size]
        if marker == 0xDA:
            return stream
        if marker == 0xE0 and content[:5] == b"JFIF\0":
            colours = colours or "YBR_FULL"
        elif marker == 0xEE and content[:5] == b"Adobe" and len(content) >= 12:
            colours = "YBR_FULL" if content[11] == 1 else "RGB"
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if stream or len(content) < 6:
                return None
            precision, rows, columns, components = struct.unpack(">BHHB", content[:6])
            if content[6::3] in (b"RGB", b"rgb"):
                colours = "RGB"
            # Lossless images keep the colours in the tags.
            stream = _Stream(rows, columns, components, precision, colours if marker in _HUFFMAN else "")
        elif marker == 0xD8 or 0xD0 <= marker <= 0xD7 or marker in (0x00, 0x01, 0xD9):
            return None
        start += 2 + size
    return None


def _jpeg_2000(frame: bytes) -> _Stream | None:
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(frame) < start + 43:
        return None
    width, height, left, top = struct.unpack(">4L", frame[start + 8 : start + 24])
    components, depth = struct.unpack(">HB", frame[start + 40 : start + 43])
    return _Stream(height - top, width - left, components, (depth & 0x7F) + 1)


def _run_lengths(frame: bytes, layout: "Layout", codecs: Any) -> np.ndarray:
    """Decodes RLE (PS3.5 annex G): one segment per byte of a sample, the highest byte of the first sample first."""
    wide = layout.allocated // 8
    count, *offsets = struct.unpack("<16L", frame[:64].ljust(64, b"\0"))
    if not wide or count != wide * layout.samples:
        raise ProblemError(f"is damaged: it has {count} RLE segments, its tags say {wide * layout.samples}")
    size = layout.rows * layout.columns
    ends = [*offsets[1:count], len(frame)]
    planes = np.zeros((layout.samples, size, wide), np.uint8)
    for number, (start, end) in enumerate(zip(offsets[:count], ends, strict=True)):
        try:
            content = codecs.packbits_decode(frame[start:end], out=size + _RLE_SLACK)
        except Exception as error:
            raise ProblemError(f"is damaged: an RLE segment cannot be read ({reason(error)})") from error
        if len(content) < size:
            raise ProblemError(f"is damaged: an RLE segment has {len(content)} of {size} bytes")
        planes[number // wide, :, wide - 1 - number % wide] = np.frombuffer(content, np.uint8)[:size]
    samples = planes.view(f"<u{wide}").reshape(layout.samples, layout.rows, layout.columns)
    return samples[0] if layout.samples == 1 else np.moveaxis(samples, 0, -1)
