"""Checks a command's outputs before it computes: it never overwrites its inputs, or files that it did not write."""

import errno
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable

from jaxboost import io
from jaxboost.errors import UserError


def check_file(path: pathlib.Path, flag: str, *, kind: str, is_ours: Callable[[pathlib.Path], bool]) -> None:
    """Checks the file that a flag names as the output.

    Args:
      path: the file.
      flag: the flag, such as "--out".
      kind: the kind of file that the command writes, for the message.
      is_ours: returns whether an existing file that is not empty was written by this command earlier.

    Raises:
      UserError: it is a folder, a device or a file of another kind; its folder is missing or cannot be written.
    """
    if os.path.isdir(path):
        raise UserError(f"{flag} {path} is a folder: give the name of a file, {kind}")
    check_folder(path, flag)
    if not os.path.lexists(path):
        return
    if not os.path.isfile(path):
        raise UserError(f"{flag} {path} is not a regular file and would be replaced by one: give another name")
    try:
        replaceable = path.stat().st_size == 0 or is_ours(path)
    except (OSError, ValueError):
        replaceable = False
    if not replaceable:
        raise UserError(f"{flag} {path} already exists and is not {kind}, it would be overwritten: give another name")


def check_folder(path: pathlib.Path, flag: str) -> None:
    """Raises UserError if `path`, which a flag names, cannot be created: its folder is missing or cannot be written."""
    if not os.path.isdir(path.parent):
        raise UserError(f"{flag} {path}: there is no folder {path.parent}: make it first")
    # Tested by writing, because permissions do not show that a file system is read-only.
    with io.writing(f"{flag} {path}"), tempfile.TemporaryFile(dir=path.parent):
        pass
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EACCES:
            raise io.refused(f"{flag} {path}", error) from error


def check_not_among(path: pathlib.Path, flag: str, inputs: Iterable[pathlib.Path], what: str) -> None:
    """Raises UserError if `path` is one of the inputs, under any name or link."""
    for other in inputs:
        if is_same(path, other):
            raise UserError(f"{flag} {path} is {what} ({other}), which would be overwritten: give another name")


def is_same(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Whether two paths are the same file or folder; they need not exist."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether `path` is the folder, or inside it at any depth."""
    real = pathlib.Path(os.path.realpath(path))
    return any(is_same(parent, folder) for parent in (real, *real.parents))
