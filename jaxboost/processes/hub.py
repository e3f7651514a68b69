"""The thread of process 0 to which all processes are connected, also process 0 itself."""

import hmac
import logging
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from jaxboost.errors import UserError
from jaxboost.processes import wire
from jaxboost.processes.agreement import Desk, Post
from jaxboost.processes.launch import SECRET, Launch

logger = logging.getLogger(__name__)

# Time that other processes get to end after process 0 has ended its own work.
LEAVE_SECONDS = 10.0
_TICK = 0.25
# A connection that has not greeted: how long it may take, and how many there may be beside the processes.
GREETING_SECONDS, _STRANGERS = 5.0, 64
_CHUNK = 1 << 16


def listen(launch: Launch) -> socket.socket:
    """A socket that listens on the first free port of a launch.

    Raises:
      UserError: none is free.
    """
    # An address of this machine alone needs no door to the network.
    local = launch.host in ("127.0.0.1", "localhost")
    for port in launch.ports:
        try:
            if local:
                return socket.create_server(("127.0.0.1", port))
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            reason = error.strerror or str(error)
    ports = ", ".join(map(str, launch.ports))
    raise UserError(
        f"process 0 cannot listen on port {ports} of {launch.host} ({reason}): another launch may use it: wait until it"
        " ends, or give another one with --coordinator=HOST:PORT"
    )


class Hub:
    """Accepts the processes of a launch, and passes their messages through a `Desk`.

    Args:
      server: of `listen`.
      launch: the launch.
      version: of this package; a process of another one is refused.
      start_timeout, patience, stuck: in seconds, see `joining.Options`.
    """

    def __init__(
        self,
        server: socket.socket,
        launch: Launch,
        *,
        version: str,
        start_timeout: float,
        patience: float,
        stuck: float,
    ):
        self._server, self._launch, self._version = server, launch, version
        self._start_timeout, self._patience, self._stuck = start_timeout, patience, stuck
        self._selector = selectors.DefaultSelector()
        self._members: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        # Connection that has not greeted -> until when it may.
        self._strangers: dict[socket.socket, float] = {}
        self._desk: Desk | None = None
        self._beaten = 0.0
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wait(self, seconds: float = LEAVE_SECONDS) -> None:
        """Waits until all other processes have ended: JAX aborts them if process 0 ends before."""
        deadline = time.monotonic() + seconds
        while set(self._members) - {0} and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _run(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, (None, None))
        while True:
            for key, _ in self._selector.select(_TICK):
                index, reader = key.data
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._read(key.fileobj, index, reader)
            now = time.monotonic()
            for connection in [each for each, until in self._strangers.items() if now > until]:
                self._drop(connection, None)
            if self._desk is None:
                if now > deadline:
                    self._give_up()
                    return
                continue
            self._post(self._desk.tick(now))
            if now - self._beaten > self._patience / 10:
                self._beaten = now
                self._post([(index, {"kind": "beat"}) for index in self._members])

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        if len(self._strangers) >= _STRANGERS + self._launch.count:
            connection.close()
            return
        connection.settimeout(self._patience)
        self._strangers[connection] = time.monotonic() + GREETING_SECONDS
        self._selector.register(connection, selectors.EVENT_READ, (None, wire.Reader(wire.GREETING_BYTES)))

    def _read(self, connection: Any, index: int | None, reader: wire.Reader) -> None:
        try:
            data = connection.recv(_CHUNK if index is not None else wire.GREETING_BYTES)
            for message in reader.feed(data):
                if index is None:
                    index = self._greet(connection, reader, message)
                    if index is None:
                        return
                elif self._desk is not None:
                    self._post(self._desk.take(index, message, time.monotonic()))
        # Whatever comes over the network must not end this thread, on which all processes depend.
        except Exception as error:
            if index is not None and not isinstance(error, OSError):
                logger.warning("%s sent what is no message: %r", self._names[index], error)
            data = b""
        if not data:
            self._drop(connection, index)

    def _greet(self, connection: Any, reader: wire.Reader, hello: dict[str, Any]) -> int | None:
        """The number of a new process; None if it is refused."""
        index, reason, final = hello.get("index"), "", False
        if not hmac.compare_digest(str(hello.get("key")).encode(), self._launch.key.encode()):
            reason = f"it belongs to another launch, of {hello.get('count')} processes, or has another {SECRET}"
        elif hello.get("count") != self._launch.count:
            reason = f"it belongs to another launch, of {hello.get('count')} processes"
        elif type(index) is not int or index not in range(self._launch.count):
            reason = f"there is no process {index}"
        elif index in self._names:
            reason = f"{self._names[index]} is there already: another launch uses this port"
        elif hello.get("version") != self._version:
            final = True
            reason = (
                f"process {index} on {hello.get('host')} has jaxboost {hello.get('version')}, and process 0 has"
                f" {self._version}: install the same everywhere"
            )
        if reason:
            self._say(connection, {"kind": "refused", "reason": reason, "final": final})
            self._drop(connection, None)
            return None
        assert isinstance(index, int)
        del self._strangers[connection]
        reader.most = wire.MAX_BYTES
        self._names[index] = f"process {index} of {self._launch.count} ({hello.get('host')}, pid {hello.get('pid')})"
        self._members[index] = connection
        self._selector.modify(connection, selectors.EVENT_READ, (index, reader))
        if len(self._members) == self._launch.count:
            names = [self._names[each] for each in range(self._launch.count)]
            self._desk = Desk(names, time.monotonic(), patience=self._patience, stuck=self._stuck)
            self._post([(each, {"kind": "welcome", "names": names}) for each in self._members])
        return index

    def _give_up(self) -> None:
        missing = [str(each) for each in range(self._launch.count) if each not in self._members]
        line = (
            f"{len(self._members)} of {self._launch.count} processes came to {self._launch.host} within"
            f" {self._start_timeout:.0f} s, not process {', '.join(missing)}: see what these printed; if they start"
            " late, give all a longer --start_timeout"
        )
        for index in sorted(self._members, reverse=True):
            self._say(self._members[index], {"kind": "refused", "reason": line, "final": True})

    def _drop(self, connection: Any, index: int | None) -> None:
        self._selector.unregister(connection)
        connection.close()
        self._strangers.pop(connection, None)
        if index is not None:
            self._members.pop(index, None)
            if self._desk is None:
                del self._names[index]
            else:
                self._post(self._desk.closed(index))

    def _post(self, posts: Sequence[Post]) -> None:
        for index, message in posts:
            if index in self._members:
                self._say(self._members[index], message)

    def _say(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            wire.send(connection, message)
        except OSError:
            # The closed connection is seen when it is read.
            return
