"""RepAdapter (Luo et al. 2023): a small trained map before a frozen attention, which merges into it exactly."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

HIDDEN = 8
GROUPS = 2
DROPOUT = 0.1


@flax.struct.dataclass
class Projection:
    """An affine map: kernel (in, out), bias (out,)."""

    kernel: jax.Array
    bias: jax.Array


class RepAdapter(nnx.Module):
    """x + up(dropout(down(x))), (..., D) -> (..., D); without dropout an affine map.

    down (D, 8) starts as Xavier's; up, which maps two groups of 4 to a half of D each, starts at zero, as the biases
    do: a new adapter is the identity.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.down = nnx.Param(init(rngs.params(), (width, HIDDEN)))
        self.down_bias = nnx.Param(jnp.zeros(HIDDEN))
        self.up = nnx.Param(jnp.zeros((GROUPS, HIDDEN // GROUPS, width // GROUPS)))
        self.up_bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """key: of the dropout, None for none."""
        hidden = x @ self.down[...].astype(x.dtype) + self.down_bias[...].astype(x.dtype)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - DROPOUT, hidden.shape)
            hidden = jnp.where(kept, hidden / (1 - DROPOUT), 0)
        hidden = hidden.reshape(*hidden.shape[:-1], GROUPS, HIDDEN // GROUPS)
        change = jnp.einsum("...gh,ghd->...gd", hidden, self.up[...].astype(x.dtype))
        return x + change.reshape(x.shape) + self.up_bias[...].astype(x.dtype)

    def merge(self, kernel: jax.Array, bias: jax.Array | None) -> Projection:
        """x -> self(x) @ kernel + bias as one affine map, in float32."""
        kernel = kernel.astype(jnp.float32)
        up = jax.scipy.linalg.block_diag(*self.up[...])  # (8, D)
        with jax.default_matmul_precision("highest"):
            shift = (self.down_bias[...] @ up + self.up_bias[...]) @ kernel
            kernel = kernel + self.down[...] @ (up @ kernel)
        return Projection(kernel=kernel, bias=shift if bias is None else shift + bias)


@flax.struct.dataclass
class Adaptation:
    """What stands between a layer's first norm and its attention; with leading axes, that of a stack of layers.

    Attributes:
      adapter: applied to the normed tokens, None for nothing.
      key: of its dropout, None for none.
      merged: the adapter's merged form instead of the attention's own projections, None to take those.
    """

    adapter: RepAdapter | None = None
    key: jax.Array | None = None
    merged: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.adapter is None else self.adapter(x, key=self.key)
