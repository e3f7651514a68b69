"""What the user states about a source because its weights do not show it."""

import dataclasses

from jaxboost.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """Flags for vision encoders in timm's names, None for those that are not set.

    Attributes:
      heads: of every block.
      eps: of all LayerNorms.
      activation: of the MLPs, a key of `models.transformer.ACTIVATIONS`.
      resizing: one of `positions.RESIZINGS`.
      entry: selects one of several encoders in a file: the beginning of its tensors' names.
    """

    heads: int | None = None
    eps: float | None = None
    activation: str | None = None
    resizing: str | None = None
    entry: str | None = None

    def check_unused(self, source: str) -> None:
        """Raises UserError if any flag is set for a source that holds these values itself."""
        named = [f"--{name}" for name, value in dataclasses.asdict(self).items() if value is not None]
        if named:
            raise UserError(
                f"{source} does not take {', '.join(named)}: they are only for vision encoders in timm's names: leave "
                "them out"
            )
