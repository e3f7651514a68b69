"""What the table says of a field: default, meaning, unit, choices or range, and whether a resumed run may change it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers; a bound that is None does not exist.

    Attributes:
      above, least: the lower bound, without and with itself.
      below, most: the upper bound, likewise.
      words: the whole range for messages; empty: only the bound that is broken is named.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    words: str = ""

    def wanted(self, value: float) -> str:
        """What `value` should be, in words; empty if it is in the range."""
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
      default: its value where a config file does not set it; it also gives the field's type.
      meaning: what it does, in words.
      unit: of a number, such as "pixels".
      choices: the texts that it may hold, or a function that gives them, because a module below has to be imported.
      optional: the empty text is allowed beside `choices`.
      range: of a number.
      resume: whether it may change when a run continues. "same": no. "free": yes, because it says where something is,
        how often something is reported, or sets a limit that only refuses; weights and data are compared by their
        fingerprints. "given": the value may change, but not whether there is one.
      before: the value that stands for what versions without the field did; None for fields of the first version.
    """

    default: Any
    meaning: str
    unit: str = dataclasses.field(default="", kw_only=True)
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = dataclasses.field(default=(), kw_only=True)
    optional: bool = dataclasses.field(default=False, kw_only=True)
    range: Range | None = dataclasses.field(default=None, kw_only=True)
    resume: Literal["same", "free", "given"] = dataclasses.field(default="same", kw_only=True)
    before: Any = dataclasses.field(default=None, kw_only=True)

    def allowed(self) -> tuple[str, ...]:
        """The choices, imported where they are a function's."""
        return tuple(self.choices() if callable(self.choices) else self.choices)


# Generous limits: no number overflows below them, and no machine lacks the memory that they ask for by mistake.
MAX_SIDE = 8192  # pixels
MAX_STEPS = 2**31 - 1  # the training state counts steps in int32
MAX_EPOCHS = 10**6
BATCH_SIZE = Range(above=0, most=2**16)
PROBABILITY = Range(least=0, most=1, words="0 to 1")
