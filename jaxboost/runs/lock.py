"""A lock: only one process at a time may use the folder of a run.

The lock is a file, `run.lock`, because the kernel's own locks do not work on every network file system. It names its
owner (`filelock.SoftFileLease`: host, process, and when that process was started) and is touched every `_HEARTBEAT`
seconds. Another process takes it over after its owner has ended: immediately if the owner was on this machine, else
after the file has not been touched for `_LEASE` seconds. That time is measured with this machine's monotonic clock, so
the clocks of two machines need not agree.
"""

import contextlib
import logging
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator

import filelock

from jaxboost import io, processes
from jaxboost.errors import UserError

FILE = "run.lock"
# A process may be busy or swapped out for this long without losing the lock.
_LEASE = 120.0  # seconds
_HEARTBEAT = 15.0
_POLL = 1.0
# A network file system may show a new file this late to another machine.
_SEEN = 10.0
_NAMESPACE = "?pidns-"

logger = logging.getLogger(__name__)


class InUseError(UserError):
    """Another process uses the folder of the run."""


class RunLock:
    """The lock of one run; `locked` acquires and releases it."""

    def __init__(self, folder: pathlib.Path):
        """Creates the lock without acquiring it. `folder` of the run must exist."""
        self.folder, self.file = folder, folder / FILE
        self._lease = filelock.SoftFileLease(
            self.file, lease_duration=_LEASE, heartbeat_interval=_HEARTBEAT, thread_local=False
        )

    def acquire(self) -> None:
        """Acquires the lock. If its owner is on another machine, first waits to see whether that process has ended.

        Raises:
          InUseError: another process holds it.
          UserError: the folder cannot be written.
        """
        seen, deadline = None, time.monotonic() + 1.5 * _LEASE
        while not self._try():
            touched = self._touched()
            if self._is_here() or seen not in (None, touched) or time.monotonic() > deadline:
                raise InUseError(self._held_by_another())
            if seen is None:
                logger.info("%s; waiting %d s to see whether it is still running", self._held_by_another(), _LEASE)
                seen = touched
            time.sleep(_POLL)
        # A client of a network file system may remember that a file is missing which the last owner wrote, such as the
        # result. It looks again after it has made a file there itself, the lock, and when the folder is opened.
        with contextlib.suppress(OSError):
            os.scandir(self.folder).close()

    @property
    def token(self) -> str | None:
        """What the owner has written into the file to recognise it."""
        owner = self._lease.owner
        return None if owner is None else owner.token

    def check(self) -> None:
        """Raises UserError if this process no longer owns the run: its folder is gone, or another took it over."""
        owner = self._lease.owner
        if owner is not None and owner.token == self._lease.token:
            return
        if not os.path.isdir(self.folder):
            raise UserError(f"{self.folder} is gone: it was removed, moved or unmounted during the run")
        what = f"{self.file} was removed"
        if owner is not None:
            what = f"the process {owner.pid} on {_host(owner.hostname)} took over {self.folder}"
        raise UserError(
            f"{what} during the run: this process stops, because two processes would damage the checkpoints; if no"
            " other process uses the folder, run the same command again"
        )

    def release(self) -> None:
        """Removes the file if this process still owns it."""
        with contextlib.suppress(OSError):
            self._lease.release(force=True)

    def _try(self) -> bool:
        if os.path.isdir(self.file):
            raise UserError(f"{self.file} is a folder: remove it, the run needs a file of that name as its lock")
        with contextlib.suppress(OSError):
            # A power cut can leave an empty file, which filelock mistakes for a lock of one of its old versions.
            if not self.file.stat().st_size and self._is_left_empty():
                self.file.unlink()
        previous = self._lease.owner
        try:
            self._lease.acquire(timeout=0)
        except filelock.Timeout:
            return False
        if previous is not None:
            host = _host(previous.hostname)
            logger.info("%s: the process %d on %s, which used it, has ended", self.folder, previous.pid, host)
        self._note_time()
        return True

    def _is_left_empty(self) -> bool:
        """Whether the file stays empty; a running owner would write to it immediately."""
        time.sleep(_POLL)
        return not self.file.stat().st_size

    def _note_time(self) -> None:
        """Adds the time to the file; filelock ignores fields that it does not know."""
        with contextlib.suppress(OSError), self.file.open("a", encoding="ascii") as file:
            file.write(f"since={time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")

    def _since(self) -> str | None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = self.file.read_text(encoding="ascii")
            if found := re.search(r"^since=([-+:T0-9]{1,40})$", text, re.MULTILINE):
                return found[1]
        return None

    def _touched(self) -> int | None:
        try:
            # The file is opened, because a network file system may answer a plain stat from its cache.
            with self.file.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None

    def _is_here(self) -> bool:
        """Whether the owner is on this machine; then filelock can see whether it has ended."""
        owner = self._lease.owner
        if owner is None:
            return False
        name, _, namespace = owner.hostname.partition(_NAMESPACE)
        # A container can have the name of its host without seeing the processes of the host.
        return name == socket.gethostname() and namespace in ("", _pid_namespace())

    def _held_by_another(self) -> str:
        owner = self._lease.owner
        if owner is None:
            return f"{self.folder} is in use by another process, see {self.file}"
        since = self._since()
        if since is None:
            # The owner writes this entry a moment after the others.
            time.sleep(0.2)
            since = self._since()
        return (
            f"{self.folder} is in use by the process {owner.pid} on {_host(owner.hostname)}"
            f"{f' since {since}' if since else ''}: wait until it ends, or give another --workdir; only if it has"
            f" ended already, remove {self.file}"
        )


class _LockOfFirst(RunLock):
    """The lock of process 0, as another process of the same run sees it."""

    def acquire(self) -> None:
        """Waits until process 0 has the lock, and checks that this process sees it.

        Raises:
          UserError: it does not see it.
        """
        wanted = processes.gather("lock", None)[0]
        deadline = time.monotonic() + _SEEN
        while self.token != wanted:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.folder} on {socket.gethostname()} is not the folder of process 0, whose {FILE} it does not"
                    " have: give a --workdir on a disk that all processes share"
                )
            with contextlib.suppress(OSError):
                # A network file system asks its server again when a folder is listed.
                os.listdir(self.folder)
            time.sleep(_POLL / 4)

    def check(self) -> None:
        """Does nothing: process 0 checks."""


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[RunLock]:
    """Holds the lock of a run's folder. A missing folder is created, and removed again if it stays empty.

    Of several processes that train together the first one holds it, and the others see whether it is there.

    Raises:
      UserError: see `RunLock.acquire`; or a process does not see the folder.
    """
    lock = RunLock(folder)
    if not processes.is_first():
        lock = _LockOfFirst(folder)
        lock.acquire()
        yield lock
        return
    made: list[pathlib.Path] = []
    with io.writing(folder):
        for parent in (folder, *folder.parents):
            if os.path.exists(parent):
                break
            made.append(parent)
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        processes.gather("lock", lock.token)
        yield lock
    finally:
        lock.release()
        # rmdir leaves a folder that is not empty.
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def in_use(folder: pathlib.Path) -> bool:
    """Whether a process seems to use the folder of a run; nothing is waited for, so it is only good for display."""
    lock = RunLock(folder)
    with contextlib.suppress(OSError):
        touched = lock.file.stat().st_mtime
        owner = lock._lease.owner
        if owner is not None and lock._is_here() and owner.pid is not None:
            os.kill(owner.pid, 0)
        return time.time() - touched < _LEASE
    return False


def _host(name: str) -> str:
    return name.partition(_NAMESPACE)[0]


def _pid_namespace() -> str:
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return ""
