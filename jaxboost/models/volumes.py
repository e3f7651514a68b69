"""Parts of both 3D encoders: patches of a volume, their embedding, and the transformer."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.layers import layer_norm, linear, torch_init
from jaxboost.models.transformer import Block, Transformer


def patches_3d(volumes: jax.Array, patch: int) -> jax.Array:
    """(B, S, S, S, C) -> (B, frames, N, patch**3 * C): frames are groups of `patch` slices along the first axis.

    Within a patch the order is (rows, columns, slices, channels), as in the reference.
    """
    B, S, _, _, C = volumes.shape
    n = S // patch
    x = volumes.reshape(B, n, patch, n, patch, n, patch, C)
    return x.transpose(0, 1, 3, 5, 4, 6, 2, 7).reshape(B, n, n * n, patch**3 * C)


class PatchEmbedding3D(nnx.Module):
    """LayerNorm - Linear - LayerNorm on flattened patches (..., patch**3 * C) -> (..., D)."""

    def __init__(self, patch_width: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm_in = layer_norm(patch_width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.linear = linear(patch_width, width, init=torch_init, dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Flattened patches (..., patch**3 * C) -> tokens (..., D)."""
        return self.norm_out(self.linear(self.norm_in(patches)))


def volume_transformer(
    width: int,
    depth: int,
    *,
    heads: int,
    head_dim: int,
    mlp_width: int,
    remat: bool,
    drop_path: float,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Transformer:
    """The transformer of both 3D encoders: no bias in q, k and v, LayerNorm eps 1e-5, torch's initialisation."""
    block = functools.partial(
        Block,
        width,
        heads=heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        qkv_bias=False,
        activation="gelu",
        layer_scale=False,
        eps=1e-5,
        init=torch_init,
        dtype=dtype,
    )
    return Transformer(block, depth, remat=remat, drop_path=drop_path, rngs=rngs)
