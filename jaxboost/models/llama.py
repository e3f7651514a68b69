"""LLaMA decoder layers (Touvron et al. 2023) and those of its relatives, whose differences `families` names.

Rotary embedding and causal mask are arguments: R-LLM has neither.

Weights are stored (in, out). Query and key columns follow the half-split rotary order: feature i of a head is rotated
together with feature i + K/2.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models import attention
from jaxboost.models.adapters import Adaptation, Projection
from jaxboost.models.families import DEPTHS as DEPTHS
from jaxboost.models.families import FAMILIES as FAMILIES
from jaxboost.models.families import LAYER_NORM, LlamaConfig
from jaxboost.models.frozen import Frozen, dequantize
from jaxboost.models.layers import layer_of, stack
from jaxboost.models.lora import Lora
from jaxboost.models.norms import rms_norm, stream_norm
from jaxboost.models.rotary import inverse_frequencies, rotated
from jaxboost.models.taps import closed, tap

# Activations of the MLPs. The first is LLaMA's; `gelu_tanh` is the approximation by tanh.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


def check_window(config: LlamaConfig, tokens: int, *, causal: bool) -> None:
    """Raises UserError if a sliding window, which is not computed, would hide tokens; see `Architecture.window`."""
    if causal and config.window is not None and tokens > config.window:
        raise ArgumentError(
            f"{tokens} tokens under a causal mask, but these layers have a sliding window of {config.window}, which is"
            " not computed: use fewer tokens, or no causal mask (boost.causal or llama.causal is False)"
        )


def plain_norm(config: LlamaConfig, width: int) -> jax.Array:
    """The weight (width,) of a norm that changes no scale."""
    return jnp.full(width, 0.0 if config.offset_norms else 1.0)


class LlamaLayer(nnx.Module):
    """One decoder layer: norm - grouped-query attention - residual - norm - MLP - residual.

    The norms are RMSNorms and the MLP is a SwiGLU, unless the architecture in `config` says otherwise.

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

        self.attention_norm = nnx.Param(plain_norm(config, D))
        self.q = matrix(D, q_width)
        self.k = matrix(D, kv_width)
        self.v = matrix(D, kv_width)
        self.o = matrix(q_width, D)
        self.mlp_norm = nnx.Param(plain_norm(config, D))
        if config.gated:
            self.gate = matrix(D, F)
        self.up = matrix(D, F)
        self.down = matrix(F, D)
        for name in config.biased:
            setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(getattr(self, name).shape[-1])))
        if config.post_norms:
            self.attention_post_norm = nnx.Param(plain_norm(config, D))
            self.mlp_post_norm = nnx.Param(plain_norm(config, D))
        if config.norm == LAYER_NORM:
            for name in config.stream_norms:
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(D)))
        if config.qk_norm:
            self.q_norm = nnx.Param(plain_norm(config, config.head_dim))
            self.k_norm = nnx.Param(plain_norm(config, config.head_dim))
        self.lora: Lora | None = None  # see `LlamaBlock.add_lora`

    def __call__(
        self,
        x: jax.Array,
        *,
        rope: bool | jax.Array,
        causal: bool,
        mask: jax.Array | None,
        queries: int | None = None,
        keys: int | None = None,
        adaptation: Adaptation | None = None,
    ) -> jax.Array:
        """The first tokens (B, Q, D).

        Args:
          x: tokens (B, N, D).
          rope: rotate queries and keys; an array: with these inverse frequencies (K/2,), not those of the config.
          causal: a token attends only to itself and to tokens before it.
          mask: (B, N) or (1, N), True for tokens that the others may attend to; None for all.
          queries: Q, None for all N.
          keys: all tokens attend to the first `keys` tokens alone: as a mask that hides the others, but without their
            keys and values; None: to all. It does not go together with `mask`.
          adaptation: adapter in front of the attention.
        """
        adaptation = adaptation or Adaptation()
        normed = adaptation(self.norm(x, "attention_norm"))
        mixed = self._attend(normed, rope, causal, mask, queries, keys, adaptation.merged)
        return self.finish(x[:, :queries], mixed)

    def norm(self, x: jax.Array, name: str) -> jax.Array:
        """A norm of the residual stream, (..., D) -> (..., D)."""
        return stream_norm(self, x, name)

    def attention_scale(self) -> jax.Array:
        """The scale (D,) of the norm in front of the attention."""
        weight = self.attention_norm[...]
        return 1 + weight.astype(jnp.float32) if self.config.offset_norms else weight

    def finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The layer's output from the heads' output `mixed` (B, Q, H*K) and the layer's input x (B, Q, D)."""
        x = x + self._post_norm(self._product(mixed, "o"), "attention_post_norm")
        return x + self._post_norm(self._mlp(self.norm(x, "mlp_norm")), "mlp_post_norm")

    def bias(self, name: str) -> jax.Array | None:
        """The bias of a matrix (out,) in the dtype of the computation; None if it has none."""
        return getattr(self, f"{name}_bias")[...].astype(self.dtype) if name in self.config.biased else None

    def _post_norm(self, x: jax.Array, name: str) -> jax.Array:
        return self.norm(x, name) if self.config.post_norms else x

    def _weight(self, name: str) -> jax.Array:
        """A matrix (in, out) in the dtype of the computation, quantized or not."""
        return dequantize(getattr(self, name).get_value()).astype(self.dtype)

    def _product(self, x: jax.Array, name: str) -> jax.Array:
        """The product of x (..., in) with a matrix, LoRA's change of it, and its bias."""
        y, bias = x @ self._weight(name), self.bias(name)
        y = y if self.lora is None else y + self.lora(x, name)
        return y if bias is None else y + bias

    def _attend(
        self,
        x: jax.Array,
        rope: bool | jax.Array,
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
            y = y.reshape(B, -1, count, K).transpose(0, 2, 1, 3)
            if self.config.qk_norm and name != "v":
                y = rms_norm(y, getattr(self, f"{name}_norm")[...], self.config.eps, offset=self.config.offset_norms)
            return y

        check_window(self.config, N, causal=causal)
        q = heads(x[:, :queries], "q", H)  # (B, H, Q, K)
        k, v = heads(x[:, :keys], "k", G), heads(x[:, :keys], "v", G)  # (B, G, S, K), S is N or `keys`
        Q, S = q.shape[2], k.shape[2]
        if rope is not False:
            q, k = rotated(q, k, self.config, rope if isinstance(rope, jax.Array) else None, tokens=N)
        q = self.scaled(q)
        token_major = [part.swapaxes(1, 2) for part in (q, k, v)]
        kind = "keys" if mask is not None else "causal" if causal else "none"
        has_cap = self.config.score_cap is not None
        if attention.takes_fused(self.attention_mode, *token_major, mask=kind, capped=has_cap):
            return attention.fused(*token_major, causal=causal, mask=mask).reshape(B, Q, H * K)
        # Query heads i*H/G ... (i+1)*H/G - 1 share key/value head i: they become further queries of that head.
        q = (q * K**-0.5).reshape(B, G, H // G * Q, K)
        scores = self.capped((q @ k.swapaxes(-1, -2)).astype(jnp.float32).reshape(B, H, Q, S))
        allowed = attention_mask(N, causal=causal, mask=mask)
        if allowed is not None:
            scores = jnp.where(allowed[:, :, :queries, :keys], scores, jnp.finfo(jnp.float32).min)
        weights = tap("llm_attention", jax.nn.softmax(scores, axis=-1).astype(v.dtype))
        return (weights.reshape(B, G, H // G * Q, S) @ v).reshape(B, H, Q, K).transpose(0, 2, 1, 3).reshape(B, Q, H * K)

    def scaled(self, q: jax.Array) -> jax.Array:
        """Queries whose products with keys, times 1 / sqrt(K), are the scores."""
        scale = self.config.query_scale
        return q if scale is None else q * (scale * self.config.head_dim**0.5)

    def capped(self, scores: jax.Array) -> jax.Array:
        """Scores after the soft cap, before the mask."""
        cap = self.config.score_cap
        return scores if cap is None else cap * jnp.tanh(scores / cap)

    def _mlp(self, x: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation]
        if not self.config.gated:
            return self._product(activation(self._product(x, "up")), "down")
        return self._product(activation(self._product(x, "gate")) * self._product(x, "up"), "down")


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
    """F_L of R-LLM: one or more decoder layers, then the final norm; (B, N, D) -> (B, N, D) in float32.

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
        self.final_norm = nnx.Param(plain_norm(config, config.width))
        if config.norm == LAYER_NORM:
            self.final_norm_bias = nnx.Param(jnp.zeros(config.width))

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
        x = x.astype(self.dtype)
        if queries is None:
            return self.norm(self._run(x, self.depth, adaptation, rope=rope, keys=keys, causal=causal, mask=mask))
        x = self.below_last(x, rope=rope, causal=causal, mask=mask)
        last, rotation = layer_of(self.layers, -1), self._rotation(rope, self.depth - 1)
        return self.norm(last(x, queries=queries, rope=rotation, causal=causal, mask=mask))

    def below_last(self, x: jax.Array, *, rope: bool, causal: bool, mask: jax.Array | None) -> jax.Array:
        """The input of the last layer (B, N, D), from x (B, N, D); arguments: see `LlamaLayer`."""
        return self._run(x.astype(self.dtype), self.depth - 1, None, rope=rope, causal=causal, mask=mask)

    def add_lora(self, rank: int, *, alpha: float | None = None, rngs: nnx.Rngs) -> None:
        """Adds trained low-rank changes to the matrices of each layer (`lora.Lora`); they are zero at first.

        They are trained even if the block is frozen, provided that it was frozen before.

        Args:
          rank: r.
          alpha: the changes are scaled by alpha / r; None: alpha is r.
          rngs: of the changes' first factors.
        """
        names = self.config.matrices
        shapes: dict[str, Any] = {name: getattr(self.layers, name).get_value().shape for name in names}
        lora = Lora(shapes, rank=rank, alpha=rank if alpha is None else alpha, rngs=rngs)
        self.layers.lora = nnx.data(lora)  # `data`, because the attribute was None

    @property
    def has_lora(self) -> bool:
        """Whether `add_lora` was called."""
        return self.layers.lora is not None

    def merged_lora(self) -> dict[str, jax.Array]:
        """The matrices of all layers with LoRA's changes merged into them: name -> (L, in, out) in float32."""
        layers, names = self.layers, self.config.matrices
        return {name: layers.lora.merged(name, dequantize(getattr(layers, name).get_value())) for name in names}

    def with_merged(self, matrices: dict[str, jax.Array]) -> "LlamaBlock":
        """A copy without LoRA that computes with `matrices`, the result of `merged_lora`; inside a traced function."""
        copy = jax.tree.map(lambda leaf: leaf, self)
        copy.layers.lora = None
        for name, matrix in matrices.items():
            setattr(copy.layers, name, Frozen(matrix))
        return copy

    def norm(self, x: jax.Array) -> jax.Array:
        """The final norm, in float32."""
        return stream_norm(self, x.astype(jnp.float32), "final_norm")

    def _rotation(self, rope: bool, index: int | jax.Array) -> bool | jax.Array:
        """The argument `rope` of a layer."""
        if not rope or not self.config.local_layers:
            return rope
        local = jnp.asarray([position in self.config.local_layers for position in range(self.depth)])
        return jnp.where(local[index], inverse_frequencies(self.config, local=True), inverse_frequencies(self.config))

    def _run(
        self, x: jax.Array, depth: int, adaptation: Adaptation | None, *, rope: bool, **arguments: Any
    ) -> jax.Array:
        if not depth:
            return x

        def step(x: jax.Array, layer: tuple[jax.Array, Adaptation | None]) -> tuple[jax.Array, None]:
            # By index: to scan over the stack itself would copy the weights.
            index, adaptation = layer
            rotation = self._rotation(rope, index)
            return layer_of(self.layers, index)(x, rope=rotation, adaptation=adaptation, **arguments), None

        # Without a policy the backward pass would keep each layer's slice of the stack: a second copy of all weights.
        policies = jax.checkpoint_policies
        step = jax.checkpoint(
            step, policy=policies.nothing_saveable if self.remat else policies.dots_saveable, prevent_cse=False
        )
        with closed():
            return jax.lax.scan(step, x, (jnp.arange(depth), adaptation))[0]
