"""A decoder layer's output for the first token, computed without the queries, keys and values of the other tokens.

The result is exact for tokens r_t = x_t E, where E is (d, D). RMSNorm turns r_t into r_t g / rms_t, so that

    k_t = x_t M_k / rms_t,  M_k = (E g) W_k  (d x D),  and v_t likewise;
    score_t = q . k_t = (M_k q) . x_t / rms_t;
    sum_t a_t v_t = (sum_t a_t x_t / rms_t) M_v;
    mean(r_t^2) = x_t (E E^T / D) x_t^T.

For each head, one query is projected to the tokens' width d, and one weighted sum of tokens is projected back. Nothing
of width D is computed for the other tokens. The shapes decide the order of the products, and whether computing r is
cheaper.

Biases b_k and b_v add q . b_k to all scores and b_v to the sum.

A LayerNorm is an RMSNorm of r_t less its mean, plus a bias b. r_t less its mean is x_t E', where E' is E with each row
less the row's mean: E' takes the place of E. And b adds b W_k to the keys' bias and b W_v to that of the values.

A norm of the keys breaks the algebra (`Architecture.not_absorbed`): such layers take another path.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.families import LAYER_NORM
from jaxboost.models.layers import layer_of
from jaxboost.models.llama import LlamaBlock, LlamaConfig, LlamaLayer, attention_mask, check_window
from jaxboost.models.norms import centred


class Precomputed(NamedTuple):
    """Precomputed projections. They depend on the weights only, so many batches reuse them.

    Attributes:
      key, value: M_k and M_v, (d, G, K).
      gram: E E^T / D, (d, d). With LayerNorm E stands for E', here and in M_k and M_v.
    """

    key: jax.Array
    value: jax.Array
    gram: jax.Array


def multiply_adds(config: LlamaConfig, *, batch: int, tokens: int, width: int) -> dict[str, int]:
    """Multiply-adds of the layer's attention for the first token, for each way to compute it.

    "pooled" computes r and every key and value. "wide" computes r, but no keys and values. "narrow" computes neither.
    Costs that all three share are left out.
    """
    all_tokens, d, D = batch * tokens, width, config.width
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    through_weights = batch * q_width * D  # for each head, K features to or from width D
    fold = min(through_weights + batch * config.heads * D * d, d * D * kv_width + batch * q_width * d)
    return {
        "pooled": all_tokens * D * (d + 2 * kv_width) + 2 * all_tokens * q_width,
        "wide": all_tokens * D * (d + 2 * config.heads) + 2 * through_weights,
        "narrow": d * d * D + all_tokens * d * (d + 2 * config.heads) + 2 * fold,
    }


def precompute(layer: LlamaLayer, kernel: jax.Array) -> Precomputed:
    """The precomputed projections of a layer for tokens r = x E; `kernel` is E, (d, D)."""
    kernel = _normalised(layer, kernel)
    scaled = _scaled(layer, kernel)
    key, value = (_heads(w[...].astype(kernel.dtype), layer) for w in (layer.k, layer.v))
    return Precomputed(
        key=jnp.einsum("dw,wgk->dgk", scaled, key),
        value=jnp.einsum("dw,wgk->dgk", scaled, value),
        gram=kernel @ kernel.T / layer.config.width,
    )


def run_block(
    block: LlamaBlock,
    x: jax.Array,
    kernel: jax.Array,
    *,
    causal: bool,
    mask: jax.Array | None,
    precomputed: Precomputed | None = None,
) -> jax.Array:
    """Computes block(x @ kernel, rope=False, queries=1), (B, 1, D) in float32.

    With several layers only the last one is computed in this way, and its input is not x E.

    Args:
      block: the LLaMA layers.
      x: tokens (B, N, d).
      kernel: E, (d, D).
      causal: see `LlamaLayer`.
      mask: see `LlamaLayer`.
      precomputed: the result of `precompute` for the only layer and `kernel`; None if it was not computed.
    """
    x, matrix = x.astype(block.dtype), kernel.astype(block.dtype)
    layer = layer_of(block.layers, -1)
    if block.depth > 1:
        x, matrix, precomputed = block.below_last(x @ matrix, rope=False, causal=causal, mask=mask), None, None
    elif precomputed is None:
        B, N, d = x.shape
        cost = multiply_adds(block.config, batch=B, tokens=N, width=d)
        if cost["wide"] <= cost["narrow"]:
            x, matrix = x @ matrix, None
    first = x[:, :1] if matrix is None else x[:, :1] @ matrix
    return block.norm(layer.finish(first, _attend(layer, first, x, matrix, causal, mask, precomputed)))


def _attend(
    layer: LlamaLayer,
    first: jax.Array,
    x: jax.Array,
    kernel: jax.Array | None,
    causal: bool,
    mask: jax.Array | None,
    precomputed: Precomputed | None,
) -> jax.Array:
    """The heads' output (B, 1, H*K) for the token `first` (B, 1, D). If `kernel` is None, x are the tokens r."""
    config = layer.config
    B, N, _ = x.shape
    H, G, K = config.heads, config.kv_heads, config.head_dim
    # What the norm divides by its root mean square: tokens in width D, or the map to them.
    if kernel is None:
        x = _normalised(layer, x)
    else:
        kernel = _normalised(layer, kernel)
    key, value = (_heads(w[...].astype(x.dtype), layer) for w in (layer.k, layer.v))

    check_window(config, N, causal=causal)
    q = layer.norm(first, "attention_norm") @ layer.q[...].astype(x.dtype)
    if (bias := layer.bias("q")) is not None:
        q = q + bias
    q = (layer.scaled(q) * K**-0.5).reshape(B, G, H // G, K)
    # With three operands einsum chooses the cheapest order of the products.
    if precomputed is not None:
        query = jnp.einsum("bgrk,dgk->bgrd", q, precomputed.key)
    elif kernel is not None:
        query = jnp.einsum("bgrk,wgk,dw->bgrd", q, key, _scaled(layer, kernel))
    else:
        query = _scaled(layer, jnp.einsum("bgrk,dgk->bgrd", q, key))

    inverse_rms = jax.lax.rsqrt(_mean_square(x, kernel, precomputed) + config.eps)[:, None, None]  # (B, 1, 1, N)
    scores = jnp.einsum("bgrd,bnd->bgrn", query, x, preferred_element_type=jnp.float32) * inverse_rms
    if (bias := _bias(layer, "k", key)) is not None:
        # The same for all keys, so that only a soft cap lets it matter.
        scores = scores + jnp.einsum("bgrk,gk->bgr", q, bias)[..., None]
    scores = layer.capped(scores)
    allowed = attention_mask(N, causal=causal, mask=mask)
    if allowed is not None:
        scores = jnp.where(allowed[:, :, :1], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1) * inverse_rms
    mixed = jnp.einsum("bgrn,bnd->bgrd", weights.astype(x.dtype), x)

    if precomputed is not None:
        mixed = jnp.einsum("bgrd,dgk->bgrk", mixed, precomputed.value)
    elif kernel is not None:
        mixed = jnp.einsum("bgrd,dw,wgk->bgrk", mixed, _scaled(layer, kernel), value)
    else:
        mixed = jnp.einsum("bgrd,dgk->bgrk", _scaled(layer, mixed), value)
    if (bias := _bias(layer, "v", value)) is not None:
        mixed = mixed + bias[:, None]  # the weights add up to 1
    return mixed.reshape(B, 1, H * K)


def _mean_square(x: jax.Array, kernel: jax.Array | None, precomputed: Precomputed | None) -> jax.Array:
    """mean(r_t^2) of all tokens, (B, N) in float32."""
    if precomputed is not None:
        return _quadratic_form(x, precomputed.gram)[0]
    if kernel is not None:
        return _mean_square_of_product(x, kernel)
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1)


def _quadratic_form(x: jax.Array, gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x_t gram x_t^T for all tokens (B, N), and x gram (B, N, d), both in float32."""
    product = jnp.einsum("bnd,de->bne", x, gram, preferred_element_type=jnp.float32)
    return jnp.sum(product * x.astype(jnp.float32), axis=-1), product


@jax.custom_vjp
def _mean_square_of_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """mean((x_t E)^2) of all tokens, (B, N), through E E^T.

    The derivative is written by hand: the Gram matrix and its gradient are symmetric, which saves two products.
    """
    return _forward(x, kernel)[0]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    value, product = _quadratic_form(x, kernel @ kernel.T / kernel.shape[1])
    return value, (x, kernel, product)


def _backward(residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel, product = residuals
    twice = 2 * cotangent[..., None]
    gram_gradient = jnp.einsum("bnd,bne->de", (twice * x).astype(x.dtype), x) / kernel.shape[1]
    return (twice * product).astype(x.dtype), gram_gradient @ kernel


_mean_square_of_product.defvjp(_forward, _backward)


def _normalised(layer: LlamaLayer, x: jax.Array) -> jax.Array:
    """What the norm of tokens x (..., D), or of x E with x as E, divides by its root mean square."""
    return centred(x) if layer.config.norm == LAYER_NORM else x


def _scaled(layer: LlamaLayer, x: jax.Array) -> jax.Array:
    """X (..., D) times the scale of the norm."""
    return (x * layer.attention_scale()).astype(x.dtype)


def _bias(layer: LlamaLayer, name: str, weight: jax.Array) -> jax.Array | None:
    """The bias (G, K) of all keys or values, with what the norm's bias adds to it; None if there is none."""
    bias = layer.bias(name)
    total = None if bias is None else bias.reshape(weight.shape[1:])
    if layer.config.norm != LAYER_NORM:
        return total
    norm_bias: nnx.Param = getattr(layer, "attention_norm_bias")  # noqa: B009 - only layers with LayerNorm have it
    of_norm = jnp.einsum("d,dgk->gk", norm_bias[...].astype(weight.dtype), weight)
    return of_norm if total is None else total + of_norm


def _heads(weight: jax.Array, layer: LlamaLayer) -> jax.Array:
    """(D, G*K) -> (D, G, K)."""
    return weight.reshape(-1, layer.config.kv_heads, layer.config.head_dim)
