"""A frozen encoder as a source of features: the embedding of an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.encoder import Encoder
from jaxboost.models.frozen import freeze
from jaxboost.models.layers import layer_norm, normalize_pixels


class Embedder(nnx.Module):
    """uint8 images (B, S, S, c), c in {1, 3} -> embeddings (B, E) in float32, after the encoder's final norm.

    Of a ViT they are its CLS token and the mean of its patches, E = 2W, as in the linear evaluation of DINOv2 (Oquab et
    al. 2023); register tokens are left out. Of an encoder without CLS token they are its pooled feature, E = W, which
    timm's head reads. Pixels are normalised as in `classifier.Classifier`.
    """

    def __init__(
        self, encoder: Encoder, *, head_norm: nnx.LayerNorm | None, mean: Sequence[float], std: Sequence[float]
    ):
        self.encoder, self.head_norm = encoder, head_norm
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The embeddings (B, E) of images (B, S, S, c)."""
        tokens = self.encoder(normalize_pixels(images, self.mean, self.std))
        if not (self.encoder.traits.gives_tokens and self.encoder.traits.cls_first):
            pooled = tokens.mean(1)
            return (pooled if self.head_norm is None else self.head_norm(pooled)).astype(jnp.float32)
        if self.head_norm is not None:
            tokens = self.head_norm(tokens)
        tokens = tokens.astype(jnp.float32)
        registers = getattr(self.encoder, "registers", None)
        patches = tokens[:, 1 + (0 if registers is None else registers.shape[0]) :]
        return jnp.concatenate([tokens[:, 0], patches.mean(1)], axis=-1)

    @property
    def tokens(self) -> int:
        """Number of tokens that the encoder makes of an image."""
        return self.encoder.tokens


def build(
    backbone: str,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    encoder_arguments: Mapping[str, Any],
    rngs: nnx.Rngs,
) -> Embedder:
    """Builds an embedder with random frozen weights; under `nnx.eval_shape` it costs no memory.

    Args:
      backbone: a key of BACKBONES; one with CLS token needs a norm before the head.
      image_size, mean, std, dtype, encoder_arguments, rngs: see `classifier.build`.
    """
    spec = BACKBONES[backbone]
    encoder = spec.build(image_size=image_size, dtype=dtype, rngs=rngs, **encoder_arguments)
    norm = None
    if spec.head_eps is not None:
        norm = layer_norm(encoder.width, eps=encoder_arguments.get("eps", spec.head_eps), dtype=dtype, rngs=rngs)
    return freeze(Embedder(encoder, head_norm=norm, mean=mean, std=std))
