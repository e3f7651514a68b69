"""What process 0 decides for all: values that are gathered, the step to stop at, and which process has failed.

No sockets and no clock here: `hub` feeds messages and times in, and sends what comes out.

Messages of a process:
  {"kind": "beat", "point": P}: it lives; see `Desk.tick` for P.
  {"kind": "gather", "number": N, "name": NAME, "value": V}: its part of the N-th gathering.
  {"kind": "stop", "signal": S}: a signal asks it to stop; all should stop at the same point.
  {"kind": "at", "point": P}: the last point that it has passed; it passes no other one until "stop_at" comes.
  {"kind": "end", "how": "done" | "stopped" | "failed", "line": L, "code": C, "signal": S}: it ends now.
Answers:
  {"kind": "gathered", "number": N, "values": [...]} to all, when all have come.
  {"kind": "halt", "signal": S} to all: send "at".
  {"kind": "stop_at", "point": P} to all: the point after the last that any process has passed.
  {"kind": "ended", "index": I, "how": ..., "line": L, "code": C, "signal": S} to the others.
  {"kind": "bye"} to the process that ends.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]
# Number of a process, and the message for it.
Post = tuple[int, Message]

FAILED_CODE = 1


@dataclasses.dataclass
class Seat:
    """What is known of a process.

    Attributes:
      name: "process 1 of 2 (host, pid 123)".
      heard: time of its last message.
      point: see `Desk.tick`; 0: it is at none.
      since: when it came to that point.
      gone: it has said that it ends, or its connection is closed.
    """

    name: str
    heard: float
    point: int = 0
    since: float = 0.0
    gone: bool = False


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
        self._gathered: dict[int, dict[int, tuple[str, Any]]] = {}
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
            case "gather":
                return self._gather(index, message)
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
        the same order. Only in the loop of training do processes count: there none works alone for long.
        """
        furthest = max(seat.point for seat in self.seats)
        for index, seat in enumerate(self.seats):
            if seat.gone:
                continue
            if now - seat.heard > self._patience:
                seat.gone = True
                return self._lost(index, f"has not answered for {self._patience:.0f} s")
            if 0 < seat.point < furthest and now - seat.since > self._stuck:
                seat.gone = True
                return self._lost(index, f"has not gone on for {self._stuck:.0f} s, and the others wait for it")
        return []

    def _gather(self, index: int, message: Mapping[str, Any]) -> list[Post]:
        number = message["number"]
        parts = self._gathered.setdefault(number, {})
        parts[index] = (message["name"], message["value"])
        if len({name for name, _ in parts.values()}) > 1:
            texts = [f"{self.seats[each].name} at {name!r}" for each, (name, _) in sorted(parts.items())]
            line = f"the processes have come apart: {', '.join(texts)}: do all of them see the same files?"
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
