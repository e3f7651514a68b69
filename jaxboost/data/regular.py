"""Files of users, opened only where they are regular ones: a named pipe would wait for ever."""

import pathlib
from typing import BinaryIO

from jaxboost.data.faults import FaultError, reason
from jaxboost.data.walk import problem


def open_regular(path: pathlib.Path) -> BinaryIO:
    """The file, open to be read; links are followed.

    Raises:
        FaultError: it is not a regular file, or cannot be opened.
    """
    if text := problem(path):
        raise FaultError(text)
    try:
        return path.open("rb")
    except OSError as error:
        raise FaultError(f"cannot be read ({error.strerror or reason(error)})") from error
