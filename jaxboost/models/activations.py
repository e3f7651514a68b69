"""The activations of encoders' MLPs. Those of LLM layers are in `llama.ACTIVATIONS`."""

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """GELU, x Phi(x), in float32 with erf as in torch; the erfc in `jax.nn.gelu` is slower on CPU."""
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The approximation of GELU by tanh (Hendrycks and Gimpel 2016, section 2), in float32, which SigLIP uses."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation x sigmoid(1.702 x) of GELU (Hendrycks and Gimpel 2016, section 2), which CLIP uses."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}
