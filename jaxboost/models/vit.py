"""ViT (Dosovitskiy et al. 2021) for 2D images."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.layers import Block, Transformer, linear, patches_2d, prepend, vit_init


class ViT(nnx.Module):
    """Images (B, S, S, C) -> tokens (B, 1 + N, D), CLS first, before the final LayerNorm.

    The final LayerNorm belongs to the head: R-LLM's booster sits between the two.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        remat: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.patch, self.width, self.tokens = patch, width, 1 + (image_size // patch) ** 2
        self.embedding = linear(patch * patch * channels, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (self.tokens, width)))

        block = functools.partial(
            Block,
            width,
            heads=heads,
            head_dim=width // heads,
            mlp_width=mlp_width,
            qkv_bias=True,
            eps=1e-6,
            init=vit_init,
            dtype=dtype,
        )
        self.transformer = Transformer(block, depth, remat=remat, rngs=rngs)

    def __call__(self, images: jax.Array, *, queries: int | None = None) -> jax.Array:
        """The first `queries` tokens, all where it is None."""
        x = self.embedding(patches_2d(images, self.patch))
        x = prepend(self.cls[...], x) + self.positions[...].astype(x.dtype)
        return self.transformer(x, queries=queries)
