"""Helpers for files: atomic writes, digests, JSON with a size limit, and messages for writes that fail."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from jaxboost.errors import UserError

# Limit for reading. The JSON files of this package are far smaller.
MAX_JSON_BYTES = 64 << 20

logger = logging.getLogger(__name__)

# Error number of a refused write -> what the user can do.
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "your quota is used up: make room, or ask for more",
    errno.EFBIG: "the size of files is limited: raise the limit (`ulimit -f`)",
    errno.EROFS: "the file system is read-only: mount it for writing, or write elsewhere",
    errno.EACCES: "get the right to write there, or write elsewhere",
    errno.EPERM: "get the right to write there, or write elsewhere",
    errno.EIO: "the disk, or the connection to it, has failed: check it",
    errno.ENOENT: "the folder is gone: it was removed, moved or unmounted",
    errno.ENOTDIR: "the folder is gone: a file is in its place",
    errno.ESTALE: "the folder is gone: it was removed or unmounted on its server",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "the number of open files is limited: raise the limit (`ulimit -n`)",
    errno.ENFILE: "the machine has too many open files: end other programs",
    errno.ENODEV: "the disk is gone: connect it again",
    errno.ENXIO: "the disk is gone: connect it again",
}
# Only writing raises these, so commands report them wherever they occur. Reading may raise the others too.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# The folder is gone. It may be partly removed, so messages say nothing about the files in it.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO)


def user_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path with ~ expanded; an unknown user's ~name stays as it is."""
    return pathlib.Path(os.path.expanduser(path))


def remedy(error: OSError) -> str:
    """What the user can do about a refused write."""
    return _REMEDIES.get(error.errno or 0, "find out why the system refuses it")


def is_of_disk(error: OSError) -> bool:
    """Whether an error can only come from writing, such as a full disk."""
    return error.errno in _OF_DISK


def os_error(error: Exception) -> OSError | None:
    """Returns the OSError behind an exception: the exception itself, or one made from its text; None if there is none.

    TensorStore (which Orbax uses for writing) and safetensors raise other exceptions, whose text has the error number.
    """
    if isinstance(error, OSError):
        return error
    if found := re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error)):
        number = int(found[1] or found[2])
        return OSError(number, os.strerror(number))
    if isinstance(error, ValueError) and "rror writing" in str(error):
        if str(error).startswith("NOT_FOUND"):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return OSError(str(error).partition("\n")[0][:300])
    return None


@contextlib.contextmanager
def writing(what: object, then: Callable[[], str] = str) -> Iterator[None]:
    """Reports a refused write in the `with` block as one line with the cause and the remedy.

    Args:
      what: the file or folder, for the message.
      then: returns the end of the message, such as which checkpoint is complete.

    Raises:
      UserError: the system refuses to write.
    """
    try:
        yield
    except OSError as error:
        raise refused(what, error, then()) from error


def refused(what: object, error: OSError, then: str = "") -> UserError:
    """The error for a refused write; see `writing`."""
    if error.errno in _GONE:
        then = ""
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{what} cannot be written ({reason}): {remedy(error)}{then}")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a file atomically: yields a temporary path, which is renamed to `path` at the end of the block.

    After an exception the temporary file is removed and `path` is unchanged. A missing folder is made. The temporary
    name is unique, so that two processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_free_space(folder: pathlib.Path, needed: int, what: str, fix: str = "make room") -> None:
    """Raises UserError if there is less space than `needed`.

    Args:
      folder: where the files will be written; it need not exist yet.
      needed: number of bytes.
      what: what will be written, for the message.
      fix: what the user can do.
    """
    # Unlike pathlib's `exists`, this one does not raise an error below a folder without permissions.
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.exists(each))
    free = shutil.disk_usage(existing).free
    if free < needed:
        sizes = [f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB" for size in (needed, free)]
        raise UserError(f"{what} needs {sizes[0]}, but {existing} has {sizes[1]} left: {fix}")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in UTF-8 atomically, and syncs it to disk, so that it survives a power cut.

    Raises:
      OSError: it cannot be written; an existing file is unchanged.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a damaged file or folder to NAME.damaged-1, or the next free number, and logs a warning.

    Returns:
      The new path.
    """
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(target)
    logger.warning("%s was damaged: it is kept as %s", path, target.name)
    return target


def digest_of(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes, in hexadecimal.

    Args:
      path: the file.
      algorithm: a name that `hashlib.new` takes.

    Raises:
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        # MD5 detects damage here: without the flag, systems in FIPS mode refuse it.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON: NaN and infinities become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [clean(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(value), indent=indent)


def json_sha256(value: Any) -> str:
    """SHA-256 of a value as JSON, independent of the order of keys and of spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a regular file, too large, or not JSON.
    """
    if kind := irregular(path):
        raise ValueError(f"it is {kind}, not a regular file")
    with path.open("rb") as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def irregular(path: str | os.PathLike[str]) -> str:
    """Returns what a path is if it is not a regular file, such as "a named pipe". Links are followed.

    Returns:
      "" for a regular file. "" also if the path cannot be examined: opening it then raises the reason.
    """
    try:
        mode = os.stat(path).st_mode
    # ValueError: a zero byte in the name.
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
