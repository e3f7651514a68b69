"""The norms of decoder layers: statistics in float32, whatever the dtype of the computation."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxboost.models.families import LAYER_NORM


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm x / sqrt(mean(x^2) + eps) * scale over the last axis: statistics in float32, result in x's dtype."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm (x - mean) / sqrt(variance + eps) * scale + bias; axis and precisions as in `rms_norm`."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return rms_norm(centred, jnp.ones(()), eps).astype(x.dtype) * scale.astype(x.dtype) + bias.astype(x.dtype)


def stream_norm(module: Any, x: jax.Array, name: str) -> jax.Array:
    """The norm `name` of a layer or a block, as its architecture has it."""
    scale, eps = getattr(module, name)[...], module.config.eps
    if module.config.norm == LAYER_NORM:
        return layer_norm(x, scale, getattr(module, f"{name}_bias")[...], eps)
    return rms_norm(x, scale, eps)
