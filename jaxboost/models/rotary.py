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
    base, factors = config.rope_base, config.rope_factors
    if local:
        assert config.local_rope_base is not None, "no layers with a base of their own"
        base, factors = config.local_rope_base, config.local_rope_factors
    plain = base**exponents
    return plain if factors is None else plain / jnp.asarray(factors, jnp.float32)


def check_limit(config: LlamaConfig, tokens: int) -> None:
    """Raises UserError if the rotary embedding does not hold for so many tokens; see `Architecture.rope_limit`."""
    if config.rope_limit is not None and tokens > config.rope_limit:
        raise ArgumentError(
            f"{tokens} tokens, but the rotary embedding of these layers (LongRoPE) holds for {config.rope_limit}: use"
            " fewer tokens, or no rotary embedding (boost.rope is False)"
        )


def rotated(
    q: jax.Array, k: jax.Array, config: LlamaConfig, inverse_frequency: jax.Array | None, *, tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Rotated queries and keys (B, heads, N, K); inverse_frequency (K/2,): None for that of the config.

    Raises:
      UserError: see `inverse_frequencies` and `check_limit`.
    """
    check_limit(config, tokens)
    inverse = inverse_frequencies(config) if inverse_frequency is None else inverse_frequency
    magnitude = config.rope_magnitude
    return rotate(q, inverse, magnitude), rotate(k, inverse, magnitude)


def rotate(x: jax.Array, inverse_frequency: jax.Array, magnitude: float = 1.0) -> jax.Array:
    """Rotary embedding of (B, heads, N, K) at positions 0..N-1, angles in float32, times `magnitude`."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[-2], dtype=jnp.float32)[:, None] * inverse_frequency  # (N, K/2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if magnitude != 1:
        cos, sin = magnitude * cos, magnitude * sin
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
