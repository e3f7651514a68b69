"""Pre-norm transformer blocks that run under a scan, with their attention and MLP."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxboost.models import attention
from jaxboost.models.activations import ACTIVATIONS
from jaxboost.models.adapters import Adaptation, Projection, projection_of
from jaxboost.models.grid_rotary import Rotary, rotate
from jaxboost.models.layers import LinearInit, flat_product, layer_norm, layer_of, linear, stack
from jaxboost.models.lora import Lora
from jaxboost.models.taps import closed, is_open, tap

# The activations of a block that `Transformer` keeps for the backward pass, by their `checkpoint_name`.
SAVED = ("qkv", "mixed", "hidden", "up")
# The linear layers of a block, see `encoder.Traits`.
MATRICES = ("qkv", "out", "up", "down")


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, mode: str = "auto") -> jax.Array:
    """Attention softmax(q k^T / sqrt(K)) v in the fastest implementation for the backend.

    Args:
      q: queries (B, Q, H, K).
      k: keys (B, N, H, K).
      v: values (B, N, H, K).
      causal: query i sees the keys 0 to i only.
      mode: whether by the fused kernel, one of `attention.MODES`.

    Returns:
      (B, Q, H, K).

    Raises:
      UserError: see `attention.takes_fused`.
    """
    head_major = functools.partial(_attend_head_major, causal=causal)
    einsums = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    if attention.is_portable():
        return jax.lax.platform_dependent(q, k, v, cpu=head_major, default=einsums)
    if attention.takes_fused(mode, q, k, v, mask="causal" if causal else "none"):
        return attention.fused(q, k, v, causal=causal)
    return (head_major if is_open() or jax.default_backend() == "cpu" else einsums)(q, k, v)


def _attend_head_major(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
    """As `attend`. With the heads in front these are plain batched products: faster than einsums on CPU."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, H, N, K)
    scores = ((q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)).astype(jnp.float32)  # (B, H, Q, N)
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    weights = tap("encoder_attention", jax.nn.softmax(scores, axis=-1).astype(v.dtype))
    return (weights @ v).swapaxes(1, 2)


def _columns(layer: nnx.Linear | Projection, x: jax.Array, columns: slice, lora: Lora | None = None) -> jax.Array:
    """The given columns of layer(x), with LoRA's change of them."""
    y = flat_product(x, layer.kernel[:, columns].astype(x.dtype))
    y = y if lora is None else y + lora(x, "kernel", columns)
    return y if layer.bias is None else y + layer.bias[columns].astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention (B, N, D) -> (B, Q, D); the heads' total width H*K need not equal D.

    Without `key_bias` the keys' part of the bias has no effect, and no gradient.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        qkv_bias: bool,
        key_bias: bool = True,
        causal: bool = False,
        init: LinearInit,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_dim, self.key_bias, self.causal = heads, head_dim, key_bias, causal
        self.attention_mode = "auto"  # see `attention.choose`
        self.qkv = linear(width, 3 * heads * head_dim, bias=qkv_bias, init=init, dtype=dtype, rngs=rngs)
        self.out = linear(heads * head_dim, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        *,
        queries: int | None = None,
        projection: Projection | None = None,
        probe: jax.Array | None = None,
        rotary: Rotary | None = None,
    ) -> jax.Array:
        """The result (B, Q, D) for the first tokens.

        Args:
          x: tokens (B, N, D).
          queries: Q, None for all N.
          projection: replaces `qkv` to make queries, keys and values.
          probe: (B, Q, D), from which the queries are made in the place of the first tokens.
          rotary: rotates queries and keys.
        """
        width = self.heads * self.head_dim
        qkv, lora = (self.qkv, self.qkv.lora) if projection is None else (projection, None)
        if projection is None and not self.key_bias:
            bias: Any = self.qkv.bias
            used = np.repeat(np.array([1, 0, 1], np.float32), width)
            qkv = Projection(kernel=self.qkv.kernel[...], bias=bias[...] * used)

        def heads(x: jax.Array, parts: int) -> list[jax.Array]:
            x = checkpoint_name(x, "qkv").reshape(*x.shape[:2], parts, self.heads, self.head_dim)
            return [x[:, :, part] for part in range(parts)]

        if queries is None and probe is None:
            q, k, v = heads(_columns(qkv, x, slice(None), lora), 3)
        else:
            (q,) = heads(_columns(qkv, x[:, :queries] if probe is None else probe, slice(width), lora), 1)
            k, v = heads(_columns(qkv, x, slice(width, None), lora), 2)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        mixed = attend(q, k, v, causal=self.causal, mode=self.attention_mode)
        return self.out(checkpoint_name(mixed.reshape(*mixed.shape[:2], width), "mixed"))


class Mlp(nnx.Module):
    """Linear - activation - Linear, (..., D) -> (..., D) through F."""

    def __init__(
        self, width: int, mlp_width: int, *, activation: str, init: LinearInit, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.activation = activation
        self.up = linear(width, mlp_width, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(mlp_width, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The result (..., D)."""
        return self.down(ACTIVATIONS[self.activation](checkpoint_name(self.up(x), "up")))


@flax.struct.dataclass
class StochasticDepth:
    """Stochastic depth of a block (Huang et al. 2016); with a leading axis, of a stack of blocks.

    Attributes:
      rate: probability, below 1, that an example skips a branch.
      key: random key that decides which examples.
    """

    rate: jax.Array
    key: jax.Array

    def split(self) -> tuple["StochasticDepth", "StochasticDepth"]:
        """Splits the key: one for each of the two branches."""
        first, second = jax.random.split(self.key)
        return StochasticDepth(rate=self.rate, key=first), StochasticDepth(rate=self.rate, key=second)


def drop_path(x: jax.Array, depth: StochasticDepth | None) -> jax.Array:
    """A branch (B, ...) set to 0 for some examples and scaled to the same mean for the others; unchanged for None."""
    if depth is None:
        return x
    kept = jax.random.bernoulli(depth.key, 1 - depth.rate, (x.shape[0], *[1] * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - depth.rate).astype(x.dtype), 0)


def stochastic_depths(rate: float, depth: int, key: jax.Array | None) -> list[StochasticDepth | None]:
    """Stochastic depth of each of `depth` blocks that are not stacked; the rate grows linearly from 0 to `rate`.

    None for each block in evaluation (without a key), and for a rate of 0.
    """
    if key is None or not rate:
        return [None] * depth
    pairs = zip(jnp.linspace(0, rate, depth), jax.random.split(key, depth), strict=True)
    return [StochasticDepth(rate=of_block, key=own) for of_block, own in pairs]


class Block(nnx.Module):
    """Pre-norm transformer block: x + s attention(norm(x)), then x + t mlp(norm(x)); (B, N, D) -> (B, Q, D).

    Args:
      width: D.
      heads, head_dim: H heads of width K; H K need not equal D.
      mlp_width: hidden width of the MLP.
      qkv_bias: the projections to queries, keys and values have a bias.
      key_bias: see `Attention`.
      activation: a key of `activations.ACTIVATIONS`.
      layer_scale: s and t are trained vectors (D,) (Touvron et al. 2021), else 1.
      causal: a token attends to itself and to those before it only (CLIP's text encoder).
      eps: of the LayerNorms.
      init: initialisation of the linear layers.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        mlp_width: int,
        qkv_bias: bool,
        key_bias: bool = True,
        activation: str,
        layer_scale: bool,
        causal: bool = False,
        eps: float,
        init: LinearInit,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        form = dict(qkv_bias=qkv_bias, key_bias=key_bias, causal=causal)
        self.attention = Attention(width, heads=heads, head_dim=head_dim, **form, init=init, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp_width, activation=activation, init=init, dtype=dtype, rngs=rngs)
        self.attention_scale = nnx.Param(jnp.ones(width)) if layer_scale else None
        self.mlp_scale = nnx.Param(jnp.ones(width)) if layer_scale else None

    def __call__(
        self,
        x: jax.Array,
        *,
        queries: int | None = None,
        adaptation: Adaptation | None = None,
        stochastic_depth: StochasticDepth | None = None,
        rotary: Rotary | None = None,
    ) -> jax.Array:
        """The result (B, Q, D) for the first Q = `queries` tokens; None: for all tokens."""
        adaptation = adaptation or Adaptation()
        attention_depth, mlp_depth = (None, None) if stochastic_depth is None else stochastic_depth.split()
        normed = adaptation(self.attention_norm(x))
        mixed = self.attention(normed, queries=queries, projection=adaptation.merged, rotary=rotary)
        mixed = drop_path(_scaled(mixed, self.attention_scale), attention_depth)
        x = checkpoint_name(x[:, :queries] + mixed, "hidden")
        return x + drop_path(_scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale), mlp_depth)


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


# The inputs of a block other than its tokens, stacked over the blocks.
Extras = tuple[Adaptation | None, StochasticDepth | None]


class Transformer(nnx.Module):
    """Pre-norm blocks, one after the other: (B, N, D) -> (B, Q, D).

    All blocks but the last run under a scan, so that compile time does not grow with depth. The last one is separate
    because often only its first token is needed, and slicing it from a stack would copy all weights and their
    gradients in each step.

    For the backward pass each block stores its input and the results of its large matrix products (SAVED). Norms,
    softmax and GELU are recomputed, which is faster than storing and loading them.

    On an accelerator the scan is unrolled, unless `remat` asks for less memory: a loop copies what each block stores
    into arrays of all blocks and out of them again. ViT-S with fused attention took 0.72 x the time of the loop on an
    H200 and 1.5 x the memory; XLA then stores more and recomputes less.

    Args:
      make: make(rngs=...) makes one block.
      depth: number of blocks.
      remat: store only the blocks' inputs and recompute the rest: less memory, more time.
      drop_path: stochastic depth in training: the last block's probability that an example skips a branch; it grows
        linearly from 0 in the first block.
      rngs: of the weights.
    """

    def __init__(self, make: Callable[..., Block], depth: int, *, remat: bool, drop_path: float = 0.0, rngs: nnx.Rngs):
        self.depth, self.remat, self.drop_path = depth, remat, drop_path
        self.blocks = stack(lambda r: make(rngs=r), depth - 1, rngs) if depth > 1 else None
        self.last = make(rngs=rngs)

    def __call__(
        self, x: jax.Array, *, queries: int | None = None, key: jax.Array | None = None, rotary: Rotary | None = None
    ) -> jax.Array:
        """The first tokens (B, Q, D).

        Args:
          x: tokens (B, N, D).
          queries: Q, None for all N. The last block computes queries, output projection and MLP for these tokens only.
          key: random key of stochastic depth; None: no stochastic depth.
          rotary: rotates queries and keys in every block.
        """
        stochastic_depth = None
        if key is not None and self.drop_path:
            stochastic_depth = StochasticDepth(
                rate=jnp.linspace(0, self.drop_path, self.depth), key=jax.random.split(key, self.depth)
            )
        return self._run(x, queries=queries, stochastic_depth=stochastic_depth, rotary=rotary)[0]

    def first_tokens(
        self, x: jax.Array, adaptation: Adaptation | None = None, *, rotary: Rotary | None = None
    ) -> jax.Array:
        """The first token after each block, (B, N, D) -> (depth, B, D); `adaptation` is stacked over the blocks."""
        x, between = self._run(x, queries=1, adaptation=adaptation, rotary=rotary, collect=True)
        last = x[None, :, 0]
        return last if between is None else jnp.concatenate([between, last])

    def qkv(self) -> Projection:
        """The blocks' projections to queries, keys and values, stacked: kernel (depth, D, 3HK), bias (depth, 3HK)."""
        stacks = [] if self.blocks is None else [projection_of(self.blocks.attention.qkv)]
        last = projection_of(self.last.attention.qkv)
        return jax.tree.map(lambda *parts: jnp.concatenate([*parts[:-1], parts[-1][None]]), *stacks, last)

    def _run(
        self,
        x: jax.Array,
        *,
        queries: int | None,
        adaptation: Adaptation | None = None,
        stochastic_depth: StochasticDepth | None = None,
        rotary: Rotary | None = None,
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last block's tokens, and with `collect` the first token after each earlier block (depth - 1, B, D)."""
        policy = jax.checkpoint_policies.save_only_these_names(*(() if self.remat else SAVED))

        def call(block: Block, extras: Extras, x: jax.Array, queries: int | None = None) -> jax.Array:
            # prevent_cse would keep XLA from merging the recomputation with the first computation. Iterations of a scan
            # are never merged, and the last block's backward pass directly follows its forward pass.
            def body(block: Block, extras: Extras, x: jax.Array) -> jax.Array:
                return block(x, queries=queries, adaptation=extras[0], stochastic_depth=extras[1], rotary=rotary)

            # What a tap stores cannot leave a function that `jax.checkpoint` traces.
            return (body if is_open() else jax.checkpoint(body, policy=policy, prevent_cse=False))(block, extras, x)

        def step(x: jax.Array, layer: tuple[Block, Extras]) -> tuple[jax.Array, jax.Array | None]:
            x = call(*layer, x)
            return x, x[:, 0] if collect else None

        extras, between = (adaptation, stochastic_depth), None
        if self.blocks is not None:
            with closed():
                layers = (self.blocks, jax.tree.map(lambda leaf: leaf[:-1], extras))
                unrolled = not self.remat and jax.default_backend() != "cpu" and not attention.is_portable()
                x, between = jax.lax.scan(step, x, layers, unroll=self.depth - 1 if unrolled else 1)
        return call(self.last, layer_of(extras, -1), tap("encoder_last", x), queries), between
