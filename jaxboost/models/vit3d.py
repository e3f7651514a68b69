"""ViT3D: one transformer over all cubic patches of a volume (vit-pytorch's 3D ViT, as R-LLM uses it)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.layers import prepend
from jaxboost.models.transformer import MATRICES
from jaxboost.models.volumes import PatchEmbedding3D, patches_3d, volume_transformer


class ViT3D(nnx.Module):
    """Volumes (B, S, S, S, C) -> tokens (B, 1 + N, D), CLS first; this encoder ends without a norm.

    Args:
      image_size: S, a multiple of `patch`, both in voxels.
      patch: side of a cubic patch.
      channels: C.
      width, depth, heads, head_dim, mlp_width: of the blocks, see `transformer.Block`.
      remat, drop_path: see `transformer.Transformer`.
      dtype: of the computation.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(takes_grey=True, stacks=(Stack(name="transformer"),), matrices=MATRICES)

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp_width: int,
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.patch, self.width, self.tokens = patch, width, 1 + (image_size // patch) ** 3
        self.embedding = PatchEmbedding3D(patch**3 * channels, width, dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (self.tokens, width)))
        self.transformer = volume_transformer(
            width,
            depth,
            heads=heads,
            head_dim=head_dim,
            mlp_width=mlp_width,
            remat=remat,
            drop_path=drop_path,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first tokens (B, Q, D), see `encoder.Encoder`."""
        patches = patches_3d(images, self.patch)  # (B, frames, N / frames, patch**3 * C or patch**3)
        x = self.embedding(patches.reshape(patches.shape[0], -1, patches.shape[-1]))
        x = prepend(self.cls[...], x) + self.positions[...].astype(x.dtype)
        return self.transformer(x, queries=queries, key=key)
