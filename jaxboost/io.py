"""Files: written whole or not at all, and read with bounds."""

import contextlib
import json
import math
import os
import pathlib
import stat
import uuid
from collections.abc import Iterator
from typing import Any

# No JSON file of ours comes near it.
MAX_JSON_BYTES = 64 << 20


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
        return json.loads(text)
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
    """What `path` is, or leads to, where that is no regular file, such as "a named pipe", which would be waited for.

    "" for a regular file, and where there is nothing that can be looked at: opening it tells why.
    """
    try:
        mode = os.stat(path).st_mode
    # ValueError: a zero byte in the name.
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
