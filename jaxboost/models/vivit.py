"""ViViT with a factorised encoder (Arnab et al. 2021, model 2): space first, then time."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.layers import layer_norm, prepend
from jaxboost.models.transformer import MATRICES, Transformer
from jaxboost.models.volumes import PatchEmbedding3D, patches_3d, volume_transformer


class ViViT(nnx.Module):
    """Volumes (B, S, S, S, C) -> temporal tokens (B, 1 + frames, D), CLS first, after the final LayerNorm.

    A frame is a group of `patch` slices. A spatial encoder reduces each frame to its CLS token, and a temporal encoder
    mixes these.

    Args:
      image_size: S, a multiple of `patch`, both in voxels.
      patch: side of a cubic patch.
      channels: C.
      width, heads, head_dim, mlp_width: of the blocks, see `transformer.Block`.
      spatial_depth, temporal_depth: number of blocks of the two encoders.
      remat, drop_path: see `transformer.Transformer`; the rate grows from 0 in each of the two encoders.
      dtype: of the computation.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(
        takes_grey=True,
        stacks=(
            # The temporal CLS token is added after the spatial encoder, so it counts as part of its last block.
            Stack(name="spatial", followers=("spatial_norm", "temporal_cls")),
            Stack(name="temporal", followers=("temporal_norm",)),
        ),
        matrices=MATRICES,
    )

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        spatial_depth: int,
        temporal_depth: int,
        heads: int,
        head_dim: int,
        mlp_width: int,
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        frames = image_size // patch
        self.patch, self.width, self.tokens = patch, width, 1 + frames
        self.embedding = PatchEmbedding3D(patch**3 * channels, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (frames, frames**2, width)))
        self.spatial_cls = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        self.temporal_cls = nnx.Param(jax.random.normal(rngs.params(), (width,)))

        def transformer(depth: int) -> Transformer:
            return volume_transformer(
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

        self.spatial = transformer(spatial_depth)
        self.spatial_norm = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.temporal = transformer(temporal_depth)
        self.temporal_norm = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first tokens (B, Q, D), see `encoder.Encoder`."""
        x = self.embedding(patches_3d(images, self.patch))  # (B, frames, N, D)
        x = x + self.positions[...].astype(x.dtype)
        B, frames, N, D = x.shape
        x = prepend(self.spatial_cls[...], x.reshape(B * frames, N, D))
        # Only the CLS token leaves the spatial encoder, so only it needs the norm.
        spatial_key, temporal_key = (None, None) if key is None else jax.random.split(key)
        x = self.spatial_norm(self.spatial(x, queries=1, key=spatial_key)[:, 0]).reshape(B, frames, D)
        x = prepend(self.temporal_cls[...], x)
        return self.temporal_norm(self.temporal(x, queries=queries, key=temporal_key))
