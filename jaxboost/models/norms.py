"""The norms of decoder layers: statistics in float32, whatever the dtype of the computation.

In 16 bits the families round differently. LLaMA's and its relatives' RMSNorm rounds before the scale, that of Gemma and
a LayerNorm round once, after it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxboost.models.families import LAYER_NORM


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, *, offset: bool = False) -> jax.Array:
    """RMSNorm x / sqrt(mean(x^2) + eps) * scale over the last axis: statistics in float32, result in x's dtype.

    The scale is `weight`, or 1 + weight with `offset`: then the product is computed in float32 too.
    """
    normed = _normed(x.astype(jnp.float32), eps)
    if offset:
        return (normed * (1 + weight.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * weight.astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm (x - mean) / sqrt(variance + eps) * scale + bias over the last axis in float32; result in x's dtype."""
    normed = _normed(centred(x.astype(jnp.float32)), eps)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def centred(x: jax.Array) -> jax.Array:
    """X less its mean over the last axis, which is computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide - jnp.mean(wide, axis=-1, keepdims=True)).astype(x.dtype)


def _normed(x: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def stream_norm(module: Any, x: jax.Array, name: str) -> jax.Array:
    """The norm `name` of a layer or a block, as its architecture has it."""
    weight, eps = getattr(module, name)[...], module.config.eps
    if module.config.norm == LAYER_NORM:
        return layer_norm(x, weight, getattr(module, f"{name}_bias")[...], eps)
    return rms_norm(x, weight, eps, offset=module.config.offset_norms)
