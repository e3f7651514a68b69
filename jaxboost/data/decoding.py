"""Calls a function for many items, in worker processes if that pays, else in threads.

A worker is a new Python process that imports the function's module alone (see `decoding_worker`). It is neither forked,
because libraries' threads do not survive that, nor does it run the user's main script again, as Python's own pools do.
A worker that the system or a broken decoder ends takes no other item with it.
"""

import contextlib
import logging
import os
import pathlib
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jaxboost.data.problems import ProblemError

T = TypeVar("T")

# Items that a worker gets at once.
_CHUNK = 4
# Results of each process or thread that wait for the caller: more would fill the memory if the caller is slow.
_WAITING = 2
# One is 60 MB, before it reads anything.
_MOST_WORKERS = 64
_POLL = 0.5  # seconds
# Memory that reading one volume may take.
_VOLUME_BYTES = 4 << 30
# The linear algebra of several processes would use the cores several times.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

logger = logging.getLogger(__name__)


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def workers_for(count: int, ndim: int) -> int:
    """How many processes read `count` images, or volumes: at least two, or 0 where starting them does not pay."""
    if ndim == 2:
        found = min(cores(), count // 100, _MOST_WORKERS)
    else:
        found = min(cores(), count // 8, _MOST_WORKERS, max(2, _available() // _VOLUME_BYTES))
    return found if found > 1 else 0


def call(
    read: Callable[[Any], T], items: Sequence[Any], *, workers: int, threads: int
) -> Iterator[tuple[int, T | ProblemError]]:
    """Calls `read` for all items.

    Close the iterator if it is not used to its end: that ends the workers.

    Args:
      read: a function of a module, or a partial of one; it may raise ProblemError.
      items: its arguments.
      workers: number of processes; 0: threads of this one.
      threads: their number if there are no processes.

    Yields:
      (position of the item, result or ProblemError), as they are ready.

    Raises:
      Exception: what else `read` raises.
    """
    count = workers or max(1, min(threads, len(items)))
    pool = _Pool(read, items, workers, waiting=_WAITING * count)
    drivers = [
        threading.Thread(target=pool.drive, args=(bool(workers),), name="reading", daemon=True) for _ in range(count)
    ]
    for driver in drivers:
        driver.start()
    try:
        for _ in range(len(items)):
            position, result, raised = pool.result()
            if raised is not None:
                raise raised
            yield position, result
    finally:
        pool.stop()
        for driver in drivers:
            # A thread that decodes in this process ends after its item.
            driver.join(timeout=None if workers else 0.1)


class _Pool:
    """Hands out items to threads, each of which calls `read` itself or lets a worker do it."""

    def __init__(self, read: Callable[[Any], Any], items: Sequence[Any], workers: int, *, waiting: int):
        self.results: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(waiting)
        self._read, self._items = read, items
        self._lock, self._stopped = threading.Lock(), False
        self._next, self._chunk = 0, _CHUNK if workers else 1
        self._workers: set[_Worker] = set()
        self._warned = False

    def result(self) -> tuple[int, Any, BaseException | None]:
        """Waits for the next result."""
        while True:
            # Not without an end: on Windows, Ctrl-C would have to wait too.
            with contextlib.suppress(queue.Empty):
                return self.results.get(timeout=_POLL)

    def drive(self, in_process: bool) -> None:
        """Works until there are no more items."""
        try:
            worker = self._start() if in_process else None
            while chunk := self._take():
                if worker is None:
                    for position in chunk:
                        self._put(position, *_outcome(self._read, self._items[position]))
                else:
                    worker = self._ask(worker, chunk)
            if worker is not None:
                self._end(worker)
        # The caller waits for a result: it gets the mistake.
        except BaseException as error:
            self._put(0, None, error)

    def stop(self) -> None:
        """Ends the workers at once."""
        with self._lock:
            self._stopped = True
            for worker in self._workers:
                worker.kill()

    def _take(self) -> list[int]:
        with self._lock:
            if self._stopped:
                return []
            first, self._next = self._next, min(self._next + self._chunk, len(self._items))
            return list(range(first, self._next))

    def _put(self, position: int, result: Any, raised: BaseException | None) -> None:
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                self.results.put((position, result, raised), timeout=_POLL)
                return

    def _start(self) -> "_Worker | None":
        with self._lock:
            if self._stopped:
                return None
            try:
                worker = _Worker(self._read)
            except (OSError, pickle.PicklingError, AttributeError, TypeError) as error:
                return self._without(str(error))
            self._workers.add(worker)
        if worker.is_ready():
            return worker
        self._end(worker)
        return self._without(worker.end())

    def _without(self, reason: str) -> None:
        if not self._warned and not self._stopped:
            self._warned = True
            logger.warning(
                "processes that read files cannot be started (%s): threads read them, which takes longer", reason
            )

    def _ask(self, worker: "_Worker", chunk: list[int]) -> "_Worker | None":
        """Lets a worker do a chunk. Returns the worker to go on with."""
        lone, pending = False, list(chunk)
        while pending and not self._stopped:
            now = pending[:1] if lone else pending
            answers = worker.answers([self._items[position] for position in now])
            for result, raised in answers:
                self._put(pending.pop(0), result, raised)
                lone, now = False, now[1:]
            if not now:
                continue
            # It has ended at the first item without an answer. The item gets a second chance, alone.
            how = worker.end()
            self._end(worker)
            if lone:
                text = f"ended the process that read it ({how}): it may be damaged, or need more memory than there is"
                self._put(pending.pop(0), ProblemError(text), None)
            lone = not lone
            fresh = self._start()
            if fresh is None:
                for position in pending:
                    if not self._stopped:
                        self._put(position, *_outcome(self._read, self._items[position]))
                return None
            worker = fresh
        return worker

    def _end(self, worker: "_Worker") -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.close()


class _Worker:
    """A process that calls a function."""

    def __init__(self, read: Callable[[Any], Any]):
        content = pickle.dumps(read, pickle.HIGHEST_PROTOCOL)
        paths = [path for path in sys.path if isinstance(path, str)]
        program = f"import sys; sys.path[:] = {paths!r}; from jaxboost.data.decoding_worker import serve; serve()"
        # A group of its own: Ctrl-C on the terminal does not reach it.
        group = {"process_group": 0} if os.name == "posix" else {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            **group,
        )
        with contextlib.suppress(OSError):
            write_frame(self._process.stdin, content)

    def is_ready(self) -> bool:
        """Waits until it has imported the function; False if it could not."""
        return read_frame(self._process.stdout) is not None

    def answers(self, items: Sequence[Any]) -> Iterator[tuple[Any, BaseException | None]]:
        """Yields what the function returns for each item, and what it raises; fewer if the process ends before."""
        try:
            write_frame(self._process.stdin, pickle.dumps(items, pickle.HIGHEST_PROTOCOL))
        except (OSError, ValueError):
            return
        for _ in items:
            if (frame := read_frame(self._process.stdout)) is None:
                return
            yield pickle.loads(frame)

    def end(self) -> str:
        """Waits for its end; returns how it ended."""
        self._process.kill()
        code = self._process.wait()
        with contextlib.suppress(ValueError):
            if code < 0:
                return f"signal {-code}, {signal.Signals(-code).name}"
        return f"exit code {code}"

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def close(self) -> None:
        """Lets it end."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


def _outcome(read: Callable[[Any], Any], item: Any) -> tuple[Any, BaseException | None]:
    """What a function returns, or a ProblemError; and what else it raises."""
    try:
        return read(item), None
    except ProblemError as error:
        return error, None
    except BaseException as error:
        return None, error


def write_frame(pipe: Any, content: bytes) -> None:
    """Writes bytes with their length before them."""
    pipe.write(struct.pack("<Q", len(content)))
    pipe.write(content)
    pipe.flush()


def read_frame(pipe: Any) -> bytes | None:
    """Reads what `write_frame` wrote; None at the end, also in the middle of it."""
    try:
        header = pipe.read(8)
        if len(header) < 8:
            return None
        (length,) = struct.unpack("<Q", header)
        content = pipe.read(length)
    # The pipe was closed here.
    except (OSError, ValueError):
        return None
    return content if len(content) == length else None


def _available() -> int:
    """Bytes of memory that are free, or that the scheduler leaves to this process."""
    found = [8 << 30]
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = pathlib.Path("/proc/meminfo").read_text(encoding="ascii")
        found = [int(text.split("MemAvailable:")[1].split()[0]) << 10]
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int(pathlib.Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(limit - used)
    return max(0, min(found))
