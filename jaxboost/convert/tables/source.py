"""What every source of weights offers to the conversion: its kind, its parts, their arrays, its constants."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxboost.convert.formats.tensors import Tensors, listed
from jaxboost.errors import UserError

# Kinds of sources. The parts of the first are decoder layers and their final norm, of the second a vision encoder's
# embedding, blocks and final norm.
LLAMA, VISION = "llama", "vision"
# Keys of parts, beside the numbers of layers.
FINAL_NORM, EMBEDDING, NORM = "final_norm", "embedding", "norm"

# Name of an array -> its shape, linear maps as (in, out).
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a converted folder, not read yet.

    Attributes:
      key: a layer's number, or FINAL_NORM, EMBEDDING or NORM.
      shapes: of its arrays, by our names.
      read: gives an array by its name, in the precision that is to be stored.
    """

    key: str
    shapes: Shapes
    read: Callable[[str, np.dtype], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(map(math.prod, self.shapes.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What is converted of a source.

    Attributes:
      parts: in the order in which they are written.
      constants: the manifest's entries that only this kind has.
      notes: what the user should know of how the source was read, a line each.
    """

    parts: tuple[Part, ...]
    constants: Mapping[str, Any]
    notes: tuple[str, ...]


class Source(Protocol):
    """A checkpoint whose tensors are known by our names.

    Attributes:
      kind: LLAMA or VISION.
      tensors: the checkpoint.
    """

    kind: str
    tensors: Tensors

    def select(self, layers: str, *, final_norm: bool) -> Selection:
        """Checks what is to be converted, and names it.

        Args:
          layers: the user's --layers.
          final_norm: whether the norm after the last layer is wanted too.

        Raises:
          UserError: the source does not hold it, or cannot be converted in parts.
        """


def check_tensors(
    tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], unread: Sequence[str], *, part: str, whole: str, kind: str
) -> None:
    """Raises one `UserError` that names all missing, unexpected, misshapen and unreadable tensors.

    Args:
      tensors: the checkpoint.
      wanted: name -> shape of every tensor that will be read.
      unread: tensors that should not be there.
      part: what is converted, for the message.
      whole: the same, as the configuration describes it.
      kind: of checkpoint that is expected.
    """
    problems = [f"missing: {name}" for name in wanted if name not in tensors.names]
    problems += [f"not part of {part}: {name}" for name in unread]
    for name, shape in wanted.items():
        if name in tensors.names:
            info = tensors.info(name)
            if info.obstacle:
                problems.append(f"{name} {info.obstacle}")
            elif info.shape != shape:
                problems.append(f"{name} has the shape {info.shape} instead of {shape}")
    if problems:
        raise UserError(
            f"{tensors.source} does not hold {whole}: {listed(problems, '; ')}. "
            f"Check that the download is complete and that it is a plain {kind}"
        )
