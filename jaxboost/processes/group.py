"""The processes of this launch as the rest of the package sees them."""

import contextlib
import logging
import signal as signals
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from jaxboost import stopping
from jaxboost.errors import UserError
from jaxboost.processes.member import Member

T = TypeVar("T")

logger = logging.getLogger(__name__)

# The logger of the lines that every process prints; other lines are those of process 0.
ANNOUNCEMENTS = f"{__name__}.announcements"


class Group:
    """The processes of a launch: what they agree on.

    Attributes:
      index, count: number of this process, and of all.
      names: of the processes, for messages.
      member: the connection to process 0; None for a process alone.
      verdict: message and exit code of the failure that ends this process; None before.
      works: what this process does alone, see `working`; the innermost last.
      left: the signal with which another process has ended, without an agreement to stop; 0: none has.
    """

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self.names: list[str] = []
        self.member: Member | None = None
        self.verdict: tuple[str, int] | None = None
        self.left = 0
        self.works: list[str] = []
        self._condition = threading.Condition()
        self._point = 0
        self._asked = self._halting = False
        self._signal = 0
        self._stop_at: int | None = None

    @property
    def agreed(self) -> bool:
        """Whether all have agreed to stop."""
        return self._stop_at is not None

    def agree(self, signal: int) -> None:
        """All have agreed to stop here, by other means than `passes`."""
        with self._condition:
            self._stop_at, self._signal = self._point, signal
            self._condition.notify_all()

    def point(self) -> int:
        """Number of the points that this process has passed."""
        return self._point

    def passes(self, received: int) -> int:
        """A point that all processes pass in the same order, such as the end of a step.

        If one of them has received a signal, all learn it at the same point. Costs a microsecond otherwise.

        Args:
          received: the signal that this process has received; 0: none.

        Returns:
          The signal with which all processes stop here; 0: go on.

        Raises:
          Stopped: another process has ended by a signal, and takes part in no agreement.
        """
        with self._condition:
            if received and not self._asked:
                self._asked = True
                assert self.member is not None
                self.member.send({"kind": "stop", "signal": received})
            # Those that are behind come to their point without this process: it has given its part already.
            while self._halting and self._stop_at is None and not self.left:
                self._condition.wait(0.5)
            if self.left and self._stop_at is None:
                stopping.stop(self.left)
            self._point += 1
            return self._signal if self._stop_at is not None and self._point >= self._stop_at else 0

    def hear(self, message: Mapping[str, Any]) -> None:
        """Handles a message of process 0; runs in the listening thread."""
        match message["kind"]:
            case "halt":
                self._halt(message["signal"])
            case "stop_at":
                with self._condition:
                    self._stop_at = message["point"]
                    self._condition.notify_all()
            case "warning":
                logger.warning(message["line"])
            case "ended":
                self._end(message)

    def _halt(self, number: int) -> None:
        if not stopping.is_deferred():
            # Nothing would be lost here.
            stopping.pass_on(number)
            return
        with self._condition:
            self._halting, self._signal = True, number
            assert self.member is not None
            self.member.send({"kind": "at", "point": self._point})

    def _end(self, message: Mapping[str, Any]) -> None:
        if message["how"] == "stopped":
            # After an agreement all end anyway, each as soon as it has saved.
            if self.agreed:
                return
            number = message["signal"] or int(signals.SIGTERM)
            with self._condition:
                self.left = number
                self._condition.notify_all()
            if self.member is not None:
                self.member.leave(number)
            stopping.pass_on(number, gone=True)
        elif self.verdict is None:
            self.verdict = (message["line"], message["code"])
            # Without process 0, JAX aborts the others within milliseconds.
            stopping.end(*self.verdict, at_once=bool(message.get("of_first")))


_group = Group(0, 1)


def current() -> Group:
    """The group of this process; one of its own if it is alone."""
    return _group


def enter(group: Group) -> None:
    """Makes `group` the current one."""
    global _group
    _group = group


def index() -> int:
    """The number of this process, from 0."""
    return _group.index


def count() -> int:
    """How many processes train together; 1 for a process alone."""
    return _group.count


def is_first() -> bool:
    """Whether this process writes the files of the run and its log: process 0 does."""
    return _group.index == 0


def name_of(number: int) -> str:
    """The name of a process for messages: "process 1 of 2 (host, pid 123)"."""
    return _group.names[number]


def gather(name: str, value: Any) -> list[Any]:
    """The values of all processes, in their order. All have to call it, and in the same order.

    Args:
      name: of this call, to notice processes that have come apart.
      value: anything that JSON can hold; not large.
    """
    return [value] if _group.member is None else _group.member.gather(name, value)


def first(name: str, work: Callable[[], T]) -> T:
    """What `work` returns in process 0, which runs it alone while the others wait; JSON for the others.

    An error in it ends all processes.
    """
    if _group.member is None:
        return work()
    with working(f"does alone what all need: {name}") if is_first() else contextlib.nullcontext():
        found: Any = work() if is_first() else None
    values = gather(name, found)
    return found if is_first() else values[0]


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Inside the `with` block this process does something that may take long, and that needs no other process.

    The others wait for it as long as it lives. Elsewhere a process that does not come counts as stuck after a while.

    Args:
      what: what it does, after its name: "reads the data".
    """
    group, member = _group, _group.member
    if member is None:
        yield
        return
    group.works.append(what)
    member.send({"kind": "work", "what": what})
    try:
        yield
    finally:
        group.works.pop()
        # One such block may be inside another.
        member.send({"kind": "work", "what": group.works[-1] if group.works else ""})


def all_stop() -> bool:
    """Whether a signal has come to any process by now; the same answer in all.

    Asked where the work that signals wait for is done, while they are still deferred: the process that receives a
    signal after its last `stopping.received` would else go on alone.
    """
    number = next((each for each in gather("stopped", stopping.noted()) if each), 0)
    if number:
        stopping.note(number)
        _group.agree(number)
    return number != 0


def check_same(what: str, value: Mapping[str, Any], fix: str) -> None:
    """Compares values over the processes.

    Args:
      what: name of the values, for the message "differs in WHAT", such as "the config".
      value: name -> value; anything that JSON can hold.
      fix: what the user can do.

    Raises:
      UserError: in all processes, if one differs from process 0.
    """
    found = gather(what, dict(value))
    for number, other in enumerate(found):
        names = [name for name in sorted({*found[0], *other}) if found[0].get(name) != other.get(name)]
        if names:
            texts = [
                f"{name} (process {number}: {_short(other.get(name))}, process 0: {_short(found[0].get(name))})"
                for name in names
            ]
            more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
            line = f"{name_of(number)} differs from process 0 in {what}: {', '.join(texts[:5])}{more}: {fix}"
            # All say the same, so that nobody has to hear it from another.
            _group.verdict = (line, 2)
            raise UserError(line)


def announce(text: str, *values: Any) -> None:
    """Logs a line in every process, not only in process 0."""
    logging.getLogger(ANNOUNCEMENTS).info(text, *values)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
