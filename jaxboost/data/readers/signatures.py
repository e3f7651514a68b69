"""What a file holds by its first bytes, whatever its name: for messages about files with a wrong ending."""

# Place of the bytes, the bytes, what the file is, and the ending that it should have.
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


def held(head: bytes) -> str:
    """What begins with these HEAD bytes, and what to do, such as "holds a PNG file: ..."; "" for no image."""
    for place, mark, kind, ending in _CONTENTS:
        if head[place:].startswith(mark):
            return f"holds a {kind} file: give its name the ending {ending}"
    return ""
