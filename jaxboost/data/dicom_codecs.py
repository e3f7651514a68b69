"""Compressed pixel data of DICOM files. Needs the packages of the extra `dicom`.

The size that the compressed image itself announces is compared with the tags before it is decoded. GDCM decodes,
through pydicom; imagecodecs decodes what GDCM cannot (12-bit JPEG, HTJ2K) and run lengths, which pydicom does byte by
byte and without a limit.
"""

import contextlib
import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets
from pydicom.pixels import get_decoder

from jaxboost.data.faults import FaultError, reason

with contextlib.suppress(ImportError):
    import gdcm

    # What it prints is in our own messages.
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

if TYPE_CHECKING:
    from jaxboost.data.dicom_pixels import Layout

_HTJ2K = (uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
_JPEG_2000 = (uid.JPEG2000, uid.JPEG2000Lossless, *_HTJ2K)
_LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)
_LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_EXTRA = "`pip install 'jaxboost[dicom]'`"
# Bytes that an RLE segment may have beyond its pixels: writers pad them.
_RLE_SLACK = 256


@dataclasses.dataclass(frozen=True)
class _Stream:
    """What a JPEG or JPEG 2000 image says of itself. `colour`: of its markers, "RGB", "YBR_FULL" or "" for none."""

    rows: int
    columns: int
    components: int
    precision: int
    colour: str = ""


def options(layout: "Layout") -> dict[str, Any]:
    """The options of a decoder of pydicom. It must not cut off bits: padding is compared with all of them."""
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed or 0),
        "photometric_interpretation": layout.photometric,
        "planar_configuration": layout.planar or 0,
        "number_of_frames": 1,
        "correct_unused_bits": False,
        "allow_excess_frames": False,
    }


def decompress(value: bytes, syntax: uid.UID, layout: "Layout") -> tuple[np.ndarray, str]:
    """The samples (rows, columns) or (rows, columns, 3), and their colour space.

    Raises:
        FaultError: no installed package can, or the image is damaged or of another size than the tags say.
    """
    if layout.high != layout.stored - 1:
        raise FaultError(f"is compressed and has HighBit {layout.high} with BitsStored {layout.stored}: correct them")
    decoder = _decoder(syntax)
    frame = _only_frame(value, syntax)
    if syntax == uid.RLELossless:
        return _run_lengths(frame, layout), layout.photometric
    stream = _jpeg_2000(frame) if syntax in _JPEG_2000 else _jpeg(frame)
    if stream is None:
        raise FaultError(f"is damaged: its compressed image ({syntax.name}) does not begin as one")
    if (stream.rows, stream.columns, stream.components) != (layout.rows, layout.columns, layout.samples):
        found = f"{stream.rows} x {stream.columns} pixels of {stream.components} samples"
        said = f"{layout.rows} x {layout.columns} of {layout.samples}"
        raise FaultError(f"holds a compressed image of {found}, where its tags say {said}: correct its tags")
    try:
        pixels, colour = _decode(value, frame, stream, syntax, layout, decoder)
    except FaultError:
        raise
    except Exception as error:
        text = f"is compressed ({syntax.name}) and cannot be decompressed ({_last_reason(error)})"
        raise FaultError(f"{text}: save it uncompressed, for example `gdcmconv --raw FILE NEW`") from error
    if syntax in _LOSSY and layout.samples == 1:
        # Where the codec works with more bits than are stored, lossy values may lie a little beyond.
        lowest, highest = _bounds(layout)
        pixels = np.clip(pixels, max(lowest, np.iinfo(pixels.dtype).min), min(highest, np.iinfo(pixels.dtype).max))
    return pixels, colour


def _bounds(layout: "Layout") -> tuple[int, int]:
    return (-(2 ** (layout.stored - 1)), 2 ** (layout.stored - 1) - 1) if layout.signed else (0, 2**layout.stored - 1)


def _only_frame(value: bytes, syntax: uid.UID) -> bytes:
    try:
        # The first one is the table of offsets. A frame may be spread over several.
        fragments = list(generate_fragments(value))[1:]
        starts = sum(fragment.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) for fragment in fragments)
        frames = max(len(parse_basic_offsets(value)), len(fragments) if syntax == uid.RLELossless else starts)
        frame = get_frame(value, 0, number_of_frames=1)
    except Exception as error:
        raise FaultError(f"is damaged: its compressed pixels are not in order ({reason(error)})") from error
    if frames > 1:
        raise FaultError(f"has {frames} frames, though its NumberOfFrames says 1: give one file for each image")
    return frame


def _decoder(syntax: uid.UID) -> Any:
    """pydicom's decoder; None where imagecodecs decodes."""
    if syntax in _HTJ2K:
        return None
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        text = f"has the transfer syntax {syntax.name}, which pydicom cannot read: save it uncompressed"
        raise FaultError(text) from None
    if not decoder.is_available:
        needed = " or ".join(" ".join(text.split()) for text in decoder.missing_dependencies)
        raise FaultError(f"is compressed ({syntax.name}) and no decoder is installed: {_EXTRA} ({needed})")
    return decoder


def _imagecodecs(name: str) -> Any:
    try:
        import imagecodecs
    except ImportError:
        raise FaultError(f"is compressed ({name}) and no decoder is installed: {_EXTRA} (imagecodecs)") from None
    return imagecodecs


def _decode(
    value: bytes, frame: bytes, stream: _Stream, syntax: uid.UID, layout: "Layout", decoder: Any
) -> tuple[np.ndarray, str]:
    if syntax in _HTJ2K:
        pixels = _imagecodecs(syntax.name).jpeg2k_decode(frame)
        return pixels, "RGB" if layout.photometric in ("YBR_ICT", "YBR_RCT") else layout.photometric
    if syntax in uid.JPEGTransferSyntaxes and stream.precision > 8 and syntax not in _LOSSLESS_JPEG:
        if layout.samples != 1:
            raise FaultError("is a JPEG in colour of 12 bits, which is not read: save it uncompressed")
        return _imagecodecs(syntax.name).jpeg8_decode(frame), layout.photometric
    used = options(layout)
    if layout.samples == 3 and stream.colour:
        used["photometric_interpretation"] = stream.colour
    pixels, properties = decoder.as_array(value, raw=True, index=0, **used)
    return pixels, str(properties["photometric_interpretation"])


def _last_reason(error: Exception) -> str:
    """What the last decoder says. pydicom puts a sentence and each decoder's name before it."""
    return reason(ValueError(str(error).rpartition("\n")[2]))


def _jpeg(frame: bytes) -> _Stream | None:
    """The frame header of a JPEG or JPEG-LS image, by its markers; None where there is none."""
    colour, place = "", 2
    while frame[:2] == b"\xff\xd8" and place + 4 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        size = int.from_bytes(frame[place + 2 : place + 4], "big")
        content = frame[place + 4 : place + 2 + size]
        if marker == 0xE0 and content[:5] == b"JFIF\0":
            colour = "YBR_FULL"
        elif marker == 0xEE and content[:5] == b"Adobe" and len(content) >= 12:
            colour = "YBR_FULL" if content[11] == 1 else "RGB"
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if len(content) < 6:
                return None
            precision, rows, columns, components = struct.unpack(">BHHB", content[:6])
            # Lossless ones keep the colours that the tag says.
            return _Stream(rows, columns, components, precision, colour if marker in (0xC0, 0xC1, 0xC2) else "")
        elif marker in (0xD9, 0xDA):
            return None
        place += 2 + size
    return None


def _jpeg_2000(frame: bytes) -> _Stream | None:
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(frame) < start + 43:
        return None
    width, height, left, top = struct.unpack(">4L", frame[start + 8 : start + 24])
    components, depth = struct.unpack(">HB", frame[start + 40 : start + 43])
    return _Stream(height - top, width - left, components, (depth & 0x7F) + 1)


def _run_lengths(frame: bytes, layout: "Layout") -> np.ndarray:
    """RLE (PS3.5 annex G): one segment for each byte of a sample, the highest byte of the first sample first."""
    wide = layout.allocated // 8
    count, *offsets = struct.unpack("<16L", frame[:64].ljust(64, b"\0"))
    if count != wide * layout.samples:
        raise FaultError(f"is damaged: it has {count} RLE segments, its tags say {wide * layout.samples}")
    size = layout.rows * layout.columns
    ends = [*offsets[1:count], len(frame)]
    planes = np.zeros((layout.samples, size, wide), np.uint8)
    for number, (start, end) in enumerate(zip(offsets[:count], ends, strict=True)):
        try:
            content = _imagecodecs("RLE Lossless").packbits_decode(frame[start:end], out=size + _RLE_SLACK)
        except FaultError:
            raise
        except Exception as error:
            raise FaultError(f"is damaged: an RLE segment cannot be read ({reason(error)})") from error
        if len(content) < size:
            raise FaultError(f"is damaged: an RLE segment has {len(content)} of {size} bytes")
        planes[number // wide, :, wide - 1 - number % wide] = np.frombuffer(content, np.uint8)[:size]
    samples = planes.view(f"<u{wide}").reshape(layout.samples, layout.rows, layout.columns)
    return samples[0] if layout.samples == 1 else np.moveaxis(samples, 0, -1)
