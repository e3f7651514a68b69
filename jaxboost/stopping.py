"""SIGTERM, SIGHUP and Ctrl-C end a process without losing work, with one line instead of a traceback.

Most of a command can stop anywhere: files are written whole or not at all, and a run continues from its checkpoints.
There a signal raises `Stopped` at once. Code that would lose work runs under `deferred()`: a signal is only noted, and
the code asks `received()` or calls `poll()` when it can stop.

Python runs a signal handler only between two bytecode instructions, so not while XLA compiles, which can take minutes.
Therefore a second thread waits for signals too, and ends the process if the main thread does not react.

Where several processes train together (`processes`), a signal to one of them stops all: see `together`.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
# Time that the main thread gets to end by itself and to remove its temporary files.
GRACE_SECONDS = 4.0
# Ctrl-C reaches a process twice if its parent passes it on; a person needs longer for a second one.
_ONE_SIGNAL_SECONDS = 0.3
_FAREWELL_SECONDS = 2.0


class Stopped(KeyboardInterrupt):
    """A signal stops the command. Not an `Exception`, because code that handles failures should not handle this."""


class Ended(KeyboardInterrupt):
    """Another process, without which this one cannot go on, has failed; see `end`."""


class StopSignal:
    """State of the signals while a `watch` is open.

    Attributes:
      received: name of the first signal, empty before.
      advice: text after "stopped by SIGTERM" in the message for the user.
      resumable: the same command can continue the work later, so SIGTERM is not a failure.
      leaves: whether the process ends at once after its work, see `leave`.
      ended: the message and the exit code of `end`; None if it was not called.
      same_within: number of a signal -> seconds after the first signal within which it counts as the same.
    """

    def __init__(self, *, resumable: bool, kills: bool):
        self.received, self.number, self.advice, self.resumable = "", 0, "", resumable
        self._kills, self._deferred, self._open = kills, 0, True
        self._since = 0.0
        self.same_within: dict[int, float] = {}
        self._before: dict[int, Any] = {}
        # `_lost`: `Stopped` was raised where Python ignores exceptions. Then we send the signal to ourselves, and the
        # handler raises `Stopped` again. The second thread receives this signal too, and skips it.
        self._lost = self._again = False
        self._own_signals = 0
        self.leaves = False
        self.ended: tuple[str, int] | None = None
        self._raised = False

    @property
    def line(self) -> str:
        """The message for the user."""
        return f"stopped by {'Ctrl-C' if self.number == signal.SIGINT else self.received}{self.advice}"

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as in a shell; 0 if a scheduler stopped a command that can continue."""
        return self.exit_code_of(self.number)

    def exit_code_of(self, number: int) -> int:
        """The exit code after the signal `number`, see `exit_code`."""
        return 0 if self.resumable and number != signal.SIGINT else 128 + number

    def install(self) -> None:
        """Installs the handlers; signals that are ignored, as under nohup, stay ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._receive)
        if self._kills:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._hook_before, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            threading.Thread(target=self._wait, args=(self._reader,), name="stop signals", daemon=True).start()

    def uninstall(self) -> None:
        """Restores the previous handlers."""
        self._open = False
        if self._kills:
            sys.unraisablehook = self._hook_before
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_unraisable(self, found: Any) -> None:
        """Python's hook for exceptions that it cannot raise, as in callbacks of the garbage collector."""
        if isinstance(found.exc_value, Stopped):
            self._lost = True
        else:
            self._hook_before(found)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.ended:
            # Once: what follows may be the launcher, which ends the other processes too.
            if not self._raised:
                self._raised = True
                raise Ended(self.ended[0])
            return
        if self._again:
            self._again = False
            raise Stopped(self.line)
        if not self.received:
            self._note(number)
            if self._deferred:
                return
            if self._kills and _is_importing(frame):
                # Compiled modules turn an exception into other errors, or abort. The next run takes over a stale lock.
                _write(1, self.line)
                _tell("stopped", "", self.exit_code, number)
                leave(self.exit_code)
            raise Stopped(self.line)
        elif not self._kills and time.monotonic() - self._since > _ONE_SIGNAL_SECONDS:
            raise Stopped(self.line)

    def send_self(self, number: int) -> None:
        """Lets the main thread handle a signal, which the second thread does not count."""
        if number in self._before:
            self._own_signals += self._kills
            signal.pthread_kill(_main_thread(), number)

    def end_after_grace(self, line: str, code: int, stream: int, number: int = 0) -> None:
        """Ends the process if its work has not ended by then; `number`: of the signal, 0 after an error."""

        def wait() -> None:
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline:
                time.sleep(0.05)
                if not self._open:
                    return
            _write(stream, line)
            if number:
                _tell("stopped", "", code, number)
            os._exit(code)

        threading.Thread(target=wait, name="end late", daemon=True).start()

    def _note(self, number: int) -> None:
        self._since, self.number, self.received = time.monotonic(), number, signal.Signals(number).name

    def _wait(self, reader: int) -> None:
        """Runs in the second thread, which receives one byte per signal even while the main thread is busy."""
        first: float | None = None
        while data := os.read(reader, 1):
            if data[0] not in self._before:
                continue
            if self._own_signals:
                self._own_signals -= 1
                continue
            if first is None:
                first = time.monotonic()
                # If the signal is deferred, the code asks for it later, and may then save for a long time.
                if not self._deferred:
                    threading.Thread(target=self._end_late, args=(data[0],), name="stop late", daemon=True).start()
            elif time.monotonic() - first > self.same_within.get(data[0], _ONE_SIGNAL_SECONDS):
                again = "Ctrl-C" if data[0] == signal.SIGINT else signal.Signals(data[0]).name
                line = f"stopped at once by a second signal ({again}): what was saved before is complete"
                _write(2, line)
                # Not "stopped": the others must not wait for its part of what they agreed to save.
                _tell("failed", line, 128 + data[0], data[0])
                os._exit(128 + data[0])
        os.close(reader)

    def _end_late(self, number: int) -> None:
        """Ends the process if the main thread does not react to the signal, unless work would be lost."""
        # If the work ends meanwhile, the process ends by itself.
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if not self._open:
                return
            if self._lost:
                self._lost, self._again = False, True
                self._own_signals += 1
                signal.pthread_kill(_main_thread(), number)
        if self._deferred:
            return
        if not self.received:
            self._note(number)
        _write(1, self.line)
        _tell("stopped", "", self.exit_code, self.number)
        os._exit(self.exit_code)


_active: StopSignal | None = None


@contextlib.contextmanager
def watch(*, resumable: bool = False, kills: bool = False) -> Iterator[StopSignal]:
    """Handles signals inside the `with` block, see the module. A nested `watch` yields the outer one.

    Only the main thread can handle signals: in other threads nothing changes.

    Args:
      resumable: see `StopSignal`.
      kills: whether the process may be ended if its main thread does not react: only if it runs one command.
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
    """Only notes a signal that comes inside the `with` block: ask for it with `received` or `poll`."""
    stop = _active
    if stop is None:
        yield
        return
    stop._deferred += 1
    try:
        yield
    finally:
        stop._deferred -= 1


def is_deferred() -> bool:
    """Whether a signal would only be noted now."""
    return _active is not None and _active._deferred > 0


# Number of the signal that this process has received, or 0 -> that with which all processes stop here, or 0.
Agreement = Callable[[int], int]
_agreement: Agreement | None = None
# Tells the other processes that this one ends at once: how ("stopped" or "failed"), message, exit code, signal.
Farewell = Callable[[str, str, int, int], None]
_farewell: Farewell | None = None


@contextlib.contextmanager
def together(agreement: Agreement, farewell: Farewell | None = None) -> Iterator[None]:
    """Inside the `with` block, several processes stop together while signals are deferred.

    Each call of `received` and `poll` under `deferred` asks `agreement`. So all processes have to make these calls in
    the same order, as processes that take the same steps do.

    Args:
      agreement: see `Agreement`.
      farewell: called, from any thread, before the process is ended without its main thread.
    """
    global _agreement, _farewell
    _agreement, _farewell = agreement, farewell
    try:
        yield
    finally:
        _agreement = _farewell = None


def _tell(how: str, line: str, code: int, number: int) -> None:
    if (farewell := _farewell) is None:
        return
    # In a thread: a connection that takes nothing must not keep this process.
    thread = threading.Thread(target=farewell, args=(how, line, code, number), daemon=True)
    thread.start()
    thread.join(_FAREWELL_SECONDS)


def received() -> str:
    """The name of the signal that came, empty if none did."""
    if _active is None:
        return ""
    if _agreement is None or not _active._deferred:
        return _active.received
    number = _agreement(_active.number if _active.received else 0)
    if number and not _active.received:
        _active._note(number)
    return _active.received if number else ""


def noted() -> int:
    """The number of the signal that has come to this process itself, or that all agreed on; 0 if none. Asks nobody."""
    return _active.number if _active is not None and _active.received else 0


def note(number: int) -> None:
    """Notes a signal that another process has received, as if it had come to this one under `deferred`."""
    if _active is not None and not _active.received:
        _active._note(number)


def stop(number: int) -> NoReturn:
    """Raises `Stopped` because of a signal that came to another process."""
    note(number)
    raise Stopped(_active.line if _active is not None else "")


def expect_forwarded(number: int, seconds: float) -> None:
    """A parent passes a signal on that may have come to this process too: both are one within these seconds."""
    if _active is not None:
        _active.same_within[number] = seconds


def say(advice: str) -> None:
    """Sets the text after "stopped by SIGTERM" in the message for the user."""
    if _active is not None:
        _active.advice = advice


def poll() -> None:
    """Raises `Stopped` if a signal came."""
    if received() and _active is not None:
        raise Stopped(_active.line)


def pass_on(number: int, *, gone: bool = False) -> None:
    """Handles a signal that another process has received, as if it had come to this one; from any thread.

    Args:
      number: of the signal.
      gone: the other process has ended: this one ends too, even if it has noted a signal itself.
    """
    if (stop := _active) is None or stop.ended or (stop.received and not gone):
        return
    if stop.received:
        stop.end_after_grace(stop.line, stop.exit_code, 1, stop.number)
        return
    stop.send_self(number)
    # Also if this process defers signals: without the other one it cannot go on.
    line = f"stopped by {signal.Signals(number).name}{stop.advice}"
    stop.end_after_grace(line, stop.exit_code_of(number), 1, number)


def end(line: str, code: int, *, at_once: bool = False) -> None:
    """Ends the command because another process has failed; from any thread. The first call counts.

    The main thread raises `Ended`, also where signals are deferred: work that needs the other process is lost anyway.
    If it does not react, the process ends after `GRACE_SECONDS`.

    Args:
      line: what is printed on stderr.
      code: the exit code.
      at_once: without waiting for the main thread.
    """
    if (stop := _active) is None or stop.ended:
        return
    stop.ended = (line, code)
    if at_once:
        _write(2, f"error: {line}")
        os._exit(code)
    stop.send_self(signal.SIGTERM)
    stop.end_after_grace(f"error: {line}", code, 2)


def leave(code: int) -> None:
    """Ends the process now, without waiting for the threads of libraries, which have nothing left to do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _main_thread() -> int:
    number = threading.main_thread().ident
    assert number is not None  # It runs.
    return number


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _write(descriptor: int, line: str) -> None:
    # Python's streams may be locked by the thread that does not react.
    with contextlib.suppress(OSError):
        os.write(descriptor, (line + "\n").encode())


def _forget_in_child() -> None:
    """Restores the signals in a forked child, which would otherwise write them into its parent's pipe."""
    if _active is not None:
        signal.set_wakeup_fd(-1)
        for number in _active._before:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
