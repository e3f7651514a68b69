"""What the user states about a source because its weights do not show it."""

import dataclasses
from collections.abc import Collection

from jaxboost.convert.tables.positions import RESIZINGS
from jaxboost.errors import UserError
from jaxboost.models.activations import ACTIVATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """Flags for vision encoders in timm's or OpenCLIP's names, None for those that are not set.

    Attributes:
      heads: of every block.
      eps: of all LayerNorms.
      activation: of the MLPs, a key of `models.activations.ACTIVATIONS`.
      resizing: one of `positions.RESIZINGS`.
      entry: selects one of several encoders in a file: the beginning of its tensors' names.
    """

    heads: int | None = None
    eps: float | None = None
    activation: str | None = None
    resizing: str | None = None
    entry: str | None = None

    def check(self) -> None:
        """Raises UserError if a value is out of its bounds."""
        if self.eps is not None and not 0 < self.eps <= 1:
            raise UserError(f"--eps {self.eps} is not above 0 and at most 1")
        for name, choices in (("activation", tuple(ACTIVATIONS)), ("resizing", RESIZINGS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise UserError(f"--{name} {value!r} is not one of {', '.join(choices)}")

    def check_unused(self, source: str, used: Collection[str] = ()) -> None:
        """Raises UserError if a flag is set for a source that holds its value itself, or has no such value.

        Args:
          source: the source, for the message.
          used: the fields that it does take.
        """
        given = [name for name, value in dataclasses.asdict(self).items() if value is not None]
        if named := [f"--{name}" for name in given if name not in used]:
            whose = "other vision encoders" if used else "vision encoders"
            raise UserError(
                f"{source} does not take {', '.join(named)}: they are only for {whose} in timm's or OpenCLIP's "
                "names: leave them out"
            )
