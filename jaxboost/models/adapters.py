"""RepAdapter (Luo et al. 2023): a small trained layer in front of a frozen attention, which merges into it exactly.

LaVIN's mixture of two (Luo et al. 2023, "Cheap and quick") merges too once its weights are known.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.layers import linear, torch_init

HIDDEN = 8
GROUPS = 2
DROPOUT = 0.1
# Of the mixture.
PATHS = 2
TEMPERATURE = 10.0


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


@flax.struct.dataclass
class AdapterMaps:
    """The affine maps of an adapter x + up(dropout(down(x))), (..., D) -> (..., D).

    Attributes:
      down: (D, 8).
      down_bias: (8,).
      up: (2, 4, D / 2): two groups of 4 features, each for one half of D.
      up_bias: (D,).
    """

    down: jax.Array
    down_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """The adapted tokens.

        Args:
          x: tokens (..., D).
          key: random key of the dropout, None for no dropout.
        """
        return x + self.change(self.hidden(x, key=key))

    def hidden(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """What `up` sees of tokens (..., D): (..., 8)."""
        hidden = x @ self.down.astype(x.dtype) + self.down_bias.astype(x.dtype)
        if key is None:
            return hidden
        kept = jax.random.bernoulli(key, 1 - DROPOUT, hidden.shape)
        return jnp.where(kept, hidden / (1 - DROPOUT), 0)

    def change(self, hidden: jax.Array) -> jax.Array:
        """What is added to tokens, (..., 8) -> (..., D)."""
        shape = (*hidden.shape[:-1], self.up_bias.shape[-1])
        hidden = hidden.reshape(*hidden.shape[:-1], GROUPS, HIDDEN // GROUPS)
        change = jnp.einsum("...gh,ghd->...gd", hidden, self.up.astype(hidden.dtype))
        return change.reshape(shape) + self.up_bias.astype(hidden.dtype)

    def merge(self, kernel: jax.Array, bias: jax.Array | None) -> Projection:
        """The affine function x -> self(x) @ kernel + bias, without dropout, as one projection in float32."""
        kernel = kernel.astype(jnp.float32)
        up = jax.scipy.linalg.block_diag(*self.up)  # (8, D)
        with jax.default_matmul_precision("highest"):
            shift = (self.down_bias @ up + self.up_bias) @ kernel
            kernel = kernel + self.down @ (up @ kernel)
        return Projection(kernel=kernel, bias=shift if bias is None else shift + bias)


class RepAdapter(nnx.Module):
    """An adapter x + up(dropout(down(x))), (..., D) -> (..., D); without dropout it is affine.

    `down` has Xavier's initialisation. `up` and the biases start at zero, so a new adapter is the identity.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.down = nnx.Param(init(rngs.params(), (width, HIDDEN)))
        self.down_bias = nnx.Param(jnp.zeros(HIDDEN))
        self.up = nnx.Param(jnp.zeros((GROUPS, HIDDEN // GROUPS, width // GROUPS)))
        self.up_bias = nnx.Param(jnp.zeros(width))

    @property
    def maps(self) -> AdapterMaps:
        """Its weights."""
        return AdapterMaps(self.down[...], self.down_bias[...], self.up[...], self.up_bias[...])

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """The adapted tokens (..., D); arguments: see `AdapterMaps`."""
        return self.maps(x, key=key)

    def merge(self, kernel: jax.Array, bias: jax.Array | None) -> Projection:
        """See `AdapterMaps.merge`."""
        return self.maps.merge(kernel, bias)


class MixtureAdapter(nnx.Module):
    """Mixture-of-modality adapter (LaVIN, Luo et al. 2023): two RepAdapters that share `down`, and a router.

    The router's weights of the two, which add up to 1, follow from the first token of a sequence: in LaVIN's LLM a
    learned modality token, in its encoder the CLS token. With both `up` at zero, a new adapter is the identity.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.down = nnx.Param(init(rngs.params(), (width, HIDDEN)))
        self.down_bias = nnx.Param(jnp.zeros(HIDDEN))
        self.up = nnx.Param(jnp.zeros((PATHS, GROUPS, HIDDEN // GROUPS, width // GROUPS)))
        self.up_bias = nnx.Param(jnp.zeros((PATHS, width)))
        self.router = linear(width, PATHS, init=torch_init, dtype=jnp.float32, rngs=rngs)

    def route(self, first: jax.Array) -> jax.Array:
        """The weights of the two adapters (..., 2) in float32, from first tokens (..., D)."""
        return jax.nn.softmax(self.router(first.astype(jnp.float32)) / TEMPERATURE, axis=-1)

    def mixed(self, weights: jax.Array) -> AdapterMaps:
        """The single adapter that the two are with these weights (2,)."""
        up, up_bias = (jnp.tensordot(weights, each[...], 1) for each in (self.up, self.up_bias))
        return AdapterMaps(self.down[...], self.down_bias[...], up, up_bias)

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """The adapted tokens (B, N, D).

        Args:
          x: tokens (B, N, D), the one that routes first.
          key: random key of the dropout, None for no dropout.
        """

        def change(hidden: jax.Array, weights: jax.Array) -> jax.Array:
            return self.mixed(weights).change(hidden)

        weights = self.route(x[:, 0])
        hidden = self.mixed(weights[0]).hidden(x, key=key)
        return x + jax.vmap(change)(hidden, weights)


@flax.struct.dataclass
class Adaptation:
    """How the input of a layer's attention is adapted. With a leading axis: for a stack of layers.

    Attributes:
      adapter: applied to the normalised tokens, None for no adapter.
      key: random key of its dropout, None for no dropout.
      merged: projections with the adapter merged into them; they replace the attention's own. None: the attention's
        own are used.
    """

    adapter: AdapterMaps | RepAdapter | MixtureAdapter | None = None
    key: jax.Array | None = None
    merged: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """The adapted tokens (..., D)."""
        return x if self.adapter is None else self.adapter(x, key=self.key)
