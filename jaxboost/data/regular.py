"""Files of users, opened only where they are regular ones: a named pipe would wait for ever."""

import pathlib
import stat
from typing import BinaryIO

from jaxboost.data.faults import FaultError, reason

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: pathlib.Path) -> BinaryIO:
    """The file, open to be read; links are followed.

    Raises:
        FaultError: it is not a regular file, or cannot be opened.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
            raise FaultError(f"is {kind}, not a regular file")
        return path.open("rb")
    # ValueError: a null byte in the name.
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or reason(error)
        raise FaultError(f"cannot be read ({text})") from error
