"""The connection of a process to process 0, and the thread that listens to it."""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxboost import stopping
from jaxboost.errors import UserError
from jaxboost.processes import wire
from jaxboost.processes.launch import Launch

_CHUNK = 1 << 16
_RETRY = 0.1
_TRY_SECONDS = 5.0
_BYE_SECONDS = 2.0


class RefusedError(UserError):
    """Process 0 does not accept this process.

    Attributes:
      final: it has given up to wait for the others; else this process has perhaps found another launch's process 0.
    """

    def __init__(self, message: str, *, final: bool):
        super().__init__(message)
        self.final = final


def connect(launch: Launch, *, start_timeout: float, version: str) -> tuple[socket.socket, wire.Reader, list[str]]:
    """Connects to process 0 and waits until all processes have come.

    Returns:
      The connection, the reader of its messages, and the name of each process.

    Raises:
      UserError: process 0 does not answer in time, or does not accept this process.
    """
    deadline, problems = time.monotonic() + start_timeout, {}
    while True:
        for port in launch.ports:
            left = deadline - time.monotonic()
            try:
                return _greet(launch, port, deadline, version)
            # Another launch may listen on one of several ports.
            except RefusedError as error:
                problems[port] = str(error)
                if len(launch.ports) == 1 or error.final:
                    raise
            except (OSError, ValueError) as error:
                problems[port] = getattr(error, "strerror", "") or str(error) or type(error).__name__
            if left <= 0:
                tried = "; ".join(f"port {port}: {reason}" for port, reason in problems.items())
                raise UserError(
                    f"process {launch.index} of {launch.count} on {socket.gethostname()}: the coordinator (process 0)"
                    f" on {launch.host}, found by {launch.found_by}, did not answer within {start_timeout:.0f} s"
                    f" ({tried}): see whether process 0 runs there and these ports are open between the hosts, or give"
                    " --coordinator=HOST:PORT or a longer --start_timeout"
                )
        time.sleep(_RETRY)


def _greet(launch: Launch, port: int, deadline: float, version: str) -> tuple[socket.socket, wire.Reader, list[str]]:
    host = "127.0.0.1" if launch.index == 0 else launch.host
    connection = socket.create_connection((host, port), timeout=_TRY_SECONDS)
    try:
        hello = {"key": launch.key, "index": launch.index, "count": launch.count, "version": version}
        wire.send(connection, {**hello, "host": socket.gethostname(), "pid": os.getpid()})
        reader = wire.Reader()
        # Process 0 itself says in time which processes are missing.
        connection.settimeout(max(0.0, deadline - time.monotonic()) + _TRY_SECONDS)
        while data := connection.recv(_CHUNK):
            for message in reader.feed(data):
                if message["kind"] == "refused":
                    start = "" if message["final"] else f"process 0 on {launch.host}:{port} refuses this process: "
                    raise RefusedError(f"{start}{message['reason']}", final=message["final"])
                if message["kind"] == "welcome":
                    connection.settimeout(None)
                    return connection, reader, message["names"]
        raise ValueError("it closed the connection")
    except BaseException:
        connection.close()
        raise


class Member:
    """This process among the others.

    Args:
      connection, reader: see `connect`.
      names: of the processes.
      patience: after this time without a word from process 0 it counts as lost (seconds).
      hear: called in the listening thread with each message that no `gather` waits for.
      point: gives the point of this process, see `agreement.Desk.tick`.
    """

    def __init__(
        self,
        connection: socket.socket,
        reader: wire.Reader,
        names: Sequence[str],
        *,
        patience: float,
        hear: Callable[[dict[str, Any]], None],
        point: Callable[[], int],
    ):
        self.names = names
        self._connection, self._reader = connection, reader
        self._patience, self._hear, self._point = patience, hear, point
        self._writing, self._condition = threading.Lock(), threading.Condition()
        self._gathered: dict[int, list[Any]] = {}
        self._number, self._bye, self._closed = 0, False, False
        self._left = 0
        self._thread = threading.Thread(target=self._listen, name="process 0's word", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message to process 0. If it is gone, the listening thread says so."""
        try:
            with self._writing:
                wire.send(self._connection, message)
        except OSError:
            return

    def gather(self, name: str, value: Any) -> list[Any]:
        """The values of all processes, in their order; waits for the last.

        Raises:
          Stopped: another process has ended by a signal, so that its part does not come.
        """
        number, self._number = self._number, self._number + 1
        self.send({"kind": "gather", "number": number, "name": name, "value": value})
        with self._condition:
            # In pieces: a signal is handled between them.
            while number not in self._gathered:
                if self._left:
                    stopping.stop(self._left)
                self._condition.wait(0.5)
            return self._gathered.pop(number)

    def leave(self, signal: int) -> None:
        """Another process has ended by a signal: waiting ends."""
        with self._condition:
            self._left = signal
            self._condition.notify_all()

    def end(self, how: str, line: str = "", code: int = 0, signal: int = 0) -> None:
        """Tells the others that this process ends. They have heard it when this returns, if they can hear."""
        self.send({"kind": "end", "how": how, "line": line, "code": code, "signal": signal})
        deadline = time.monotonic() + _BYE_SECONDS
        with self._condition:
            while not (self._bye or self._closed) and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)

    def _listen(self) -> None:
        heard = beaten = time.monotonic()
        while True:
            ready, _, _ = select.select([self._connection], [], [], self._patience / 20)
            now = time.monotonic()
            if now - beaten > self._patience / 10:
                beaten = now
                self.send({"kind": "beat", "point": self._point()})
            if ready:
                heard = now
                try:
                    data = self._connection.recv(_CHUNK)
                    messages = self._reader.feed(data)
                except (OSError, ValueError):
                    data, messages = b"", []
                for message in messages:
                    self._take(message)
                if not data:
                    self._lose("is gone: it was killed or has crashed")
                    return
            elif now - heard > self._patience:
                self._lose(f"has not answered for {self._patience:.0f} s")
                return

    def _take(self, message: dict[str, Any]) -> None:
        with self._condition:
            if message["kind"] == "gathered":
                self._gathered[message["number"]] = message["values"]
            elif message["kind"] == "bye":
                self._bye = True
            self._condition.notify_all()
        if message["kind"] not in ("gathered", "bye", "beat"):
            self._hear(message)

    def _lose(self, what: str) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if not self._bye:
            line = f"{self.names[0]} {what}: run the same command again, which goes on from the last checkpoint"
            self._hear({"kind": "ended", "how": "failed", "line": line, "code": 1, "signal": 0, "of_first": True})
