"""Recognises a file by its first bytes, not its name: files get renamed, and a download may be an error page.

Nothing here reads weights. For a kind that is not supported, the message names the kind and a fix.
"""

import pathlib
import stat
import zipfile
from typing import IO

from jaxboost.errors import UserError

HEAD_BYTES = 1024
GGUF, SAFETENSORS, ZIP, PICKLE = "GGUF", "safetensors", "zip", "pickle"
ZIP_MAGIC = b"PK\x03\x04"
# A long number with which torch.save began its files.
_OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# The largest header that the format allows.
MAX_SAFETENSORS_HEADER = 100_000_000

_DOWNLOAD = "download the file itself, on the hub by its `resolve` address"
_UNPACK = "unpack it and pass what is inside"
_OTHER_COPY = "pass the PyTorch or safetensors weights of the same model"
# Beginning of a file -> what it is, and what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "run `git lfs pull` there, or download it again"),
    (b"/annex/objects/", "a git-annex pointer, not the file", "run `git annex get` there, or download it again"),
    (b"<!doctype html", "a web page, not weights", _DOWNLOAD),
    (b"<html", "a web page, not weights", _DOWNLOAD),
    (b"<?xml", "an XML text (a server's error message?), not weights", _DOWNLOAD),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", _OTHER_COPY),
    (b"\x93NUMPY", "a single NumPy array", _OTHER_COPY),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"lmgg", "a model in llama.cpp's old format", "take its GGUF file"),
    (b"fmgg", "a model in llama.cpp's old format", "take its GGUF file"),
    (b"tjgg", "a model in llama.cpp's old format", "take its GGUF file"),
)
# Kinds that the very first bytes do not show.
_TFLITE = ("a TensorFlow Lite model", _OTHER_COPY)
_TAR = ("a tar archive", _UNPACK)
_BY_SUFFIX = {
    ".msgpack": ("Flax weights (msgpack)", _OTHER_COPY),
    ".h5": ("HDF5 weights (Keras, TensorFlow)", _OTHER_COPY),
    ".tflite": _TFLITE,
    ".pb": ("a TensorFlow graph", _OTHER_COPY),
    ".index": ("a part of a TensorFlow checkpoint", _OTHER_COPY),
    ".meta": ("a part of a TensorFlow checkpoint", _OTHER_COPY),
    ".npz": ("a NumPy archive", _OTHER_COPY),
    ".mlmodel": ("a Core ML model", _OTHER_COPY),
    ".distcp": ("a part of a distributed PyTorch checkpoint", "join its folder with torch.distributed.checkpoint"),
    ".tar": _TAR,
}
_TORCH_SAVE = "python -c \"import torch; torch.save(torch.jit.load('{path}').state_dict(), 'weights.pth')\""


def head_of(path: pathlib.Path) -> bytes:
    """The first bytes of a file.

    Raises:
      UserError: it is not a regular file. It is not opened then, because opening a named pipe would wait forever.
      OSError: it cannot be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def check_regular(path: pathlib.Path) -> None:
    """Raises UserError for a pipe, a device or a socket. Links are followed."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a regular file (a pipe or a device?): pass a file or a folder")


def kind_of(head: bytes) -> str | None:
    """GGUF, SAFETENSORS, ZIP (as torch.save writes) or PICKLE by the first bytes; None for anything else."""
    if head.startswith(b"GGUF"):
        return GGUF
    if head.startswith(ZIP_MAGIC):
        return ZIP
    if len(head) > 8 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= MAX_SAFETENSORS_HEADER:
        return SAFETENSORS
    # The opcode, then a protocol from 2 on.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return PICKLE
    return None


def refuse_known(where: str, head: bytes) -> None:
    """Raises UserError if the first bytes are those of a kind of file that cannot be read here.

    Args:
      where: the file, for the message.
      head: its first bytes.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what, fix in _FOREIGN:
        if head.startswith(beginning) or (beginning.isascii() and text.startswith(beginning)):
            raise UserError(f"{where} is {what}: {fix}")
    if head[4:8] == b"TFL3":
        raise _is(where, _TFLITE)
    if head[257:262] == b"ustar":
        raise _is(where, _TAR)
    if not head:
        raise UserError(f"{where} is empty: download it again")
    if not head.strip(b"\0"):
        raise UserError(f"{where} begins with only zeros, as an incomplete download does: download it again")


def refuse_by_name(path: pathlib.Path) -> None:
    """Raises UserError if the name's extension is that of weights that cannot be read here."""
    if path.suffix.lower() in _BY_SUFFIX:
        raise _is(str(path), _BY_SUFFIX[path.suffix.lower()])
    if ".data-" in path.name:
        raise _is(str(path), _BY_SUFFIX[".index"])


def is_old_torch(head: bytes) -> bool:
    """Whether the first bytes are those of torch.save's format before version 1.6, a row of pickles."""
    return kind_of(head) == PICKLE and _OLD_TORCH in head[:32]


def check_torch_head(where: str, head: bytes, fix: str) -> None:
    """Raises UserError unless the first bytes are those of torch.save's current format, which is a zip archive.

    Args:
      where: the file, for the message.
      head: its first bytes.
      fix: what to do with a file of the old format.
    """
    if is_old_torch(head):
        raise UserError(f"{where} has PyTorch's old format, which cannot be read in parts: {fix}")
    if kind_of(head) == PICKLE:
        raise UserError(
            f"{where} is a Python pickle that torch.save did not write: pass the PyTorch or safetensors weights of the"
            " same model"
        )
    if not head.startswith(ZIP_MAGIC):
        refuse_known(where, head)
        raise UserError(f"{where} is not a PyTorch checkpoint, or its download is incomplete: download it again")


def check_torch_archive(path: str, file: IO[bytes] | None = None) -> None:
    """Raises UserError unless torch.save wrote the zip file and nothing compressed it again.

    Args:
      path: the file, which is opened unless `file` is given; for the message too.
      file: the file's bytes, if it is not on this machine.
    """
    try:
        with zipfile.ZipFile(file or path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise UserError(f"{path} is truncated or damaged: download it again") from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise UserError(
            f"{path} is a TorchScript program, not weights alone: save its weights with "
            f"`{_TORCH_SAVE.format(path=path)}`"
        )
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        if names and all(name.endswith(".npy") for name in names):
            raise _is(path, _BY_SUFFIX[".npz"])
        if any(name.endswith(".weights.h5") for name in names):
            raise _is(path, ("a Keras model", _OTHER_COPY))
        raise UserError(f"{path} is a zip archive, not a PyTorch checkpoint: {_UNPACK}")
    # torch.load maps what is stored, compressed or not.
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size for entry in entries):
        raise UserError(
            f"{path} was compressed again after torch.save wrote it, so that its weights cannot be read in parts: "
            "download the original, or load it and save it again"
        )


def _is(where: str, found: tuple[str, str]) -> UserError:
    return UserError(f"{where} is {found[0]}, which is not read: {found[1]}")
