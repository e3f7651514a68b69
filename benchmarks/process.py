"""Contenders in separate processes, so that each has its own memory, threads and libraries."""

import multiprocessing
import multiprocessing.connection
import pathlib
import traceback
from collections.abc import Callable
from typing import Any, Self


class Remote:
    """An object in another process: `remote.call("method", *arguments)` runs there and returns the result here.

    The process starts afresh (spawn), and ends with the `with` statement. Raises RuntimeError with the other side's
    traceback where the call, or making the object, failed.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()

    def call(self, method: str, *arguments: Any) -> Any:
        self._connection.send((method, arguments))
        try:
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise RuntimeError(f"the process ended with code {self._process.exitcode}: out of memory?") from None
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
