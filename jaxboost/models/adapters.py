"""RepAdapter (Luo et al. 2023): a small trained layer in front of a frozen attention, which merges into it exactly."""

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
    """An affine projection.

    Attributes:
      kernel: (in, out).
      bias: (out,), or None.
    """

    kernel: jax.Array
    bias: jax.Array | None


def projection_of(layer: nnx.Linear) -> Projection:
    """A linear layer as a projection."""
    bias: Any = layer.bias
    return Projection(kernel=layer.kernel[...], bias=None if bias is None else bias[...])


class RepAdapter(nnx.Module):
    """An adapter x + up(dropout(down(x))), (..., D) -> (..., D); without dropout it is affine.

    `down` (D, 8) has Xavier's initialisation. `up` projects two groups of 4 features, each to one half of D. `up` and
    the biases start at zero, so a new adapter is the identity.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.down = nnx.Param(init(rngs.params(), (width, HIDDEN)))
        self.down_bias = nnx.Param(jnp.zeros(HIDDEN))
        self.up = nnx.Param(jnp.zeros((GROUPS, HIDDEN // GROUPS, width // GROUPS)))
        self.up_bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """The adapted tokens.

        Args:
          x: tokens (..., D).
          key: random key of the dropout, None for no dropout.
        """
        hidden = x @ self.down[...].astype(x.dtype) + self.down_bias[...].astype(x.dtype)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - DROPOUT, hidden.shape)
            hidden = jnp.where(kept, hidden / (1 - DROPOUT), 0)
        hidden = hidden.reshape(*hidden.shape[:-1], GROUPS, HIDDEN // GROUPS)
        change = jnp.einsum("...gh,ghd->...gd", hidden, self.up[...].astype(x.dtype))
        return x + change.reshape(x.shape) + self.up_bias[...].astype(x.dtype)

    def merge(self, kernel: jax.Array, bias: jax.Array | None) -> Projection:
        """The affine function x -> self(x) @ kernel + bias, without dropout, as one projection in float32."""
        kernel = kernel.astype(jnp.float32)
        up = jax.scipy.linalg.block_diag(*self.up[...])  # (8, D)
        with jax.default_matmul_precision("highest"):
            shift = (self.down_bias[...] @ up + self.up_bias[...]) @ kernel
            kernel = kernel + self.down[...] @ (up @ kernel)
        return Projection(kernel=kernel, bias=shift if bias is None else shift + bias)


@flax.struct.dataclass
class Adaptation:
    """How the input of a layer's attention is adapted. With a leading axis: for a stack of layers.

    Attributes:
      adapter: applied to the normalised tokens, None for no adapter.
      key: random key of its dropout, None for no dropout.
      merged: projections with the adapter merged into them; they replace the attention's own. None: the attention's
        own are used.
    """

    adapter: RepAdapter | None = None
    key: jax.Array | None = None
    merged: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """The adapted tokens (..., D)."""
        return x if self.adapter is None else self.adapter(x, key=self.key)
