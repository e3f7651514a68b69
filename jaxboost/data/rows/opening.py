"""What the system may refuse when parts are opened: that says nothing about their content."""

import contextlib
import errno
import pathlib
import sys

from jaxboost.errors import UserError
from jaxboost.io import remedy

if sys.platform != "win32":
    import resource

# Descriptors that are left to everything else.
_OTHER_FILES = 512


def refused(index: pathlib.Path, error: OSError | MemoryError, what: str) -> UserError:
    """The error for a part that cannot be read.

    Args:
      index: of the part.
      error: what the system says.
      what: the rows, see `store.Store`.
    """
    if isinstance(error, MemoryError):
        reason, fix = "there is not enough memory", "free some"
    elif error.errno in (errno.EACCES, errno.EPERM):
        reason, fix = error.strerror, "get the right to read it"
    else:
        reason, fix = error.strerror or str(error), remedy(error)
    return UserError(
        f"{index.with_suffix('')}.* cannot be read ({reason}): {fix}, or remove {index.parent}, whose {what} are then"
        " made again"
    )


def allow_files(count: int) -> None:
    """Raises the soft limit of open files of this process, if that many parts and all else would not fit."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
            )
