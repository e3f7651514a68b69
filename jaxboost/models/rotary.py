"""The rotary position embedding (Su et al. 2021)."""

import jax
import jax.numpy as jnp

from jaxboost.errors import ArgumentError
from jaxboost.models.families import LlamaConfig


def inverse_frequencies(config: LlamaConfig, *, local: bool = False) -> jax.Array:
    """The rotary embedding's inverse frequencies (K/2,) in float32.

    Args:
      config: of the layers.
      local: those of the layers with a rotary embedding of their own.

    Raises:
      UserError: the family has no rotary embedding, or the checkpoint's is of a kind that is not supported.
    """
    if not config.rotary:
        raise ArgumentError("these layers cannot be rotated: their family has no rotary embedding")
    if config.rope_unsupported is not None:
        raise ArgumentError(f"these layers cannot be rotated: {config.rope_unsupported} is not supported")
    half = config.head_dim // 2
    exponents = -jnp.arange(half, dtype=jnp.float32) / half
    if local:
        assert config.local_rope_base is not None, "no layers with a base of their own"
        return config.local_rope_base**exponents
    plain = config.rope_base**exponents
    return plain if config.rope_factors is None else plain / jnp.asarray(config.rope_factors, jnp.float32)


def rotate(x: jax.Array, inverse_frequency: jax.Array) -> jax.Array:
    """Rotary embedding of (B, heads, N, K) at positions 0..N-1, angles in float32."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[-2], dtype=jnp.float32)[:, None] * inverse_frequency  # (N, K/2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
