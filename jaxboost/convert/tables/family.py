"""What a family of encoders is: how timm stores them, and the arguments that their tensors show."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables.hints import Hints
from jaxboost.errors import UserError

# Our names of arrays -> torch's.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
HEADS = ("fc.", "classifier.", "head.fc.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The tensors of one encoder in a checkpoint.

    Attributes:
      shapes: name without the encoder's prefix -> shape.
      settings: config.json; empty for a single file of weights.
      hints: what the user states.
      where: the weights, for messages.
    """

    shapes: Mapping[str, tuple[int, ...]]
    settings: Settings
    hints: Hints
    where: str

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that every encoder of the family has.

        Raises:
          UserError: it is missing, or has another number of axes.
        """
        found = self.shapes.get(name)
        if found is None:
            raise UserError(f"{self.where} has no {name!r}: check that the download is complete")
        if len(found) != axes or 0 in found:
            raise UserError(f"{self.where}: {name} has the shape {found} instead of {axes} axes")
        return found

    def count(self, pattern: str) -> int:
        """The number of modules: 1 + the highest number in the names that match a pattern with one group."""
        numbers = [int(match[1]) for match in map(re.compile(pattern).match, self.shapes) if match]
        return 1 + max(numbers, default=-1)

    @property
    def architecture(self) -> str:
        """The name in timm, from config.json; "" for a single file."""
        return self.settings.get("architecture") or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One naming scheme of a family; names are without the encoder's prefix.

    Attributes:
      signature, also: tensors that each encoder with these names has, and no encoder of another family.
      axes: of the signature, where encoders of another family have a tensor of this name too; 0: any number.
      name: (our name of an array, arguments) -> the tensor's name.
    """

    signature: str
    also: tuple[str, ...] = ()
    axes: int = 0
    name: Callable[[str, Mapping[str, Any]], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of encoders.

    Attributes:
      title: for messages.
      architectures: timm's names of the models that are a row of BACKBONES -> the row.
      layouts: the naming schemes, timm's own last; the first whose signature is there is taken.
      arguments: of the encoder, as its manifest records them, from its tensors.
      norm: the module of the norm after the encoder; "" if there is none.
      ignored: beginnings of the names of tensors that do not affect the encoder's result.
      buffers: endings of the names of tensors that follow from the architecture, or are not used.
      takes: the fields of `Hints` that it reads.
      same: what a file alone does not show, and is assumed.
      source: of weights, where timm has none of this family.
    """

    title: str
    architectures: Mapping[str, str]
    layouts: tuple[Layout, ...]
    arguments: Callable[[Found], dict[str, Any]]
    norm: str = ""
    ignored: tuple[str, ...] = HEADS
    buffers: tuple[str, ...] = (".num_batches_tracked",)
    takes: tuple[str, ...] = ("entry",)
    same: str
    source: str = ""

    @property
    def example(self) -> str:
        """The name of weights that are read, for messages."""
        return self.source or f"timm's {next(iter(self.architectures))}"


def leaf(name: str) -> str:
    """The last word of a tensor's name for the last word of ours."""
    return _LEAVES[name]


def eps_of(found: Found, entry: str, default: float) -> float:
    """The eps of all LayerNorms: stated by the user, or by config.json, or timm's default."""
    if found.hints.eps is None:
        return found.settings.section("model_args").number(entry, default)
    return found.hints.eps


def stage_of(number: int, depths: Sequence[int]) -> tuple[int, int]:
    """The stage of a block, and its number there, from its number in the whole encoder."""
    stage = 0
    while number >= depths[stage]:
        number -= depths[stage]
        stage += 1
    return stage, number
