"""The interface of every source of weights: its kind, its parts, their arrays and its constants.

A source (`llama.LlamaSource`, `vit.VitSource`) has a `kind`, the `tensors` of its checkpoint, and a method
`select(layers, final_norm)`, which checks the tensors to convert and returns a `Selection`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.convert.formats.tensors import TensorInfo, Tensors, listed
from jaxboost.errors import UserError

# Kinds of converted folders. The parts of the first are decoder layers and their final norm. Those of the second are a
# ViT's embedding, blocks, final norm and, if it has one, pooling, or another encoder as a whole and the norm after it,
# if there is one. Those of the third are CLIP's text encoder and what it made of class prompts. The fourth is a single
# part: what an LLM has of the tokens of a question and its answers. The fifth is BLIP-2's Q-Former, as a whole.
LLAMA, VISION, TEXT, QUESTION, QFORMER = "llama", "vision", "text", "question", "qformer"
# Keys of parts, in addition to the numbers of layers.
FINAL_NORM, EMBEDDING, NORM, POOL, WHOLE = "final_norm", "embedding", "norm", "pool", "encoder"
TEXT_WEIGHTS, CLASSES, PROMPTS = "text", "classes", "prompts"

# Name of an array -> its shape, linear maps as (in, out).
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a converted folder, not read yet.

    Attributes:
      key: a layer's number, or FINAL_NORM, EMBEDDING, NORM, POOL, WHOLE, TEXT_WEIGHTS, CLASSES, PROMPTS,
        QUESTION or QFORMER.
      shapes: of its arrays, by our names.
      read: (name, dtype) -> an array in the precision in which it is stored.
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
    """The parts of a source to convert.

    Attributes:
      parts: in the order in which they are written.
      constants: the entries of the manifest that are specific to the kind.
      notes: lines for the log about how the source was read.
    """

    parts: tuple[Part, ...]
    constants: Mapping[str, Any]
    notes: tuple[str, ...]


def check_tensors(
    tensors: Tensors,
    wanted: Mapping[str, tuple[int, ...]],
    unread: Sequence[str],
    *,
    info: Callable[[str], TensorInfo] | None = None,
    part: str,
    whole: str,
    kind: str,
) -> None:
    """Raises one `UserError` that names all missing, unexpected, misshapen and unreadable tensors.

    Args:
      tensors: the checkpoint.
      wanted: name -> shape of every tensor that will be read.
      unread: tensors that should not be there.
      info: instead of that of `tensors`.
      part: what is converted, for the message.
      whole: the layers or the encoder as the configuration describes them, for the message.
      kind: of checkpoint that is expected.
    """
    problems = [f"missing: {name}" for name in wanted if name not in tensors.names]
    if len(problems) == len(wanted) > 1:
        problems = [f"missing: all {len(wanted)} tensors, such as {next(iter(wanted))}"]
        problems += [f"there are others, such as {name}" for name in sorted(tensors.names)[:1]]
    problems += [f"not part of {part}: {name}" for name in unread]
    for name, shape in wanted.items():
        if name in tensors.names:
            found = (info or tensors.info)(name)
            if found.obstacle:
                problems.append(f"{name} {found.obstacle}")
            elif found.shape != shape:
                problems.append(f"{name} has the shape {found.shape} instead of {shape}")
    if problems:
        raise UserError(
            f"{tensors.source} does not hold {whole}: {listed(problems, '; ')}. "
            f"Check that the download is complete and that it is a plain {kind}"
        )


def check_whole(source: str, layers: str, *, final_norm: bool, what: str = "vision encoder") -> None:
    """Raises UserError if only a part of a vision encoder, or of `what` else, is asked for."""
    if layers.strip() != "all":
        raise UserError(f"--layers {layers!r}: {source} is a {what}, which is converted whole: pass --layers all")
    if not final_norm:
        raise UserError(f"a {what} is converted with its final norm: leave --nofinal_norm out")


def left_out(names: Iterable[str], read: Iterable[str]) -> list[str]:
    """Tensors that are not read, as beginnings of names that no tensor that is read shares."""
    shared = {".".join(words[:count]) for words in (name.split(".") for name in read) for count in range(len(words))}
    beginnings = set()
    for name in names:
        words = name.split(".")
        steps = (".".join(words[:count]) for count in range(1, len(words)))
        beginnings.add(next((beginning for beginning in steps if beginning not in shared), name))
    return sorted(beginnings)
