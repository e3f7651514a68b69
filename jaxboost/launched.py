"""When the command was started that this process belongs to, also in the processes that it starts."""

import contextlib
import os
import time

_VARIABLE = "JAXBOOST_LAUNCHED"
_imported = time.time()


def pass_on() -> None:
    """At the start of a command: notes the time, unless this process was started by another command."""
    os.environ.setdefault(_VARIABLE, repr(_imported))


def seconds() -> float:
    """The time, in seconds since the epoch, by the clock of the machine where the command was started."""
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ[_VARIABLE])
    return _imported
