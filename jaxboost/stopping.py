"""SIGTERM, SIGHUP and Ctrl-C: a process ends by them where nothing is lost, with one line instead of a traceback.

Most of a command's work is lost by no stop: files are written whole or not at all, and a run goes on from its
checkpoints. There a signal raises `Stopped` at once. Where work would be lost, code runs under `deferred()`: a signal
is only noted, and the code asks `received()` or calls `poll()` where it can stop.

Python runs a signal's handler between two of its own instructions: not while XLA compiles, which can take minutes.
So a second thread waits for signals too, and ends the process where the main thread does not come to it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
# The main thread has so long to end by itself and to remove its temporary files.
GRACE_SECONDS = 4.0
# Ctrl-C reaches a process twice where its parent passes it on; a person's second one takes longer.
_ONE_SIGNAL_SECONDS = 0.3


class Stopped(KeyboardInterrupt):
    """A signal stops the command. No `Exception`: what handles failures should not handle this."""


class StopSignal:
    """What the signals do while a `watch` is open.

    Attributes:
      received: name of the first signal, empty before.
      ending: what follows "stopped by SIGTERM" in the line that a user reads.
      resumable: the command goes on where it was when it is given again: SIGTERM is then no failure.
    """

    def __init__(self, *, resumable: bool, kills: bool):
        self.received, self.number, self.ending, self.resumable = "", 0, "", resumable
        self._kills, self._deferred, self._open = kills, 0, True
        self._since = 0.0
        self._before: dict[int, Any] = {}
        # Raised where Python passes over exceptions: raised again by a signal of our own, of which the second thread
        # gets a byte as well.
        self._lost = self._again = False
        self._own_signals = 0

    @property
    def line(self) -> str:
        """What a user reads."""
        return f"stopped by {'Ctrl-C' if self.number == signal.SIGINT else self.received}{self.ending}"

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as in a shell; 0 where a scheduler stopped a command that can go on."""
        return 0 if self.resumable and self.number != signal.SIGINT else 128 + self.number

    def install(self) -> None:
        """Takes the signals over; those that are ignored, as by nohup, stay so."""
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._receive)
        if self._kills:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._hook_before, sys.unraisablehook = sys.unraisablehook, self._passed_over
            threading.Thread(target=self._wait, args=(self._reader,), name="stop signals", daemon=True).start()

    def uninstall(self) -> None:
        """Gives the signals back to who had them."""
        self._open = False
        if self._kills:
            sys.unraisablehook = self._hook_before
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _passed_over(self, found: Any) -> None:
        """Python's hook for exceptions in callbacks of the garbage collector and the like, which go no further."""
        if isinstance(found.exc_value, Stopped):
            self._lost = True
        else:
            self._hook_before(found)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._again:
            self._again = False
            raise Stopped(self.line)
        if not self.received:
            self._note(number)
            if self._deferred:
                return
            if self._kills and _is_importing(frame):
                # Compiled modules make other errors of an exception, or abort. A lock that is left is taken over.
                _write(1, self.line)
                leave(self.exit_code)
            raise Stopped(self.line)
        elif not self._kills and time.monotonic() - self._since > _ONE_SIGNAL_SECONDS:
            raise Stopped(self.line)

    def _note(self, number: int) -> None:
        self._since, self.number, self.received = time.monotonic(), number, signal.Signals(number).name

    def _wait(self, reader: int) -> None:
        """The second thread: it gets a byte for each signal, whatever the main thread does."""
        first: float | None = None
        while data := os.read(reader, 1):
            if data[0] not in self._before:
                continue
            if self._own_signals:
                self._own_signals -= 1
                continue
            if first is None:
                first = time.monotonic()
                # Where the signal is deferred now, the work asks for it, and may save for long after that.
                if not self._deferred:
                    threading.Thread(target=self._end_late, args=(data[0],), name="stop late", daemon=True).start()
            elif time.monotonic() - first > _ONE_SIGNAL_SECONDS:
                again = "Ctrl-C" if data[0] == signal.SIGINT else signal.Signals(data[0]).name
                _write(2, f"stopped at once by a second signal ({again}): what was saved before is whole")
                os._exit(128 + data[0])
        os.close(reader)

    def _end_late(self, number: int) -> None:
        """Ends the process where the main thread does not come to the signal, and nothing is lost by that."""
        # Where the work ends while this waits, the process ends by itself.
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if not self._open:
                return
            if self._lost:
                self._lost, self._again = False, True
                self._own_signals += 1
                signal.pthread_kill(threading.main_thread().ident, number)
        if self._deferred:
            return
        if not self.received:
            self._note(number)
        _write(1, self.line)
        os._exit(self.exit_code)


_active: StopSignal | None = None


@contextlib.contextmanager
def watch(*, resumable: bool = False, kills: bool = False) -> Iterator[StopSignal]:
    """The process's signals stop it while this is open; see the module. In one that is open already: that one.

    Only the main thread can take signals over: elsewhere nothing changes.

    Args:
      resumable: see `StopSignal`.
      kills: the process is a command of its own, which may be ended where its main thread does not answer.
    """
    global _active
    if _active is not None:
        yield _active
        return
    stop = StopSignal(resumable=resumable, kills=kills)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    _active = stop
    stop.install()
    try:
        yield stop
    finally:
        _active = None
        stop.uninstall()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within it a signal is only noted: ask `received` or `poll` for it."""
    stop = _active
    if stop is None:
        yield
        return
    stop._deferred += 1
    try:
        yield
    finally:
        stop._deferred -= 1


def received() -> str:
    """The name of the signal that came, empty where none did."""
    return "" if _active is None else _active.received


def say(ending: str) -> None:
    """Sets what follows "stopped by SIGTERM" in the line that a user reads."""
    if _active is not None:
        _active.ending = ending


def poll() -> None:
    """Raises `Stopped` where a signal came."""
    if _active is not None and _active.received:
        raise Stopped(_active.line)


def leave(code: int) -> None:
    """Ends the process now: threads of libraries, which would be waited for, have nothing left to do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _write(descriptor: int, line: str) -> None:
    # The streams of Python may be locked by the thread that does not answer.
    with contextlib.suppress(OSError):
        os.write(descriptor, (line + "\n").encode())


def _forget_in_child() -> None:
    """A forked child would write its signals into its parent's pipe."""
    if _active is not None:
        signal.set_wakeup_fd(-1)
        for number in _active._before:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
