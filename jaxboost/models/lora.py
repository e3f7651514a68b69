"""LoRA (Hu et al. 2021): trained low-rank changes of frozen matrices."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models.layers import flat_product, torch_init


class Lora(nnx.Module):
    """Changes s A B of matrices, or of the matrices of L stacked layers, so that each matrix W acts as W + s A B.

    A starts with U(+-1 / sqrt(fan_in)), as in the authors' loralib, and B with zero: at first nothing is changed.

    Args:
      shapes: name of a matrix -> (in, out), or (L, in, out) of stacked layers.
      rank: r; A is ([L,] in, r) and B is ([L,] r, out), both in float32.
      alpha: s = alpha / r.
      rngs: of A.

    Raises:
      UserError: the rank is above that of a matrix, which A B cannot use.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, rank: int, alpha: float, rngs: nnx.Rngs):
        self.scale = alpha / rank
        for name, (*depth, fan_in, fan_out) in shapes.items():
            if rank > (most := min(fan_in, fan_out)):
                raise ArgumentError(
                    f"lora_rank: {rank} is above the rank of a matrix of {fan_in} x {fan_out}: set it to at most {most}"
                )
            draw, _ = torch_init(fan_in)
            setattr(self, f"{name}_a", nnx.Param(draw(rngs.params(), (*depth, fan_in, rank), jnp.float32)))
            setattr(self, f"{name}_b", nnx.Param(jnp.zeros((*depth, rank, fan_out))))

    def __call__(self, x: jax.Array, name: str, columns: slice = slice(None)) -> jax.Array:
        """The change s x A B of a product x W, (..., in) -> (..., out); of one layer of the stack.

        Args:
          x: (..., in).
          name: of the matrix.
          columns: of W; only these are computed.
        """
        a, b = self._parts(name)
        return self.scale * flat_product(flat_product(x, a.astype(x.dtype)), b[:, columns].astype(x.dtype))

    def merged(self, name: str, weight: jax.Array) -> jax.Array:
        """W + s A B in float32, for `weight` W ([L,] in, out) and the whole stack."""
        with jax.default_matmul_precision("highest"):
            a, b = self._parts(name)
            return weight.astype(jnp.float32) + self.scale * (a @ b)

    def _parts(self, name: str) -> tuple[jax.Array, jax.Array]:
        return getattr(self, f"{name}_a")[...], getattr(self, f"{name}_b")[...]
