"""The protocol of the readers of checkpoints: named tensors, read one by one."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

# The precisions that are read, as NumPy, torch and ONNX name them.
DTYPES = ("float32", "float16", "bfloat16")
_MAX_LISTED, _MAX_CHARACTERS = 12, 200


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A stored tensor.

    Attributes:
      shape: of the tensor, linear maps as (out, in).
      obstacle: why it cannot be read, None if it can.
    """

    shape: tuple[int, ...]
    obstacle: str | None = None


class Tensors(Protocol):
    """Named weights of any model; nothing is read before `read`."""

    @property
    def source(self) -> str:
        """The origin that the manifest records, without paths of this machine."""
        ...

    @property
    def source_format(self) -> str:
        """One of "safetensors", "torch", "meta", "gguf", "onnx" and "hub"."""
        ...

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Shape of tensor `name`, and whether it can be read."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Tensor `name`, linear maps as (out, in), in the stored precision (quantized ones as float32)."""
        ...


def obstacle_of(dtype: str, readable: Collection[str] = DTYPES) -> str | None:
    """Why tensors of a dtype cannot be read, None if they can."""
    return None if dtype in readable else f"is stored as {dtype}: only {', '.join(readable)} are read"


def listed(items: Sequence[str], separator: str = ", ", limit: int = _MAX_LISTED) -> str:
    """The first items, and how many more there are. Names come from files: they are shortened, and kept on one line."""
    shown = [re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", "?", item[:_MAX_CHARACTERS]) for item in items[:limit]]
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*shown, *more])
