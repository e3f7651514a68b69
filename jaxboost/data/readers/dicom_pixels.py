"""Reads the stored pixels of a DICOM file: their layout from the tags, then the samples.

The size in the tags is compared with the limit before any pixel is read, inflated or decompressed.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pydicom

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers import dicom_codecs
from jaxboost.data.readers.dicom_file import DicomFile
from jaxboost.data.readers.dicom_tags import fix, whole, word
from jaxboost.data.readers.pixels import check_pixels

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How pixels are stored, according to the tags.

    Attributes:
      rows: rows of the image.
      columns: columns of the image.
      samples: samples per pixel, 1 or 3.
      allocated: bits per sample in the file.
      stored: bits of a sample that are its value.
      high: the highest of these bits.
      signed: whether values are signed; None if the file does not say it.
      planar: 0: pixel by pixel, 1: plane by plane; None if the file does not say it.
      photometric: PhotometricInterpretation.
      keyword: PixelData, FloatPixelData or DoubleFloatPixelData.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool | None
    planar: int | None
    photometric: str
    keyword: str

    @property
    def bytes(self) -> int:
        """Bytes of the pixels without compression."""
        bits = self.rows * self.columns * self.samples * self.allocated
        # Two pixels share one pair of colour differences.
        return math.ceil(bits / 8) * 2 // 3 if self.photometric == "YBR_FULL_422" else math.ceil(bits / 8)


def read_layout(file: DicomFile, max_pixels: int) -> Layout:
    """Returns the layout of the image of a file.

    Raises:
      ProblemError: the file holds no image or several, an image of a kind that is not read, or one with more than
        `max_pixels`; or a tag is missing that cannot be guessed.
    """
    header = file.header
    if not file.pixels:
        cut = ": its pixel data is missing: it may be cut off" if "Rows" in header else ""
        raise ProblemError(f"is a DICOM file without an image{cut}")
    frames = whole(header, "NumberOfFrames") or 1
    if frames != 1:
        raise ProblemError(
            f"has {frames} frames: give one file for each image (dcm4che's `emf2sf` splits enhanced files)"
        )
    rows, columns = (_required(header, name) for name in ("Rows", "Columns"))
    check_pixels(columns, rows, max_pixels)
    samples, photometric = _photometric(header)
    layout = {"rows": rows, "columns": columns, "samples": samples, "photometric": photometric}
    return Layout(**layout, **_bits(file), planar=_planar(header), keyword=file.pixels)


def _required(header: pydicom.Dataset, name: str) -> int:
    number = whole(header, name)
    if number is None:
        raise ProblemError(f"has no {name}: set the number that its source gives, {fix(f'd.{name} = NUMBER')}")
    return number


def _photometric(header: pydicom.Dataset) -> tuple[int, str]:
    photometric = word(header, "PhotometricInterpretation")
    samples = whole(header, "SamplesPerPixel") or (3 if photometric in _COLOUR else 1)
    if not photometric and samples == 1:
        command = fix("d.PhotometricInterpretation = 'MONOCHROME2'")
        text = "has no PhotometricInterpretation, so black and white could be swapped"
        raise ProblemError(f"{text}: if its lowest value is black, {command}; if it is white, use 'MONOCHROME1'")
    if not photometric:
        command = fix("d.PhotometricInterpretation = 'RGB'")
        raise ProblemError(f"has no PhotometricInterpretation: {command}, or 'YBR_FULL', as its source says")
    if photometric not in (*GREY, PALETTE, *_COLOUR):
        raise ProblemError(f"is a colour image of a kind that is not read ({photometric}): save it as RGB")
    if samples != (3 if photometric in _COLOUR else 1):
        raise ProblemError(f"has {samples} samples for each pixel, but is {photometric}: correct the one that is wrong")
    if photometric == PALETTE or samples == 3 or word(header, "PixelPresentation") not in ("COLOR", "MIXED"):
        return samples, photometric
    raise ProblemError("is grey with a palette on it (PixelPresentation): save it as RGB")


def _bits(file: DicomFile) -> dict[str, Any]:
    header = file.header
    if file.pixels in _FLOATS:
        bits = _FLOATS[file.pixels]
        return {"allocated": bits, "stored": bits, "high": bits - 1, "signed": True}
    allocated, stored = (_required(header, name) for name in ("BitsAllocated", "BitsStored"))
    high = whole(header, "HighBit")
    high = stored - 1 if high is None else high
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= high + 1 <= allocated:
        text = f"BitsAllocated {allocated}, BitsStored {stored} and HighBit {high}"
        raise ProblemError(f"has {text}, which do not agree: correct them")
    signed = whole(header, "PixelRepresentation")
    if signed not in (0, 1, None):
        raise ProblemError(f"has PixelRepresentation {signed}: set 0 for unsigned pixels, 1 for signed ones")
    return {"allocated": allocated, "stored": stored, "high": high, "signed": None if signed is None else bool(signed)}


def _planar(header: pydicom.Dataset) -> int | None:
    planar = whole(header, "PlanarConfiguration")
    if planar not in (0, 1, None):
        raise ProblemError(f"has PlanarConfiguration {planar}: set 0 for pixel by pixel, 1 for plane by plane")
    return planar


def decode(file: DicomFile, layout: Layout) -> tuple[np.ndarray, str]:
    """Decodes the samples with all of their allocated bits.

    Returns:
      The samples (rows, columns) or (rows, columns, 3), and their colour space.

    Raises:
      ProblemError: the pixel data has another size, or a compression that cannot be read.
    """
    syntax = file.syntax or file.encoding
    if not syntax.is_transfer_syntax:
        raise ProblemError(f"names the transfer syntax {syntax}, which is unknown: save it uncompressed")
    if not syntax.is_encapsulated:
        return _native(file, layout)
    if file.length == layout.bytes + layout.bytes % 2:
        command = fix("d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian")
        raise ProblemError(f"names the transfer syntax {syntax.name}, but has uncompressed pixels: {command}")
    value, _ = file.read_pixels()
    return dicom_codecs.decompress(value, syntax, layout)


def _native(file: DicomFile, layout: Layout) -> tuple[np.ndarray, str]:
    _check_length(file, layout)
    if layout.samples == 3 and layout.planar is None:
        command = fix("d.PlanarConfiguration = 0")
        raise ProblemError(f"has no PlanarConfiguration: for colours pixel by pixel {command}, = 1 for plane by plane")
    value, representation = file.read_pixels()
    padded = layout.bytes + layout.bytes % 2
    if any(value[padded:]):
        raise ProblemError(f"has {len(value)} bytes of pixel data, but its tags say {layout.bytes}: correct its tags")
    pixels, properties = pydicom.pixels.get_decoder(file.syntax or file.encoding).as_array(
        value[:padded],
        raw=True,
        rows=layout.rows,
        columns=layout.columns,
        samples_per_pixel=layout.samples,
        bits_allocated=layout.allocated,
        bits_stored=layout.stored,
        pixel_representation=int(layout.signed or 0),
        photometric_interpretation=layout.photometric,
        planar_configuration=layout.planar or 0,
        number_of_frames=1,
        pixel_keyword=layout.keyword,
        pixel_vr=representation,
        # Padding values are compared with all bits.
        correct_unused_bits=False,
    )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels, str(properties["photometric_interpretation"])


def _check_length(file: DicomFile, layout: Layout) -> None:
    """Raises ProblemError if the pixel data is not as long as its tags say. Later, only zeros may follow the pixels."""
    command = fix("d.file_meta.TransferSyntaxUID = 'UID'")
    if file.length is None and file.syntax is None:
        raise ProblemError(f"is compressed, but names no transfer syntax: set the one of its source, {command}")
    if file.length is None:
        text = f"names the transfer syntax {file.syntax.name}, but has compressed pixels"
        raise ProblemError(f"{text}: set the one of its source, {command}")
    if layout.bytes <= file.length < 2 * layout.bytes or file.length == layout.bytes + layout.bytes % 2:
        return
    unknown = "" if file.syntax else f" (it names no transfer syntax: if its pixels are compressed, {command})"
    raise ProblemError(
        f"has {file.length} bytes of pixel data, but its tags say {layout.bytes}: correct its tags{unknown}"
    )


def stored_values(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns the values of the samples without other bits, such as overlays.

    Raises:
      ProblemError: bits would be lost, or the file does not say whether values are signed.
    """
    if pixels.dtype.kind == "f" or layout.allocated == 1:
        return pixels
    size = 8 * pixels.dtype.itemsize
    pixels = pixels.view(f"u{size // 8}")
    below = layout.high + 1 - layout.stored
    if below and (pixels & pixels.dtype.type((1 << below) - 1)).any():
        text = f"HighBit {layout.high} and BitsStored {layout.stored}, but has values in the bits below"
        raise ProblemError(f"has {text}: if they are right, {fix(f'd.HighBit = {layout.stored - 1}')}")
    unused = size - layout.high - 1
    # Shifting up and down again removes the bits above; for signed values it extends the sign.
    top = pixels << pixels.dtype.type(unused)
    if layout.signed is None and (top >> pixels.dtype.type(size - 1)).any():
        command = fix("d.PixelRepresentation = 0")
        raise ProblemError(f"has no PixelRepresentation: for unsigned pixels {command}, = 1 for signed ones")
    kept = top.view(f"i{size // 8}") if layout.signed else top
    return kept >> kept.dtype.type(unused + below)
