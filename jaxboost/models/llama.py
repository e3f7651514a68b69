"""LLaMA decoder layers (Touvron et al. 2023). Rotary embedding and causal mask are arguments: R-LLM has neither.

Weights are stored (in, out). Query and key columns follow the half-split rotary order: feature i of a head is rotated
together with feature i + K/2.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models import attention
from jaxboost.models.adapters import Adaptation, Projection
from jaxboost.models.frozen import Frozen, dequantize
from jaxboost.models.layers import layer_of, stack
from jaxboost.models.lora import Lora
from jaxboost.models.taps import closed, tap


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape and constants of a LLaMA-family layer.

    Attributes:
      width: D, the width of the residual stream.
      heads: H, query heads.
      kv_heads: G, key/value heads (G < H: grouped-query attention; G must divide H).
      head_dim: K, width of one head.
      mlp_width: F, width of the SwiGLU.
      eps: added to the mean square in every RMSNorm.
      rope_base: base of the rotary embedding's geometric frequencies.
      rope_factors: divisors of the K/2 inverse frequencies (LLaMA 3.1's and linear scaling), None for all ones.
      rope_unsupported: a feature of the checkpoint's rotary embedding that rope_base and rope_factors cannot express.
        Layers with it run only without rotation. None if there is no such feature.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    eps: float
    rope_base: float
    rope_factors: tuple[float, ...] | None = None
    rope_unsupported: str | None = None

    @property
    def shape(self) -> dict[str, int]:
        """The dimensions that decide whether weights fit."""
        return {k: getattr(self, k) for k in ("width", "heads", "kv_heads", "head_dim", "mlp_width")}


# Published shapes, so that a model can be described and traced without its weights: (number of layers, each layer).
_PUBLISHED = {
    "llama-7b": (
        32,
        LlamaConfig(width=4096, heads=32, kv_heads=32, head_dim=128, mlp_width=11008, eps=1e-6, rope_base=10000.0),
    ),
    "llama-2-7b": (
        32,
        LlamaConfig(width=4096, heads=32, kv_heads=32, head_dim=128, mlp_width=11008, eps=1e-5, rope_base=10000.0),
    ),
    "llama-3-8b": (
        32,
        LlamaConfig(width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=14336, eps=1e-5, rope_base=500000.0),
    ),
    "tinyllama-1.1b": (
        22,
        LlamaConfig(width=2048, heads=32, kv_heads=4, head_dim=64, mlp_width=5632, eps=1e-5, rope_base=10000.0),
    ),
    "smollm2-135m": (
        30,
        LlamaConfig(width=576, heads=9, kv_heads=3, head_dim=64, mlp_width=1536, eps=1e-5, rope_base=100000.0),
    ),
    "llama-tiny": (
        4,
        LlamaConfig(width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, eps=1e-5, rope_base=10000.0),
    ),
}
DEPTHS = {name: depth for name, (depth, _) in _PUBLISHED.items()}
FAMILIES = {name: config for name, (_, config) in _PUBLISHED.items()}


# The matrices of a layer, which LoRA changes.
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm x / sqrt(mean(x^2) + eps) * scale over the last axis: statistics in float32, result in x's dtype."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


def rotate(x: jax.Array, config: LlamaConfig) -> jax.Array:
    """Rotary embedding (Su et al. 2021) of (B, heads, N, K) at positions 0..N-1, angles in float32.

    Raises:
      UserError: the checkpoint's rotary embedding is of a kind that is not supported.
    """
    if config.rope_unsupported is not None:
        raise ArgumentError(f"these layers cannot be rotated: {config.rope_unsupported} is not supported")
    half = config.head_dim // 2
    inverse_frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_factors is not None:
        inverse_frequency = inverse_frequency / jnp.asarray(config.rope_factors, jnp.float32)
    angles = jnp.arange(x.shape[-2], dtype=jnp.float32)[:, None] * inverse_frequency  # (N, K/2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class LlamaLayer(nnx.Module):
    """One decoder layer: RMSNorm - grouped-query attention - residual - RMSNorm - SwiGLU - residual.

    Args:
      config: shape and constants.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(self, config: LlamaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_width
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.config, self.dtype = config, dtype
        self.attention_mode = "auto"  # see `attention.choose`

        def matrix(fan_in: int, fan_out: int) -> nnx.Param:
            # N(0, .02), the default of Hugging Face's configs, for the control with a random block.
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (fan_in, fan_out)))

        self.attention_norm = nnx.Param(jnp.ones(D))
        self.q = matrix(D, q_width)
        self.k = matrix(D, kv_width)
        self.v = matrix(D, kv_width)
        self.o = matrix(q_width, D)
        self.mlp_norm = nnx.Param(jnp.ones(D))
        self.gate = matrix(D, F)
        self.up = matrix(D, F)
        self.down = matrix(F, D)
        self.lora: Lora | None = None  # see `LlamaBlock.add_lora`

    def __call__(
        self,
        x: jax.Array,
        *,
        rope: bool,
        causal: bool,
        mask: jax.Array | None,
        queries: int | None = None,
        keys: int | None = None,
        adaptation: Adaptation | None = None,
    ) -> jax.Array:
        """The first tokens (B, Q, D).

        Args:
          x: tokens (B, N, D).
          rope: rotate queries and keys.
          causal: a token attends only to itself and to tokens before it.
          mask: (B, N) or (1, N), True for tokens that the others may attend to; None for all.
          queries: Q, None for all N.
          keys: all tokens attend to the first `keys` tokens alone: as a mask that hides the others, but without their
            keys and values; None: to all. It does not go together with `mask`.
          adaptation: adapter in front of the attention.
        """
        adaptation = adaptation or Adaptation()
        normed = adaptation(rms_norm(x, self.attention_norm[...], self.config.eps))
        mixed = self._attend(normed, rope, causal, mask, queries, keys, adaptation.merged)
        return self.finish(x[:, :queries], mixed)

    def finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The layer's output from the heads' output `mixed` (B, Q, H*K) and the layer's input x (B, Q, D)."""
        x = x + self._product(mixed, "o")
        return x + self._swiglu(rms_norm(x, self.mlp_norm[...], self.config.eps))

    def _weight(self, name: str) -> jax.Array:
        """A matrix (in, out) in the dtype of the computation, quantized or not."""
        return dequantize(getattr(self, name).get_value()).astype(self.dtype)

    def _product(self, x: jax.Array, name: str) -> jax.Array:
        """The product of x (..., in) with a matrix, and LoRA's change of it."""
        y = x @ self._weight(name)
        return y if self.lora is None else y + self.lora(x, name)

    def _attend(
        self,
        x: jax.Array,
        rope: bool,
        causal: bool,
        mask: jax.Array | None,
        queries: int | None,
        keys: int | None,
        merged: dict[str, Projection] | None,
    ) -> jax.Array:
        assert keys is None or mask is None, "a mask and a number of keys"
        B, N, _ = x.shape
        H, G, K = self.config.heads, self.config.kv_heads, self.config.head_dim

        def heads(x: jax.Array, name: str, count: int) -> jax.Array:
            if merged is None:
                y = self._product(x, name)
            else:
                bias: Any = merged[name].bias
                y = x @ merged[name].kernel.astype(self.dtype) + bias.astype(self.dtype)
            return y.reshape(B, -1, count, K).transpose(0, 2, 1, 3)

        q = heads(x[:, :queries], "q", H)  # (B, H, Q, K)
        k, v = heads(x[:, :keys], "k", G), heads(x[:, :keys], "v", G)  # (B, G, S, K), S is N or `keys`
        Q, S = q.shape[2], k.shape[2]
        if rope:
            q, k = rotate(q, self.config), rotate(k, self.config)
        token_major = [part.swapaxes(1, 2) for part in (q, k, v)]
        kind = "keys" if mask is not None else "causal" if causal else "none"
        if attention.takes_fused(self.attention_mode, *token_major, mask=kind):
            return attention.fused(*token_major, causal=causal, mask=mask).reshape(B, Q, H * K)
        # Query heads i*H/G ... (i+1)*H/G - 1 share key/value head i: they become further queries of that head.
        q = (q * K**-0.5).reshape(B, G, H // G * Q, K)
        scores = (q @ k.swapaxes(-1, -2)).astype(jnp.float32).reshape(B, H, Q, S)
        allowed = attention_mask(N, causal=causal, mask=mask)
        if allowed is not None:
            scores = jnp.where(allowed[:, :, :queries, :keys], scores, jnp.finfo(jnp.float32).min)
        weights = tap("llm_attention", jax.nn.softmax(scores, axis=-1).astype(v.dtype))
        return (weights.reshape(B, G, H // G * Q, S) @ v).reshape(B, H, Q, K).transpose(0, 2, 1, 3).reshape(B, Q, H * K)

    def _swiglu(self, x: jax.Array) -> jax.Array:
        return self._product(jax.nn.silu(self._product(x, "gate")) * self._product(x, "up"), "down")


def attention_mask(tokens: int, *, causal: bool, mask: jax.Array | None) -> jax.Array | None:
    """Which keys a query attends to, broadcastable to (B, H, N, N); None if every query attends to every key.

    Under a causal mask the first token, which is CLS in the encoders, attends only to itself.
    """
    allowed = None
    if causal:
        allowed = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
    if mask is not None:
        keys = mask[:, None, None, :]
        allowed = keys if allowed is None else allowed & keys
    return allowed


class LlamaBlock(nnx.Module):
    """F_L of R-LLM: one or more decoder layers, then the final RMSNorm; (B, N, D) -> (B, N, D) in float32.

    In the reference the weight of the final norm is one; `convert` can also take the checkpoint's.

    Args:
      config: shape and constants of a layer.
      depth: number of layers.
      dtype: of the layers' computation.
      remat: store only each layer's input for the backward pass: less memory, more time.
      rngs: of the weights.
    """

    def __init__(self, config: LlamaConfig, *, depth: int, dtype: jnp.dtype, remat: bool = False, rngs: nnx.Rngs):
        self.config, self.depth, self.dtype, self.remat = config, depth, dtype, remat
        self.layers = stack(lambda r: LlamaLayer(config, dtype=dtype, rngs=r), depth, rngs)
        self.final_norm = nnx.Param(jnp.ones(config.width))

    def __call__(
        self,
        x: jax.Array,
        *,
        rope: bool,
        causal: bool,
        mask: jax.Array | None = None,
        queries: int | None = None,
        keys: int | None = None,
        adaptation: Adaptation | None = None,
    ) -> jax.Array:
        """The first tokens (B, Q, D) in float32.

        Args:
          x: tokens (B, N, D).
          rope: see `LlamaLayer`.
          causal: see `LlamaLayer`.
          mask: see `LlamaLayer`.
          queries: Q, None for all N. The last layer computes queries, output projection and MLP for these tokens only.
          keys: see `LlamaLayer`; only without `queries`.
          adaptation: adapters of the layers, with a leading axis of the layers; only without `queries`.
        """
        arguments: dict[str, Any] = dict(rope=rope, causal=causal, mask=mask)
        x = x.astype(self.dtype)
        if queries is None:
            return self.norm(self._run(x, self.depth, adaptation, keys=keys, **arguments))
        x = self.below_last(x, **arguments)
        return self.norm(layer_of(self.layers, -1)(x, queries=queries, **arguments))

    def below_last(self, x: jax.Array, *, rope: bool, causal: bool, mask: jax.Array | None) -> jax.Array:
        """The input of the last layer (B, N, D), from x (B, N, D); arguments: see `LlamaLayer`."""
        return self._run(x.astype(self.dtype), self.depth - 1, None, rope=rope, causal=causal, mask=mask)

    def add_lora(self, rank: int, *, alpha: float | None = None, rngs: nnx.Rngs) -> None:
        """Adds trained low-rank changes to the seven matrices of each layer (`lora.Lora`); they are zero at first.

        They are trained even if the block is frozen, provided that it was frozen before.

        Args:
          rank: r.
          alpha: the changes are scaled by alpha / r; None: alpha is r.
          rngs: of the changes' first factors.
        """
        shapes: dict[str, Any] = {name: getattr(self.layers, name).get_value().shape for name in MATRICES}
        lora = Lora(shapes, rank=rank, alpha=rank if alpha is None else alpha, rngs=rngs)
        self.layers.lora = nnx.data(lora)  # `data`, because the attribute was None

    @property
    def has_lora(self) -> bool:
        """Whether `add_lora` was called."""
        return self.layers.lora is not None

    def merged_lora(self) -> dict[str, jax.Array]:
        """The matrices of all layers with LoRA's changes merged into them: name -> (L, in, out) in float32."""
        layers = self.layers
        return {name: layers.lora.merged(name, dequantize(getattr(layers, name).get_value())) for name in MATRICES}

    def with_merged(self, matrices: dict[str, jax.Array]) -> "LlamaBlock":
        """A copy without LoRA that computes with `matrices`, the result of `merged_lora`; inside a traced function."""
        copy = jax.tree.map(lambda leaf: leaf, self)
        copy.layers.lora = None
        for name, matrix in matrices.items():
            setattr(copy.layers, name, Frozen(matrix))
        return copy

    def norm(self, x: jax.Array) -> jax.Array:
        """The final RMSNorm, in float32."""
        return rms_norm(x.astype(jnp.float32), self.final_norm[...], self.config.eps)

    def _run(self, x: jax.Array, depth: int, adaptation: Adaptation | None, **arguments: Any) -> jax.Array:
        if not depth:
            return x

        def step(x: jax.Array, layer: tuple[jax.Array, Adaptation | None]) -> tuple[jax.Array, None]:
            # By index: to scan over the stack itself would copy the weights.
            index, adaptation = layer
            return layer_of(self.layers, index)(x, adaptation=adaptation, **arguments), None

        # Without a policy the backward pass would keep each layer's slice of the stack: a second copy of all weights.
        policies = jax.checkpoint_policies
        step = jax.checkpoint(
            step, policy=policies.nothing_saveable if self.remat else policies.dots_saveable, prevent_cse=False
        )
        with closed():
            return jax.lax.scan(step, x, (jnp.arange(depth), adaptation))[0]
