"""Marks of the processes that use a folder of rows: what they have mapped is not removed.

A mark is a file in the folder, `.in-use-HOST-PID-ID`, that its process touches each minute, and removes at its end. One
that was not touched for `LEASE` seconds belongs to a process that was killed. Times are those of the disk, so the
clocks of two machines need not agree.
"""

import atexit
import contextlib
import os
import pathlib
import platform
import re
import threading
import time
import uuid

# A process may be busy or swapped out for this long.
LEASE = 600.0  # seconds
_HEARTBEAT = 60.0
PREFIX = ".in-use-"
# Also touched: the file whose time says when an entry was used last.
ABOUT = "about.json"


class _Own:
    """The marks of this process."""

    def __init__(self):
        self.files: set[pathlib.Path] = set()
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.name = f"{PREFIX}{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def add(self, file: pathlib.Path) -> None:
        with self.lock:
            self.files.add(file)
            if self.thread is None:
                self.thread = threading.Thread(target=self._beat, name="marks", daemon=True)
                self.thread.start()

    def touch(self) -> None:
        with self.lock:
            files = list(self.files)
        for file in files:
            with contextlib.suppress(OSError):
                file.touch()
                os.utime(file.with_name(ABOUT))

    def remove(self) -> None:
        with self.lock:
            for file in self.files:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            self.files.clear()

    def _beat(self) -> None:
        while True:
            time.sleep(_HEARTBEAT)
            self.touch()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", platform.node()) or "host"


def _after_fork() -> None:
    global _own
    _own = _Own()


_own = _Own()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _own.remove())


def use(folder: pathlib.Path) -> None:
    """Notes until the end of this process that it uses a folder. What the system refuses is left out."""
    file = folder / _own.name
    with contextlib.suppress(OSError):
        file.touch()
        _own.add(file)


def now(folder: pathlib.Path) -> float:
    """The time of the disk of a folder that this process uses; this machine's if it cannot write there."""
    file = folder / _own.name
    with contextlib.suppress(OSError):
        os.utime(file)
        return file.stat().st_mtime
    return time.time()


def in_use(folder: pathlib.Path, time_now: float, *, elsewhere: bool = False) -> bool:
    """Whether another process uses a folder.

    Args:
      folder: with the marks.
      time_now: see `now`.
      elsewhere: whether only processes on other machines count. Those on this one keep what they have mapped when a
        file is removed.
    """
    for file in _marks(folder):
        here = file.name.removeprefix(PREFIX).rsplit("-", 2)[0] == _host()
        if file.name == _own.name or (elsewhere and here):
            continue
        if not _is_old(file, time_now):
            return True
    return False


def remove_old(folder: pathlib.Path, time_now: float) -> None:
    """Removes the marks of processes that were killed."""
    for file in _marks(folder):
        if file.name != _own.name and _is_old(file, time_now):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def forget(folder: pathlib.Path) -> None:
    """This process does not use a folder any more."""
    file = folder / _own.name
    with _own.lock:
        _own.files.discard(file)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def _marks(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.glob(f"{PREFIX}*"))


def _is_old(file: pathlib.Path, time_now: float) -> bool:
    try:
        return time_now - file.stat().st_mtime > LEASE
    # It was removed meanwhile.
    except OSError:
        return True
