"""The declaration of a config field: default, meaning, unit, choices, range, and whether resuming may change it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers. A bound that is None does not exist.

    Attributes:
      above, least: the lower bound, exclusive and inclusive.
      below, most: the upper bound, exclusive and inclusive.
      words: text for the whole range in messages; empty: messages name only the violated bound.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    words: str = ""

    def wanted(self, value: float) -> str:
        """Returns what `value` should be, in words; empty if it is in the range."""
        import numpy as np

        # The model computes in float32: a number that is 0 there is not above 0.
        if self.above is not None and not np.float32(value) > self.above:
            return self.words or f"above {self.above}"
        if self.least is not None and value < self.least:
            return self.words or f"{self.least} or more"
        if self.below is not None and value >= self.below:
            return self.words or f"below {self.below}"
        if self.most is not None and value > self.most:
            return self.words or f"at most {self.most}"
        return ""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      default: the value if a config file does not set the field; its type is the type of the field.
      meaning: description of the field.
      unit: unit of a number, such as "pixels".
      choices: allowed texts, or a function that imports and returns them.
      optional: whether the empty text is allowed in addition to `choices`.
      range: range of a number.
      resume: whether the field may change when a run continues. "same": no. "free": yes, because it is a path, a
        reporting interval, a cache, or a limit that only rejects input; weights and data are compared by their
        fingerprints. "given": the value may change, but an empty value must stay empty and a set value must stay set.
        "auto": no, but the value "auto" agrees with every other: the first start chooses, and the run records and keeps
        its choice.
      before: the value that matches versions without the field; None: the first version had the field.
    """

    default: Any
    meaning: str
    unit: str = dataclasses.field(default="", kw_only=True)
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = dataclasses.field(default=(), kw_only=True)
    optional: bool = dataclasses.field(default=False, kw_only=True)
    range: Range | None = dataclasses.field(default=None, kw_only=True)
    resume: Literal["same", "free", "given", "auto"] = dataclasses.field(default="same", kw_only=True)
    before: Any = dataclasses.field(default=None, kw_only=True)

    def allowed(self) -> tuple[str, ...]:
        """Returns the choices; calls `choices` if it is a function."""
        return tuple(self.choices() if callable(self.choices) else self.choices)


# Generous limits: smaller numbers do not overflow, and a mistyped larger number cannot exhaust the memory.
MAX_SIDE = 8192  # pixels
MAX_STEPS = 2**31 - 1  # the training state counts steps in int32
MAX_EPOCHS = 10**6
BATCH_SIZE = Range(above=0, most=2**16)
PROBABILITY = Range(least=0, most=1, words="0 to 1")
