"""Reads the stored values of a NIfTI file: NIfTI-1 or NIfTI-2, header and voxels in one file, compressed or not.

nibabel reads the fields of the header. This module reads the voxels, because it must compare sizes first: a header of
348 bytes can announce more voxels than any memory holds, and a compressed file can unpack to a thousand times its size.
It unpacks no more than the header announces, and reads a compressed file to its end to compare the checksum.
"""

import gzip
import math
import os
import pathlib
import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.readers.nifti_geometry import Geometry, read_geometry
from jaxboost.data.readers.regular_files import open_regular

if TYPE_CHECKING:
    import nibabel

SUFFIXES = (".nii.gz", ".nii")
# Codes of `datatype`.
_TYPES = {
    2: np.uint8,
    4: np.int16,
    8: np.int32,
    16: np.float32,
    64: np.float64,
    256: np.int8,
    512: np.uint16,
    768: np.uint32,
    1024: np.int64,
    1280: np.uint64,
}
_COLOURS = {128: "RGB24", 2304: "RGBA32"}
_OTHERS = {0: "unknown", 1: "1-bit", 32: "complex64", 1536: "float128", 1792: "complex128", 2048: "complex256"}
_GZIP = b"\x1f\x8b"
# DEFLATE packs at most 1,032 bytes into one, so a compressed file cannot hold more.
_RATIO = 1032
_CHUNK_BYTES = 1 << 20
# The most zeros after the voxels, with which a writer fills a block.
_PADDING_BYTES = 511
_MAX_EXTENSION = 1 << 26
# float32 and float64 represent all integers up to here exactly.
_FLOAT32_WHOLE = 2**24
FLOAT64_WHOLE = 2**53


def read(path: pathlib.Path, max_voxels: int) -> tuple[np.ndarray, Geometry]:
    """Reads the values (D, H, W) with slope and intercept applied, and their geometry.

    Values without slope and intercept keep their type. Others become float32 if that is exact, otherwise float64.

    Raises:
      ProblemError: the file cannot be read, holds more than `max_voxels`, or is not one volume of real numbers.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            compressed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            header = _read_header(stream)
            shape, dtype = _shape(header), _dtype(header)
            geometry = read_geometry(header, shape)
            offset = _offset(header)
            _check_size(math.prod(shape), dtype.itemsize, offset, max_voxels, size, compressed)
            values = _read_values(stream, offset - stream.tell(), shape, dtype)
        return _scaled(values, float(header["scl_slope"]), float(header["scl_inter"])), geometry
    except (OSError, EOFError, zlib.error, ValueError, MemoryError) as error:
        raise ProblemError(f"cannot be read as a NIfTI file ({reason(error)}): {_step(error)}") from error


def _step(error: Exception) -> str:
    """Returns what to do about an error of a stream."""
    if isinstance(error, MemoryError):
        return "it needs more memory than is available"
    if "Not a gzipped file" in str(error):
        return "something is appended after its compressed data: unpack it with gzip, and pack it again"
    return "it is cut off or damaged: copy it again"


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ProblemError if a shape, apart from axes of length 1 at its end, is not that of one volume."""
    if min(shape, default=0) < 1:
        raise ProblemError(f"is empty: its shape is {shape}: copy it again, or leave it out")
    if any(count != 1 for count in shape[3:]):
        check_one(shape)
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise ProblemError(
            f"is 2-D, with the shape {shape}: the backbone takes volumes",
            fix="give volumes, or set model.backbone to a 2D encoder",
            setting="volumes",
        )


def check_one(shape: tuple[int, ...], channels: bool = False) -> None:
    """Raises ProblemError if there are more than three axes; `channels`: one of them may be channels."""
    if len(shape) > 3:
        grey = ", in grey (x[..., 0] is one channel)" if channels else ""
        raise ProblemError(f"has {len(shape)} dimensions, {shape}: give one file for each volume{grey}")


def check_count(count: int, max_voxels: int) -> None:
    """Raises ProblemError if a file holds more than `max_voxels`."""
    if count > max_voxels:
        raise ProblemError(
            f"holds {count:,} voxels, and data.max_voxels is {max_voxels:,}",
            fix="make it smaller, or raise data.max_voxels if there is enough memory",
            setting=f"data.max_voxels={max_voxels}",
        )


def _read_header(stream: BinaryIO) -> "nibabel.Nifti1Header":
    # Imported here because nibabel is an optional package.
    import nibabel

    start = _read(stream, 4)
    for cls, size in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        for endianness, order in (("<", "little"), (">", "big")):
            if int.from_bytes(start, order) == size:
                rest = _read(stream, size - len(start))
                if len(rest) < size - len(start):
                    raise ProblemError(
                        f"cannot be read as a NIfTI file (it ends in its header of {size} bytes): copy it again"
                    )
                # nibabel's own checks log without the file's name, and correct some fields without a message.
                header = cls(start + rest, endianness=endianness, check=False)
                _check_magic(header)
                return header
    why, step = "it begins with none of its headers", "save it again as NIfTI"
    if not start:
        why, step = "it is empty", "copy it again"
    elif start.startswith(_GZIP):
        why, step = "it is compressed twice", "unpack it once with gunzip"
    raise ProblemError(f"cannot be read as a NIfTI file ({why}): {step}")


def _check_magic(header: "nibabel.Nifti1Header") -> None:
    magic = header["magic"].item().rstrip(b"\0")
    if magic == header.pair_magic.rstrip(b"\0"):
        raise ProblemError(
            "is the header of a pair .hdr and .img: join them: nibabel.save(nibabel.load('a.hdr'), 'a.nii.gz')"
        )
    if magic != header.single_magic.rstrip(b"\0"):
        raise ProblemError(
            f"cannot be read as a NIfTI file (the magic of its header is {magic!r}; Analyze files have none: "
            "nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load('a.hdr')), 'a.nii.gz') converts them)"
        )
    # NIfTI-2 has characters here that change if the file is transferred as text.
    if "eol_check" in header.structarr.dtype.names and tuple(header["eol_check"]) not in ((13, 10, 26, 10), (0,) * 4):
        raise ProblemError("cannot be read as a NIfTI file (eol_check: it was transferred as text: copy it as binary)")


def _shape(header: "nibabel.Nifti1Header") -> tuple[int, ...]:
    """Returns the lengths of the three axes of space."""
    dim = header["dim"].tolist()
    if not 1 <= dim[0] <= 7:
        raise ProblemError(f"cannot be read as a NIfTI file (dim[0] is {dim[0]}, not 1 to 7)")
    shape = tuple(dim[1 : dim[0] + 1])
    if len(shape) > 4 and shape[4] > 1:
        intent = int(header["intent_code"])
        raise ProblemError(
            f"has {shape[4]} values per voxel (shape {shape}, intent_code {intent}), such as vector components: "
            "give one file for each volume, with one value per voxel"
        )
    check_shape(shape)
    return shape[:3]


def _dtype(header: "nibabel.Nifti1Header") -> np.dtype:
    code = int(header["datatype"])
    if code in _COLOURS:
        raise ProblemError(
            f"holds colours ({_COLOURS[code]}): the backbone takes volumes of one number per voxel: save the labels or "
            "the grey values that the colours stand for"
        )
    if code in _OTHERS:
        raise ProblemError(
            f"holds values of type {_OTHERS[code]}, not real numbers of 8 to 64 bits: save them as float32 or int16"
        )
    if code not in _TYPES:
        raise ProblemError(f"cannot be read as a NIfTI file (datatype {code} is unknown)")
    return np.dtype(_TYPES[code]).newbyteorder(header.endianness)


def _offset(header: "nibabel.Nifti1Header") -> int:
    """Returns the offset of the voxels in bytes."""
    least, offset = header.single_vox_offset, float(header["vox_offset"])
    # Some writers leave it empty if there are no extensions.
    if offset == 0:
        return least
    if not (least <= offset <= _MAX_EXTENSION and offset == int(offset)):
        raise ProblemError(f"cannot be read as a NIfTI file (vox_offset is {offset:g}, expected {least} or more)")
    return int(offset)


def _check_size(count: int, itemsize: int, offset: int, max_voxels: int, size: int, compressed: bool) -> None:
    """Raises ProblemError if a file of `size` bytes cannot hold `count` voxels, or these are too many."""
    announced = offset + count * itemsize
    if announced > (size * _RATIO if compressed else size):
        raise ProblemError(
            f"cannot be read as a NIfTI file (its header announces {announced:,} bytes, and it has {size:,}"
            f"{' compressed ones' if compressed else ''}: it is cut off or damaged: copy it again)"
        )
    check_count(count, max_voxels)


def _read_values(stream: BinaryIO, skipped: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Reads the voxels after `skipped` bytes, in the machine's byte order; only padding may follow."""
    for start in range(0, skipped, _CHUNK_BYTES):
        _read(stream, min(_CHUNK_BYTES, skipped - start))
    content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    view, done = memoryview(content), 0
    while done < len(view):
        count = stream.readinto(view[done : done + _CHUNK_BYTES])
        if not count:
            raise EOFError(f"it ends after {done:,} of {len(view):,} bytes of voxels")
        done += count
    # This reaches the end of a compressed file, where its checksum is compared.
    rest = _read(stream, _PADDING_BYTES + 1)
    if len(rest) > _PADDING_BYTES or any(rest):
        raise ProblemError(
            f"holds more than the {math.prod(shape):,} voxels of {dtype.itemsize} bytes that its header announces: "
            "dim, datatype or vox_offset is wrong, or something was appended: save it again from its source"
        )
    values = content.view(dtype)
    if not dtype.isnative:
        values = values.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return values.reshape(shape, order="F")


def _read(stream: BinaryIO, count: int) -> bytes:
    """Reads `count` bytes, or fewer at the end; a compressed stream may give them in parts."""
    parts = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _scaled(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Applies slope and intercept; a slope of 0 or NaN means that there are none."""
    if slope == 0 or math.isnan(slope) or (slope, inter) == (1, 0):
        return stored
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise ProblemError(
            f"has scl_slope={slope:g} and scl_inter={inter:g}, which are not finite: correct them with nibabel: "
            "image.header.set_slope_inter(slope, inter)"
        )
    kind, width = stored.dtype.kind, stored.dtype.itemsize
    if kind in "iu" and width == 8 and max(abs(int(stored.min())), abs(int(stored.max()))) > FLOAT64_WHOLE:
        raise ProblemError("holds whole numbers above 2^53 and a slope: save them as float64 without a slope")
    # Integers times integers, as in CT (1 and -1024), are exact in float32, with half of the memory.
    whole = kind in "iu" and width <= 2 and slope.is_integer() and inter.is_integer()
    exact = whole and abs(slope) * 2 ** (8 * width) + abs(inter) <= _FLOAT32_WHOLE
    values = stored.astype(np.float32 if exact else np.float64, order="K")
    with np.errstate(over="ignore"):
        values *= slope
        values += inter
    return values
