"""Opens users' files. Only regular files are opened, because a named pipe would wait forever."""

import pathlib
from typing import BinaryIO

from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.walk import unreadable


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Opens a file for reading; links are followed.

    Raises:
      ProblemError: it is not a regular file, or cannot be opened.
    """
    if text := unreadable(path):
        raise ProblemError(text)
    try:
        return path.open("rb")
    except OSError as error:
        raise ProblemError(f"cannot be read ({error.strerror or reason(error)})") from error
