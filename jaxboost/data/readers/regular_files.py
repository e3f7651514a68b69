"""Files of users, opened only where they are regular ones: a named pipe would wait for ever."""

import pathlib
from typing import BinaryIO

from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.walk import unreadable


def open_regular(path: pathlib.Path) -> BinaryIO:
    """The file, open to be read; links are followed.

    Raises:
      ProblemError: it is not a regular file, or cannot be opened.
    """
    if text := unreadable(path):
        raise ProblemError(text)
    try:
        return path.open("rb")
    except OSError as error:
        raise ProblemError(f"cannot be read ({error.strerror or reason(error)})") from error
