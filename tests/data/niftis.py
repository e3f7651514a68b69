"""NIfTI files for tests, and single fields of their headers."""

import gzip

import nibabel
import numpy as np


def header_of(content):
    """The header of an uncompressed file, as nibabel finds it."""
    cls, size = (
        (nibabel.Nifti1Header, 348)
        if content[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
        else (
            nibabel.Nifti2Header,
            540,
        )
    )
    return cls(content[:size], check=False)


def with_fields(content, **fields):
    """The content of an uncompressed file with other values in its header, whatever they are."""
    header = header_of(content)
    for name, value in fields.items():
        header.structarr[name] = value
    block = header.structarr.tobytes()
    return block + content[len(block) :]


def volume_bytes(values, affine=None, *, version=1, endianness="<", extensions=(), **fields):
    """A file (.nii) of `values`, with sform and qform of `affine` (mm, RAS), and single fields as they are given."""
    image_class, header_class = (
        (nibabel.Nifti1Image, nibabel.Nifti1Header) if version == 1 else (nibabel.Nifti2Image, nibabel.Nifti2Header)
    )
    affine = np.eye(4) if affine is None else np.asarray(affine, float)
    header = header_class(endianness=endianness)
    header.set_data_dtype(values.dtype)
    image = image_class(values, affine, header=header)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header.extensions.extend(extensions)
    return with_fields(image.to_bytes(), **fields)


def write_volume(path, *args, **options):
    """`volume_bytes` in a file, compressed where its name ends in .gz."""
    content = volume_bytes(*args, **options)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path
