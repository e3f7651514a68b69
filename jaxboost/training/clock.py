"""Where the seconds of a run go, over all its starts.

Each second belongs to one part:

- start: from the start of the run's assembly to the first step: data, weights, tokens of a frozen encoder.
- compile: the first step and the first evaluation batch of a start, which are compiled or read from the cache.
- data: the loop waits for the next batch. The device may still be busy with earlier steps, as they run
  asynchronously: this is the most that a faster input could save.
- step: everything else in the loop, mostly waiting for the device.
- evaluation: validation and the final evaluation.
- checkpoints: saving, and reading one back.
- lost: work after the last checkpoint of a start that was interrupted, which was done again: the time between that
  checkpoint and the last record of metrics.jsonl. What came after the record is not known, and not counted; nor are
  starts that ended before their first record, and a final evaluation that was repeated.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

PARTS: tuple[str, ...] = ("start", "compile", "data", "step", "evaluation", "checkpoints", "lost")
_LOST = "lost"


class Clock:
    """Divides the time since its creation among PARTS. It begins with "start".

    Args:
      now: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "start", now()
        # Of starts by a version that did not divide them.
        self._undivided = 0.0

    def begin(self, part: str) -> None:
        """From now on time belongs to `part`, one of PARTS."""
        if part not in self._parts:
            raise KeyError(part)
        now = self._now()
        self._parts[self._part] += now - self._since
        self._part, self._since = part, now

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """The time inside the `with` block belongs to `part`, but for blocks inside it."""
        outer = self._part
        self.begin(part)
        try:
            yield
        finally:
            self.begin(outer)

    def add_earlier(self, seconds: float, parts: Mapping[str, float]) -> None:
        """Adds the time of earlier starts, as `seconds` and `parts` gave it; no parts: it is not divided."""
        if {*parts} == {*PARTS}:
            for part, value in parts.items():
                self._parts[part] += value
        else:
            self._undivided += seconds

    def lose(self, seconds: float) -> None:
        """Adds time of an earlier start whose work was lost."""
        self._parts[_LOST] += seconds

    def parts(self) -> dict[str, float]:
        """Part -> seconds so far; {} if a part of them is not divided."""
        self.begin(self._part)
        return {} if self._undivided else dict(self._parts)

    def seconds(self) -> float:
        """All seconds so far."""
        self.begin(self._part)
        return sum(self._parts.values()) + self._undivided

    def record(self) -> dict[str, float]:
        """The entries of a record in metrics.jsonl: "seconds", and "seconds_PART" if they are known."""
        each = {f"seconds_{part}": round(value, 2) for part, value in self.parts().items()}
        return {"seconds": round(self.seconds(), 2), **each}
