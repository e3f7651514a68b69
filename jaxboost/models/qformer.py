"""The Q-Former of BLIP-2 (Li et al. 2023, section 3.1): learned queries read an image's tokens for an LLM.

Shapes: N tokens of an encoder of width E; Q queries of width W; D, the width of the LLM.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.activations import ACTIVATIONS
from jaxboost.models.layers import layer_norm, linear, vit_init
from jaxboost.models.transformer import attend

# As published: 32 queries, and the shape of BERT-base (section 3.1), with BERT's constants.
PUBLISHED: dict[str, Any] = dict(
    queries=32, width=768, depth=12, heads=12, mlp_width=3072, eps=1e-12, activation="gelu", cross_every=2
)
# Of attention weights and of what is added to the residual stream, in training: that of the released code.
DROPOUT = 0.1


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of x (...): unchanged in evaluation (without a key), and for a rate of 0."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class PostNormAttention(nnx.Module):
    """norm(x + attention(x, context)), (B, Q, W) -> (B, Q, W); keys and values are made of a context (B, N, E).

    Args:
      width: W.
      context_width: E.
      heads: H, which divides W.
      eps: of the LayerNorm.
      dropout: rate in training.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        heads: int,
        eps: float,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads, self.dropout = heads, dropout
        self.attention_mode = "auto"  # see `attention.choose`
        self.q = linear(width, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.k = linear(context_width, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.v = linear(context_width, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """The result (B, Q, W); `key` is that of the dropout, None in evaluation."""
        keys = (None, None) if key is None else jax.random.split(key)
        q, k, v = (
            layer(tokens).reshape(*tokens.shape[:2], self.heads, -1)
            for layer, tokens in ((self.q, x), (self.k, context), (self.v, context))
        )
        if keys[0] is None or not self.dropout:
            mixed = attend(q, k, v, mode=self.attention_mode)
        else:
            # No fused kernel drops attention weights.
            scores = jnp.einsum("bqhk,bnhk->bhqn", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
            weights = dropped(jax.nn.softmax(scores, axis=-1), self.dropout, keys[0]).astype(v.dtype)
            mixed = jnp.einsum("bhqn,bnhk->bqhk", weights, v)
        return self.norm(x + dropped(self.out(mixed.reshape(x.shape)), self.dropout, keys[1]))


class PostNormMlp(nnx.Module):
    """norm(x + down(activation(up(x)))), (B, Q, W) -> (B, Q, W); arguments: see `QFormer`."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        *,
        activation: str,
        eps: float,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.activation, self.dropout = activation, dropout
        self.up = linear(width, mlp_width, init=vit_init, dtype=dtype, rngs=rngs)
        self.down = linear(mlp_width, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """The result (B, Q, W); `key` is that of the dropout, None in evaluation."""
        y = self.down(ACTIVATIONS[self.activation](self.up(x)))
        return self.norm(x + dropped(y, self.dropout, key))


class QFormerLayer(nnx.Module):
    """Attention among the queries, in some layers attention to the image's tokens, and the queries' MLP."""

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        crosses: bool,
        heads: int,
        mlp_width: int,
        activation: str,
        **given: Any,
    ):
        self.attention = PostNormAttention(width, width, heads=heads, **given)
        self.cross = PostNormAttention(width, context_width, heads=heads, **given) if crosses else None
        self.mlp = PostNormMlp(width, mlp_width, activation=activation, **given)

    def __call__(self, x: jax.Array, context: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """Queries (B, Q, W) and an image's tokens (B, N, E) -> queries (B, Q, W)."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        x = self.attention(x, x, key=keys[0])
        if self.cross is not None:
            x = self.cross(x, context, key=keys[1])
        return self.mlp(x, key=keys[2])


class QFormer(nnx.Module):
    """An image's tokens (B, N, E) -> tokens for an LLM (B, Q, D): a post-norm encoder of queries, then a linear map.

    This is the part of the Q-Former that BLIP-2 uses with an LLM: its first stage of pretraining has texts beside the
    queries, with an MLP of their own.

    Args:
      queries: Q.
      width: W.
      depth: number of layers.
      heads, mlp_width: of the layers.
      eps: of all LayerNorms.
      activation: of the MLPs, a key of `activations.ACTIVATIONS`.
      cross_every: the first of so many layers attends to the image's tokens.
      context_width: E.
      output_width: D.
      dropout: rate in training.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        *,
        queries: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        eps: float,
        activation: str,
        cross_every: int,
        context_width: int,
        output_width: int,
        dropout: float = DROPOUT,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.dropout = dtype, dropout
        self.queries = nnx.Param(0.02 * jax.random.normal(rngs.params(), (queries, width)))
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        shape: dict[str, Any] = dict(heads=heads, mlp_width=mlp_width, activation=activation)
        given: dict[str, Any] = dict(eps=eps, dropout=dropout, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                QFormerLayer(width, context_width, crosses=layer % cross_every == 0, **shape, **given)
                for layer in range(depth)
            ]
        )
        self.projection = linear(width, output_width, init=vit_init, dtype=dtype, rngs=rngs)

    def __call__(self, context: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The LLM's tokens (B, Q, D) of an image's tokens (B, N, E); `key`: see `read`."""
        return self.projection(self.read(context, key=key))

    def read(self, context: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The queries after the last layer (B, Q, W).

        Args:
          context: the image's tokens (B, N, E).
          key: random key of the dropout, None in evaluation.
        """
        keys = [None] * (len(self.layers) + 1) if key is None else jax.random.split(key, len(self.layers) + 1)
        context = context.astype(self.dtype)
        x = jnp.broadcast_to(self.queries[...].astype(self.dtype), (context.shape[0], *self.queries.shape))
        x = dropped(self.norm(x), self.dropout, keys[-1])
        for layer, own in zip(self.layers, keys[:-1], strict=True):
            x = layer(x, context, key=own)
        return x
