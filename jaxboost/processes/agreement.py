"""What process 0 decides for all: values that are gathered, the step to stop at, and which process has failed.

No sockets and no clock here: `hub` feeds messages and times in, and sends what comes out.

Messages of a process:
  {"kind": "beat", "point": P}: it lives; see `Desk.tick` for P.
  {"kind": "gather", "number": N, "name": NAME, "value": V}: its part of the N-th gathering.
  {"kind": "work", "what": W}: it works alone now, which may take long, such as "reads the data"; "": no longer.
  {"kind": "stop", "signal": S}: a signal asks it to stop; all should stop at the same point.
  {"kind": "at", "point": P}: the last point that it has passed; it passes no other one until "stop_at" comes.
  {"kind": "end", "how": "done" | "stopped" | "failed", "line": L, "code": C, "signal": S}: it ends now.
Answers:
  {"kind": "gathered", "number": N, "values": [...]} to all, when all have come.
  {"kind": "halt", "signal": S} to all: send "at".
  {"kind": "stop_at", "point": P} to all: the point after the last that any process has passed.
  {"kind": "ended", "index": I, "how": ..., "line": L, "code": C, "signal": S} to the others.
  {"kind": "warning", "line": L} to process 0: for its log.
  {"kind": "bye"} to the process that ends.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]
# Number of a process, and the message for it.
Post = tuple[int, Message]

FAILED_CODE = 1
# Parts and multiples of `stuck`: after which a gathering that waits is told, and for compiling the first step.
WARNING, COMPILING = 0.1, 6


@dataclasses.dataclass
class Seat:
    """What is known of a process.

    Attributes:
      name: "process 1 of 2 (host, pid 123)".
      heard: time of its last message.
      point: see `Desk.tick`; 0: it is at none.
      since: when it came to that point.
      gone: it has said that it ends, or its connection is closed.
      work: what it does alone; "" if nothing.
      free: since when it has done nothing alone.
    """

    name: str
    heard: float
    point: int = 0
    since: float = 0.0
    gone: bool = False
    work: str = ""
    free: float = 0.0


@dataclasses.dataclass
class Gathering:
    """Values that are gathered: since when, the name and the value of each process that has come; whether one waits."""

    since: float
    parts: dict[int, tuple[str, Any]] = dataclasses.field(default_factory=dict)
    warned: bool = False


class Desk:
    """The state of the agreements.

    Args:
      names: of the processes, in their order.
      now: the time.
      patience: a process that is silent for longer counts as lost (seconds).
      stuck: so does one that stays at a point for longer while another goes on (seconds).
    """

    def __init__(self, names: Sequence[str], now: float, *, patience: float, stuck: float):
        self.seats = [Seat(name, now) for name in names]
        self._patience, self._stuck = patience, stuck
        self._gathered: dict[int, Gathering] = {}
        # When the first process had passed a point.
        self._moving: float | None = None
        self._signal: int | None = None
        self._at: dict[int, int] = {}
        self._stop_at: int | None = None
        self._over = False

    def take(self, index: int, message: Mapping[str, Any], now: float) -> list[Post]:
        """A message from process `index`; returns what to send."""
        seat = self.seats[index]
        seat.heard = now
        match message["kind"]:
            case "beat":
                if message["point"] != seat.point:
                    seat.point, seat.since = message["point"], now
                    if self._moving is None:
                        self._moving = now
            case "gather":
                return self._gather(index, message, now)
            case "work":
                seat.work, seat.free = message["what"], now
            case "stop":
                if self._signal is None:
                    self._signal = message["signal"]
                    return self._to_all({"kind": "halt", "signal": self._signal})
            case "at":
                self._at[index] = message["point"]
                if self._stop_at is None and len(self._at) == len(self.seats):
                    self._stop_at = max(self._at.values()) + 1
                    return self._to_all({"kind": "stop_at", "point": self._stop_at})
            case "end":
                seat.gone = True
                return [(index, {"kind": "bye"}), *self._ended(index, message)]
        return []

    def closed(self, index: int) -> list[Post]:
        """The connection of process `index` is closed."""
        seat = self.seats[index]
        if seat.gone:
            return []
        seat.gone = True
        return self._lost(index, "is gone: it was killed or has crashed")

    def tick(self, now: float) -> list[Post]:
        """Looks for lost processes.

        The point of a process is the number of points that it has passed, such as steps, which all processes pass in
        the same order. A process at point 0 may still compile its first step, so it has longer. Where values are
        gathered, a process that works alone is waited for as long as it lives.
        """
        furthest = max(seat.point for seat in self.seats)
        for index, seat in enumerate(self.seats):
            if seat.gone:
                continue
            if now - seat.heard > self._patience:
                seat.gone = True
                return self._lost(index, f"has not answered for {self._patience:.0f} s")
            since, limit = seat.since, self._stuck
            if not seat.point:
                since, limit = max(self._moving or now, seat.free), COMPILING * self._stuck
            if seat.point < furthest and not seat.work and now - since > limit:
                seat.gone = True
                return self._lost(index, f"has not gone on for {limit:.0f} s, and the others wait for it")
        return [post for gathering in self._gathered.values() for post in self._late(gathering, now)]

    def _late(self, gathering: Gathering, now: float) -> list[Post]:
        """Processes that the others wait for at a gathering."""
        name = next(name for name, _ in gathering.parts.values())
        missing = [each for each in range(len(self.seats)) if each not in gathering.parts]
        for index in missing:
            seat = self.seats[index]
            late = now - max(gathering.since, seat.free)
            if late > self._stuck and not seat.work and not seat.gone:
                seat.gone = True
                return self._lost(index, f"has not come to {name!r} for {late:.0f} s, where the others wait for it")
        if now - gathering.since > self._stuck * WARNING and not gathering.warned:
            gathering.warned = True
            texts = [f"{self.seats[each].name}{self._doing(each)}" for each in missing]
            line = f"at {name!r} for {now - gathering.since:.0f} s, waiting for {', '.join(texts)}"
            return [(0, {"kind": "warning", "line": line})]
        return []

    def _doing(self, index: int) -> str:
        return f", which {work}" if (work := self.seats[index].work) else ""

    def _gather(self, index: int, message: Mapping[str, Any], now: float) -> list[Post]:
        number = message["number"]
        parts = self._gathered.setdefault(number, Gathering(now)).parts
        parts[index] = (message["name"], message["value"])
        if len({name for name, _ in parts.values()}) > 1:
            texts = [f"{self.seats[each].name} at {name!r}" for each, (name, _) in sorted(parts.items())]
            line = (
                f"the processes do different things ({', '.join(texts)}): see whether all have the same command and"
                " environment, and see the same files; if they do, please report this"
            )
            return self._verdict(None, line, 2)
        if len(parts) < len(self.seats):
            return []
        del self._gathered[number]
        values = [parts[each][1] for each in range(len(self.seats))]
        return self._to_all({"kind": "gathered", "number": number, "values": values})

    def _ended(self, index: int, message: Mapping[str, Any]) -> list[Post]:
        if message["how"] == "done" or self._over:
            return []
        line = str(message["line"])
        if message["how"] == "failed":
            self._over = True
            line = f"{self.seats[index].name}: {line}"
        return self._to_all(
            {"kind": "ended", **{name: message[name] for name in ("how", "code", "signal")}, "line": line},
            but=index,
        )

    def _lost(self, index: int, what: str) -> list[Post]:
        line = f"{self.seats[index].name} {what}: run the same command again, which goes on from the last checkpoint"
        return self._verdict(index, line, FAILED_CODE)

    def _verdict(self, index: int | None, line: str, code: int) -> list[Post]:
        if self._over:
            return []
        self._over = True
        return self._to_all({"kind": "ended", "how": "failed", "line": line, "code": code, "signal": 0})

    def _to_all(self, message: Message, but: int | None = None) -> list[Post]:
        return [*self._each(message, but)]

    def _each(self, message: Message, but: int | None) -> Iterator[Post]:
        # Process 0 last: it ends with its process, and the others should have heard by then.
        for index in reversed(range(len(self.seats))):
            if index != but:
                yield index, message
