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
    """LayerNorm - Linear - LayerNorm on flattened patches (..., patch**3 * C) -> (..., D).

    Patches with a single channel (..., patch**3) stand for C equal ones: same result with a C-th of the work.
    """

    def __init__(self, patch_width: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.patch_width, self.dtype = patch_width, dtype
        self.norm_in = layer_norm(patch_width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.linear = linear(patch_width, width, init=torch_init, dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Flattened patches (..., patch**3 * C) or (..., patch**3) -> tokens (..., D)."""
        if patches.shape[-1] == self.patch_width:
            return self.norm_out(self.linear(self.norm_in(patches)))
        return self.norm_out(self._of_grey(patches))

    def _of_grey(self, patches: jax.Array) -> jax.Array:
        """Linear(LayerNorm(patches with each channel repeated C times)), from patches (..., patch**3).

        Mean and variance do not change when values are repeated. So the channels' normalised values are equal, and the
        weights that meet them can be added up.
        """
        assert self.norm_in.scale is not None
        assert self.norm_in.bias is not None
        assert self.linear.bias is not None
        kernel = self.linear.kernel[...]
        scaled = (self.norm_in.scale[...][:, None] * kernel).reshape(patches.shape[-1], -1, kernel.shape[-1]).sum(1)
        offset = self.norm_in.bias[...] @ kernel + self.linear.bias[...]
        x = patches.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        normalised = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.norm_in.epsilon)
        return normalised.astype(self.dtype) @ scaled.astype(self.dtype) + offset.astype(self.dtype)


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
