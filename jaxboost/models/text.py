"""CLIP's text encoder (Radford et al. 2021, section 2.4)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.layers import exact_product, layer_norm, linear, vit_init
from jaxboost.models.taps import closed
from jaxboost.models.transformer import Block, Transformer


class TextEncoder(nnx.Module):
    """Embeddings of a text's tokens (B, N, W) -> the embedding of the text (B, D), not normalised.

    The tokens are those that the tokenizer makes, from the start of the text to its end. Their embeddings are the
    input, not their numbers, because CoOp learns some of them.

    Args:
      context: most tokens of a text: the number of positions, 77 in CLIP.
      width: W.
      depth, heads, mlp_width, eps, activation: see `transformer.Block`.
      embedding_width: D, which images and texts share.
      remat: see `transformer.Transformer`.
      dtype: of the computation; the projection is float32, see `layers.exact_product`.
      rngs: of the weights.
    """

    def __init__(
        self,
        *,
        context: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        eps: float,
        activation: str,
        embedding_width: int,
        remat: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (context, width)))
        block = functools.partial(
            Block,
            width,
            heads=heads,
            head_dim=width // heads,
            mlp_width=mlp_width,
            qkv_bias=True,
            activation=activation,
            layer_scale=False,
            causal=True,
            eps=eps,
            init=vit_init,
            dtype=dtype,
        )
        self.transformer = Transformer(block, depth, remat=remat, rngs=rngs)
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.projection = linear(width, embedding_width, bias=False, init=vit_init, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, ends: jax.Array) -> jax.Array:
        """The embeddings of texts (B, D) in float32.

        Args:
          x: embeddings of the tokens (B, N, W), N at most `context`. What follows the end of a text has no effect.
          ends: int (B,), the place of the token that ends the text.
        """
        x = x.astype(self.dtype)
        x = x + self.positions[: x.shape[1]].astype(x.dtype)
        # The taps are for the encoder of the images.
        with closed():
            x = self.transformer(x)
        last = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
        return exact_product(self.norm(last).astype(jnp.float32), self.projection.kernel[...])


def _published(width: int, heads: int, embedding_width: int) -> dict[str, Any]:
    return dict(
        context=77,
        width=width,
        depth=12,
        heads=heads,
        mlp_width=4 * width,
        eps=1e-5,
        activation="quick_gelu",
        embedding_width=embedding_width,
    )


# The text encoders that belong to the encoders of images in `backbones.BACKBONES` (Radford et al. 2021, Table 19).
TEXT_ENCODERS = {
    "clip_vit_b32": _published(width=512, heads=8, embedding_width=512),
    "clip_vit_b16": _published(width=512, heads=8, embedding_width=512),
    "clip_vit_l14": _published(width=768, heads=12, embedding_width=768),
}
