"""Identifies the code that reads files: images that other code made may have other pixels."""

import hashlib
import pathlib
from collections.abc import Iterable
from importlib import metadata

from jaxboost import __name__ as package

# The packages that decode or resample.
_DECODERS = ("imagecodecs", "nibabel", "numpy", "pillow", "pydicom", "scipy", "tifffile")


def identity(others: Iterable[str | None] = ()) -> str:
    """A digest of the source of all readers and of other modules, and of the versions of the decoders.

    Args:
      others: the files of the other modules.
    """
    digest = hashlib.sha256(" ".join(f"{name} {_version(name)}" for name in _DECODERS).encode())
    own = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    for path in (*own, *(pathlib.Path(other) for other in others if other)):
        try:
            digest.update(path.read_bytes())
        # Such as a package inside an archive.
        except OSError:
            digest.update(_version(package).encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
