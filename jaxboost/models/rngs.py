"""The random keys of a model's first weights."""

from typing import Any

import jax
import numpy as np
from flax import nnx


class _Stream(nnx.RngStream):
    """Gives the keys of `nnx.RngStream`, and counts them in Python.

    Flax counts in an array. Where a model is traced it compares that array's sharding, for which JAX prepares an error
    message about the whole program so far, for each key: two thirds of the time that a small model takes.
    """

    def __init__(self, key: jax.Array | int, *, tag: str):
        super().__init__(key, tag=tag)
        self.given = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], np.uint32(self.given))
        self.given += 1
        return key


def make_rngs(key: jax.Array | int) -> Any:
    """As `nnx.Rngs(key)`, with the same keys, to make a model with.

    Not for what sets a stream's count, such as `nnx.reseed`.
    """
    rngs: Any = nnx.Rngs()
    rngs.default = _Stream(key, tag="default")
    return rngs
