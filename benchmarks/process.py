"""Contenders in separate processes, so that each has its own memory, threads and libraries."""

import math
import multiprocessing
import multiprocessing.connection
import pathlib
import time
import traceback
from collections.abc import Callable
from typing import Any, Self


class LateError(Exception):
    """The calls of a `Remote` took longer than its limit; its process was ended."""


class Remote:
    """An object in another process: `remote.call("method", *arguments)` runs there and returns the result here.

    The process starts afresh (spawn), and ends with the `with` statement. A call raises RuntimeError with the other
    side's traceback where it, or making the object, failed; and LateError once all calls together took too long.

    Args:
      make: makes the object, with `arguments`.
      limit_s: seconds that all calls together may take.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, limit_s: float = math.inf):
        self._left = self._limit = limit_s
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()

    def call(self, method: str, *arguments: Any) -> Any:
        if self._left <= 0:
            raise LateError(f"not done within {self._limit:g} s")
        start = time.monotonic()
        self._connection.send((method, arguments))
        try:
            if not self._connection.poll(None if math.isinf(self._left) else self._left):
                self._left = 0.0
                self._process.kill()
                raise LateError(f"not done within {self._limit:g} s")
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise RuntimeError(f"the process ended with code {self._process.exitcode}: out of memory?") from None
        self._left -= time.monotonic() - start
        if not succeeded:
            raise RuntimeError(value)
        return value

    def reset_peak(self) -> None:
        """Resets the peak of `peak_mb` to the current memory."""
        self.call("reset_peak")

    def peak_mb(self) -> float:
        """Largest resident memory of the process since `reset_peak`, in MB."""
        return self.call("peak_mb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()


def _serve(connection: multiprocessing.connection.Connection, make: Callable[..., Any], arguments: Any) -> None:
    memory = {"reset_peak": _reset_peak, "peak_mb": _peak_mb}
    thing = None
    while True:
        try:
            method, call_arguments = connection.recv()
        except EOFError:
            return
        try:
            if method not in memory and thing is None:
                thing = make(*arguments)
            function = memory.get(method) or getattr(thing, method)
            connection.send((True, function(*call_arguments)))
        except Exception:  # the caller raises it
            connection.send((False, traceback.format_exc()))


def _reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6, 1)  # the kernel's kB are KiB
