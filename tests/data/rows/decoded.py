"""What workers of the tests call. They import this module, which is why it imports so little."""

import os
import pathlib
import signal
import time
from typing import NamedTuple

import numpy as np

from jaxboost.data.problems import ProblemError


class Item(NamedTuple):
    """What a worker does: return `number`, or end or fail in the way `how`."""

    number: int
    how: str = ""
    folder: str = ""


def work(item: Item) -> np.ndarray:
    """The number, as an array of one value; or what `how` says."""
    if item.how == "problem":
        raise ProblemError("is wrong", fix="do this", setting="data.nan=''")
    if item.how == "mistake":
        raise KeyError("no such key")
    if item.how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item.how == "crash once":
        file = pathlib.Path(item.folder) / "crashed"
        if not file.exists():
            file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if item.how == "print":
        print("a line on the standard output", flush=True)
    if item.how == "pid":
        return np.array([os.getpid()])
    if item.how == "wait":
        (pathlib.Path(item.folder) / f"{os.getpid()}").touch()
        time.sleep(60)
    return np.array([item.number])
