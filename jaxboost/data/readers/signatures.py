"""Recognises the content of a file by its first bytes: for messages about files with a wrong extension."""

# Offset, the bytes there, the format, and the extension that the file should have.
_CONTENTS = (
    (128, b"DICM", "DICOM", ".dcm"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", ".png"),
    (0, b"\xff\xd8\xff", "JPEG", ".jpg"),
    (0, b"II*\0", "TIFF", ".tif"),
    (0, b"MM\0*", "TIFF", ".tif"),
    (0, b"\x93NUMPY", "NumPy", ".npy"),
    (344, b"n+1\0", "NIfTI", ".nii"),
)
HEAD = 512


def content(head: bytes) -> str:
    """Returns what a file with these first HEAD bytes holds, such as "holds a PNG file: ..."; "" if it is unknown."""
    for offset, mark, kind, suffix in _CONTENTS:
        if head[offset:].startswith(mark):
            return f"holds a {kind} file: give its name the extension {suffix}"
    return ""
