"""CoOp and CoCoOp (Zhou et al. 2022): CLIP classifies with prompts whose context is learned; the rest is frozen.

Shapes: C classes; M vectors of the context; L tokens of the longest class name; W, the width of the text encoder; V,
that of the vision encoder; D, the width of the embeddings that both share.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.backbones import frozen_with_norm
from jaxboost.models.encoder import Encoder
from jaxboost.models.frozen import freeze
from jaxboost.models.layers import exact_product, linear, normalize_pixels, torch_init
from jaxboost.models.text import TextEncoder

COOP, COCOOP = "coop_clip", "cocoop_clip"
METHODS = (COOP, COCOOP)
# Of the meta-network's hidden layer (Zhou et al. 2022b, section 3.2).
REDUCTION = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """The choices that shape the model, except its encoder of images.

    Attributes:
      method: one of METHODS.
      context: M.
      text: arguments of `text.TextEncoder`.
      ends: (C,), the place of the token that ends each class name, without a context.
    """

    method: str
    context: int
    text: Mapping[str, Any]
    ends: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """L, with the tokens that start and end a text."""
        return 1 + max(self.ends)


class Context(nnx.Module):
    """Learned context vectors; with `conditional` a meta-network of the image shifts all of them (CoCoOp).

    The meta-network is Linear - ReLU - Linear, D -> D / 16 -> W (Zhou et al. 2022b, section 3.2).
    """

    def __init__(self, count: int, width: int, embedding_width: int, *, conditional: bool, rngs: nnx.Rngs):
        # Without weight decay, by this name: see `optim.decay_mask`.
        self.prompts = nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))
        hidden = max(1, embedding_width // REDUCTION)
        sizes = ((embedding_width, hidden), (hidden, width))
        layers = [linear(*size, init=torch_init, dtype=jnp.float32, rngs=rngs) for size in sizes if conditional]
        self.hidden, self.shift = layers if conditional else (None, None)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The context (B, M, W) for embeddings of images (B, D); (1, M, W) if it is the same for all."""
        vectors = self.prompts[None]
        if self.hidden is None or self.shift is None:
            return vectors
        return vectors + self.shift(jax.nn.relu(self.hidden(images)))[:, None]


class Classes(nnx.Module):
    """What a converted text encoder says of the classes, see `text_encoders.ClassTexts`; all of it is frozen."""

    def __init__(self, spec: PromptSpec, vision_width: int, rngs: nnx.Rngs):
        width, embedding_width = spec.text["width"], spec.text["embedding_width"]
        draw = jax.random.normal
        self.names = nnx.Param(0.02 * draw(rngs.params(), (len(spec.ends), spec.tokens, width)))
        self.projection = nnx.Param(vision_width**-0.5 * draw(rngs.params(), (vision_width, embedding_width)))
        self.scale = nnx.Param(jnp.full(1, 100.0))


class PromptedClip(nnx.Module):
    """uint8 images (B, S, S, c), c in {1, 3}, or their normed CLS tokens (B, 1, V) -> logits (B, C) in float32.

    A logit is CLIP's scale times the cosine of the image and of the text: start, context, class name, end (Zhou et al.
    2022a, Equation 2; in CoCoOp the context depends on the image, Zhou et al. 2022b, Equation 3).

    Args:
      encoder: of the images, frozen.
      head_norm: its final LayerNorm, frozen.
      spec: everything else that shapes the model.
      mean, std: of pixels in [0, 1], one value or three.
      dtype: of the encoders' computation; cosines are float32.
      remat: of the text encoder, see `transformer.Transformer`.
      rngs: of the weights.
    """

    # `explain` reads the model as a classifier without a booster.
    boost = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        head_norm: nnx.LayerNorm,
        spec: PromptSpec,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        width, embedding_width = spec.text["width"], spec.text["embedding_width"]
        self.encoder, self.head_norm = encoder, head_norm
        self.method, self.ends = spec.method, tuple(spec.ends)
        self.mean, self.std = tuple(mean), tuple(std)
        # First, so that the trained weights of a seed do not depend on the size of the frozen ones.
        self.context = Context(spec.context, width, embedding_width, conditional=spec.method == COCOOP, rngs=rngs)
        self.classes = freeze(Classes(spec, encoder.width, rngs))
        self.text = freeze(TextEncoder(**spec.text, remat=remat, dtype=dtype, rngs=rngs))

    def __call__(
        self, images: jax.Array, precomputed: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The logits (B, C) in float32.

        Args:
          images: uint8 images, or tokens (B, 1, V) that `encode` gave.
          precomputed: the result of `precompute` for these weights; None: not computed, same logits.
          key: not used: nothing in training is random.
        """
        del key
        x = self.features(images)
        texts = self._texts(self.context(x)) if precomputed is None else precomputed  # (B or 1, C, D)
        return self.classes.scale[...] * (x[:, None] * texts).sum(-1)

    def features(self, images: jax.Array, precomputed: jax.Array | None = None) -> jax.Array:
        """CLIP's embeddings of images (B, D), of length 1, in float32; arguments: see `__call__`."""
        del precomputed
        tokens = images if images.ndim == 3 else self.encode(images)
        return _unit(exact_product(tokens[:, 0].astype(jnp.float32), self.classes.projection[...]))

    def encode(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The CLS token after the encoder's final norm (B, 1, V), float32."""
        del key
        x = normalize_pixels(images, self.mean, self.std)
        return self.head_norm(self.encoder(x, queries=1)).astype(jnp.float32)

    def precompute(self) -> jax.Array | None:
        """The embeddings of the classes (1, C, D); None if they depend on the image."""
        return None if self.method == COCOOP else self._texts(self.context.prompts[None])

    @property
    def tokens(self) -> int:
        """Number of tokens that the encoder makes of an image."""
        return self.encoder.tokens

    def _texts(self, context: jax.Array) -> jax.Array:
        """The embeddings of the classes (P, C, D), of length 1, for P contexts (P, M, W)."""
        names = self.classes.names[...]
        (P, M, W), (C, L) = context.shape, names.shape[:2]
        names = jnp.broadcast_to(names, (P, C, L, W))
        context = jnp.broadcast_to(context[:, None], (P, C, M, W))
        x = jnp.concatenate([names[:, :, :1], context, names[:, :, 1:]], axis=2).reshape(P * C, M + L, W)
        ends = jnp.tile(jnp.asarray(self.ends, jnp.int32) + M, P)
        return _unit(self.text(x, ends)).reshape(P, C, -1)


def build(
    backbone: str,
    *,
    spec: PromptSpec,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool,
    encoder_arguments: Mapping[str, Any],
    rngs: nnx.Rngs,
) -> PromptedClip:
    """Builds the model with random weights; under `nnx.eval_shape` it costs no memory.

    Args:
      backbone: a key of BACKBONES with a norm before the head.
      spec: everything else that shapes the model.
      image_size, mean, std, dtype, remat, encoder_arguments, rngs: see `classifier.build`.
    """
    encoder, norm = frozen_with_norm(
        backbone, encoder_arguments, image_size=image_size, dtype=dtype, remat=remat, rngs=rngs
    )
    return PromptedClip(encoder, head_norm=norm, spec=spec, mean=mean, std=std, dtype=dtype, remat=remat, rngs=rngs)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
