"""Model definitions: jax and flax only."""
