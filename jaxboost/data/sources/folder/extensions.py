"""Extensions of file names: which files are images, and what to do with files that are not read."""

import pathlib
from collections.abc import Sequence

from jaxboost.data.readers import pictures, volumes
from jaxboost.data.readers.signatures import HEAD, content
from jaxboost.data.walk import unreadable

# Spatial dimensions -> extensions of the files that are read.
SUFFIXES = {2: pictures.SUFFIXES, 3: volumes.SUFFIXES}
ALL = tuple(dict.fromkeys((*volumes.SUFFIXES, *pictures.SUFFIXES)))
_AS_PNG = "convert it to PNG or TIFF"
_AS_NIFTI = "convert it to NIfTI (.nii.gz)"
_AS_NPY = "write each image of it as an .npy file"
_ADVICE = {
    **dict.fromkeys((".bmp", ".gif", ".webp", ".ppm", ".pgm", ".jp2", ".j2k", ".heic", ".avif", ".tga"), _AS_PNG),
    **dict.fromkeys((".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc", ".mif"), _AS_NIFTI),
    **dict.fromkeys((".img", ".hdr"), _AS_NIFTI),
    **dict.fromkeys((".npz", ".mat", ".h5", ".hdf5", ".pt", ".pkl"), _AS_NPY),
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".vsi", ".czi", ".lif"), "cut it into tiles, as PNG or TIFF"),
    **dict.fromkeys((".avi", ".mp4", ".mov", ".wmv", ".mpg"), "write the wanted frames as PNG"),
    **dict.fromkeys(
        (".part", ".partial", ".crdownload", ".download", ".filepart"), "download it again, it is not complete"
    ),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "decompress it, and move the archive away"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst"), "decompress it, and move the compressed file away"),
}
# Files without images. Of files with other extensions, the first bytes decide.
_NO_IMAGES = frozenset(
    (
        *(".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".pdf", ".db", ".ini", ".html", ".log", ".yaml", ".yml"),
        *(".py", ".sh", ".doc", ".docx", ".xls", ".xlsx", ".dvc", ".bval", ".bvec", ".rtf"),
        # Backup copies and unfinished files of editors.
        *(".bak", ".orig", ".old", ".tmp", ".swp"),
    )
)


def suffix_of(name: str) -> str:
    """Returns the extension of a file's name in lower case; ".nii.gz" is one."""
    name = name.lower()
    if name.endswith(".nii.gz"):
        return ".nii.gz"
    _, dot, last = name.rpartition("/")[2].rpartition(".")
    return f".{last}" if dot and last else ""


def without_suffix(name: str, suffixes: Sequence[str] = ALL) -> str:
    """Returns the name without its extension if that is one of `suffixes`, in any letter case; other dots stay."""
    folded = name.lower()
    return name[: len(name) - next((len(suffix) for suffix in suffixes if folded.endswith(suffix)), 0)]


def is_image(name: str) -> bool:
    """Returns whether a file has the extension of an image, 2-D or 3-D."""
    return name.lower().endswith(ALL)


def wrong_suffix(path: pathlib.Path, ndim: int) -> str:
    """Returns why a file is not read as an image of `ndim` dimensions, and what to do; "" if its extension is right."""
    suffix, accepted = suffix_of(path.name), ", ".join(SUFFIXES[ndim])
    if suffix in SUFFIXES[ndim]:
        return ""
    if suffix in ALL and ndim == 3:
        return f"is a 2-D image, and model.backbone takes volumes ({accepted})"
    if suffix in ALL:
        return f"is a volume, and model.backbone takes 2-D images ({accepted})"
    step = advice(path)
    return f"is not one of {accepted}{f': {step}' if step else ''}"


def advice(path: pathlib.Path) -> str:
    """Returns how to make a file without an image's extension readable; "" if it does not seem to hold an image."""
    suffix = suffix_of(path.name)
    if suffix in ALL:
        return ""
    if suffix in _ADVICE:
        return _ADVICE[suffix]
    if suffix in _NO_IMAGES or suffix.endswith("~") or unreadable(path):
        return ""
    try:
        with path.open("rb") as file:
            found = content(file.read(HEAD))
    except OSError:
        return ""
    return f"it {found}" if found else ""
