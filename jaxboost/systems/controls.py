"""Controls that change the weights of a converted block: what remains of its effect without what it has learned?

Both are drawn on the host by numpy's Philox generator, with a key made of the draw, the layer and the tensor's name. So
they are the same on all devices, in all runs of a study, and for a layer whatever layers run beside it.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

# What the log says of a block under each control.
TEXTS = {
    "shuffled": "its numbers in random places of each tensor",
    "matched": "random numbers with the mean square of each tensor",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """A change of all tensors of a block.

    Attributes:
      kind: a key of TEXTS.
      seed: which draw.
    """

    kind: str
    seed: int

    def __call__(self, part: str, name: str, weights: np.ndarray) -> np.ndarray:
        """The array that replaces a loaded one, of the same shape and dtype.

        Args:
          part: the layer's number, or "final_norm".
          name: of the tensor.
          weights: the loaded tensor.
        """
        key = hashlib.sha256(f"{self.kind} {self.seed} {part} {name}".encode()).digest()[:16]
        rng = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
        return _CHANGES[self.kind](weights, rng)


def _shuffled(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same entries in random places."""
    return rng.permutation(weights.reshape(-1)).reshape(weights.shape)


def _matched(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers with the tensor's mean square.

    A matrix's have the mean 0. The scale of a norm is a vector around a positive mean, and with random signs it would
    be something else: a vector keeps its mean and its variance, and so its mean square. The drawn numbers are rescaled,
    so that the moments are those of the tensor up to the rounding of its dtype.
    """
    drawn = rng.standard_normal(weights.shape, np.float32)
    loaded, mean = weights, np.float32(0)
    if weights.ndim == 1:
        mean = np.float32(np.mean(weights, dtype=np.float64))
        loaded = weights.astype(np.float32) - mean
        drawn -= np.mean(drawn, dtype=np.float64)
    # Rounded: the last digits of a long sum depend on the processor, and so would the fingerprint.
    scale = np.float32(np.sqrt(_sum_of_squares(loaded) / max(_sum_of_squares(drawn), np.finfo(np.float64).tiny)))
    drawn *= scale
    drawn += mean
    return drawn.astype(weights.dtype)


def _sum_of_squares(values: np.ndarray) -> float:
    """In float64, row by row: a copy of a large matrix in float64 would take much memory."""
    rows = values.reshape(-1, values.shape[-1])
    return sum(float(np.sum(np.square(row.astype(np.float64)))) for row in rows)


_CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "shuffled": _shuffled,
    "matched": _matched,
}
