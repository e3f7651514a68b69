"""Reads the data elements of a DICOM file within bounds. Needs the package pydicom (the extra `dicom`).

The header is read first, so that sizes are known before pixel data is read, inflated or decoded. Files without
preamble, without file meta information or without a transfer syntax are read if their bytes show the encoding.
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import pydicom
from pydicom.datadict import dictionary_has_tag
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.values import converters

from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.readers.regular_files import open_regular
from jaxboost.data.readers.signatures import HEAD, content

_PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_UNDEFINED = 0xFFFFFFFF
# Bytes of a deflated file before its pixel data. Lookup tables and icons are far smaller.
_MAX_DEFLATED_HEADER = 4 << 20
# Elements before the pixel data; a sequence counts once. Real files have hundreds; 8 zero bytes count as one element.
_MAX_ELEMENTS = 2**15

# pydicom logs a stack trace for each decoder that fails, and warns of each tag that violates the standard. Our own
# messages say what matters, with the file's name.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")


@dataclasses.dataclass
class DicomFile:
    """An open file whose header has been read.

    Attributes:
      header: every element before the pixel data.
      syntax: the transfer syntax that the file names, or None.
      encoding: the uncompressed transfer syntax in which the header is written.
      pixels: PixelData, FloatPixelData, DoubleFloatPixelData, or "" if there is no pixel data.
      length: bytes of the pixel data; None if the length is undefined, which means that it is compressed.
    """

    header: pydicom.Dataset
    syntax: UID | None
    encoding: UID
    pixels: str = ""
    length: int | None = 0
    _file: BinaryIO = dataclasses.field(default_factory=io.BytesIO, repr=False)
    _deflated: bytes = dataclasses.field(default=b"", repr=False)

    def read_pixels(self) -> tuple[bytes, str]:
        """Reads the pixel data: its value and its value representation. Call it once, after checking `length`.

        Raises:
          ProblemError: the file ends too early.
        """
        file = self._file
        if self._deflated:
            end = file.tell() + (self.length or 0) + 16
            file = io.BytesIO(_inflate(self._deflated, end))
            file.seek(self._file.tell())
        implicit, little = self.encoding.is_implicit_VR, self.encoding.is_little_endian
        element = next(data_element_generator(file, implicit, little), None)
        value = b"" if element is None or element.value is None else element.value
        if self.length is not None and len(value) < self.length:
            text = f"{len(value)} of {self.length} bytes of its pixel data are there"
            raise ProblemError(f"is cut off: {text}: copy it again")
        return value, (element.VR if element else None) or "OW"


@contextlib.contextmanager
def open_dicom(path: pathlib.Path) -> Iterator[DicomFile]:
    """Opens a file and reads its header. Every exception within the `with` block becomes a ProblemError.

    Raises:
      ProblemError: it is not a DICOM file, not a regular file, or damaged.
    """
    path = pathlib.Path(path)
    try:
        with open_regular(path) as file:
            yield _read_header(file)
    except ProblemError:
        raise
    except OSError as error:
        raise ProblemError(f"cannot be read ({reason(error)}): copy it again") from error
    # Damaged files make pydicom and its decoders raise nearly anything.
    except Exception as error:
        raise ProblemError(f"is damaged or violates the standard ({reason(error)}): copy it again") from error


def _read_header(file: BinaryIO) -> DicomFile:
    with_preamble = file.read(132)[128:] == b"DICM"
    if not with_preamble:
        file.seek(0)
        if _encoding(_peek(file), groups=(0x0002, 0x0008)) is None:
            other = content(file.read(HEAD))
            raise ProblemError(f"is not a DICOM file{f': it {other}' if other else ': copy it again'}")
    syntax = None
    deflated = b""
    if _peek(file)[:2] == b"\x02\x00":
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 0x0002)
        named = str(meta.get("TransferSyntaxUID") or "").strip(" \0")
        syntax = UID(named) if named else None
    if syntax == DeflatedExplicitVRLittleEndian:
        deflated = file.read()
        file = io.BytesIO(_inflate(deflated, _MAX_DEFLATED_HEADER))
    encoding = _written_in(_peek(file), syntax)
    found = []
    count = itertools.count()

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if next(count) > _MAX_ELEMENTS:
            text = f"it has more than {_MAX_ELEMENTS} elements before its pixel data"
            raise ProblemError(f"is damaged: {text}: copy it again")
        if tag in _PIXELS:
            found.append((_PIXELS[tag], None if length == _UNDEFINED else length))
        return tag in _PIXELS

    header = read_dataset(file, encoding.is_implicit_VR, encoding.is_little_endian, stop_when=at_pixels)
    if header.original_encoding[0] != encoding.is_implicit_VR and encoding.is_little_endian:
        # The file names one encoding and is written in the other; pydicom sees that in the first element.
        encoding = ImplicitVRLittleEndian if header.original_encoding[0] else ExplicitVRLittleEndian
    if not found and deflated and file.tell() >= _MAX_DEFLATED_HEADER:
        raise ProblemError(
            f"inflates to more than {_MAX_DEFLATED_HEADER >> 20} MiB before its pixel data: copy it again"
        )
    if not (found or with_preamble or "SOPClassUID" in header):
        raise ProblemError("is not a DICOM file: copy it again")
    pixels, length = found[0] if found else ("", 0)
    return DicomFile(header, syntax, encoding, pixels, length, file, deflated)


def _peek(file: BinaryIO) -> bytes:
    start = file.read(8)
    file.seek(-len(start), io.SEEK_CUR)
    return start


def _encoding(start: bytes, groups: tuple[int, ...] = ()) -> UID | None:
    """Returns the encoding of the element that begins with these 8 bytes; None if it is not an element of `groups`."""
    if len(start) < 8:
        return None
    explicit = start[4:6].decode("latin-1") in converters
    for order, syntax in (("<", ExplicitVRLittleEndian), (">", ExplicitVRBigEndian)):
        group, element = struct.unpack(f"{order}HH", start[:4])
        known = element == 0 or dictionary_has_tag(group << 16 | element)
        private = group % 2 == 1 and group < 0x0800
        if group in groups if groups else known or private:
            if explicit:
                return syntax
            # The first elements are short, or sequences.
            if order == "<" and (struct.unpack("<L", start[4:])[0] < 2**16 or start[4:] == b"\xff" * 4):
                return ImplicitVRLittleEndian
    return None


def _written_in(start: bytes, syntax: UID | None) -> UID:
    if syntax is None:
        if start and (found := _encoding(start)) is None:
            raise ProblemError(
                "names no transfer syntax, and its elements cannot be read as uncompressed ones: copy it again, or set"
                " TransferSyntaxUID"
            )
        return found if start else ExplicitVRLittleEndian
    # The headers of compressed and deflated files have explicit VRs.
    return syntax if syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian) else ExplicitVRLittleEndian


def _inflate(content: bytes, limit: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, limit)
