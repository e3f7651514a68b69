"""Files: written whole or not at all, and read with bounds."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from jaxboost.errors import UserError

logger = logging.getLogger(__name__)

# No JSON file of ours is nearly as large.
MAX_JSON_BYTES = 64 << 20

# What the operating system says of a write that it refuses -> how a user helps.
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "your quota is used up: make room, or ask for more",
    errno.EFBIG: "it is a limit on the size of files: raise it (`ulimit -f`)",
    errno.EROFS: "the file system is read-only: mount it for writing, or write elsewhere",
    errno.EACCES: "get the right to write there, or write elsewhere",
    errno.EPERM: "get the right to write there, or write elsewhere",
    errno.EIO: "the disk, or the connection to it, has failed: check it",
    errno.ENOENT: "the folder is gone: it was removed, moved or unmounted",
    errno.ENOTDIR: "the folder is gone: a file is in its place",
    errno.ESTALE: "the folder is gone: it was removed or unmounted on its server",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "it is a limit on the number of open files: raise it (`ulimit -n`)",
    errno.ENFILE: "the machine has too many files open: end what opens them",
    errno.ENODEV: "the disk is gone: connect it again",
    errno.ENXIO: "the disk is gone: connect it again",
}
# These can only come from writing, so a command reports them wherever they occur; the others may come from reading too.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Of these, what is still seen of the folder says nothing of what is whole in it: it may be half removed.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO)


def remedy(error: OSError) -> str:
    """How a user helps where a write was refused."""
    return _REMEDIES.get(error.errno or 0, "find out why the system refuses it")


def is_of_disk(error: OSError) -> bool:
    """Whether the disk refused a write, whatever was written."""
    return error.errno in _OF_DISK


def os_error(error: Exception) -> OSError | None:
    """The operating system's error that an exception is, or reports; None where it is about something else.

    Libraries with an error class of their own have the system's number in its text: TensorStore, with which Orbax
    writes, and safetensors.
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
    """Turns what the disk refuses within it into one line with the cause and the remedy.

    Args:
      what: what is written, as a user knows it.
      then: gives the rest of the message, such as which checkpoint is whole.

    Raises:
      UserError: the system refuses to write.
    """
    try:
        yield
    except OSError as error:
        raise refused(what, error, then()) from error


def refused(what: object, error: OSError, then: str = "") -> UserError:
    """The line for a write that the system refuses; see `writing`."""
    if error.errno in _GONE:
        then = ""
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{what} cannot be written ({reason}): {remedy(error)}{then}")


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a damaged file or folder to NAME.damaged-1, or the next number that is free, and logs it."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(target)
    logger.warning("%s was damaged: it is kept as %s", path, target.name)
    return target


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, renamed to `path` when the block ends well and removed when it does not.

    The folder is made where it is missing. The name is unique, so that two processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in UTF-8, under a temporary name first.

    The bytes are on the disk before the name is: a power cut leaves the old file or the new one.

    Raises:
      OSError: it cannot be written; a file that was there before is as it was.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as the standard has it: NaN and infinities, which it lacks, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [clean(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(value), indent=indent)


def json_sha256(value: Any) -> str:
    """SHA-256 of a value as JSON has it, whatever the order of its keys and the space between them."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no regular file, too large, or no JSON.
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
    """What `path` is, or leads to, where that is no regular file, such as "a named pipe".

    "" for a regular file, and where there is nothing that can be looked at: opening it tells why.
    """
    try:
        mode = os.stat(path).st_mode
    # ValueError: a zero byte in the name.
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
