"""BLIP-2 (Li et al. 2023) as a classifier: a trained Q-Former between a frozen encoder and a frozen LLM.

Shapes: N tokens of the encoder, of width E; Q queries of the Q-Former; T tokens of the question; C answers, one for
each class; D, the width of the LLM.
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
from jaxboost.models.layers import normalize_pixels
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.qformer import QFormer
from jaxboost.models.question import Question, QuestionSpec
from jaxboost.models.taps import closed, tap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blip2Spec:
    """The choices that shape the model, except its encoder.

    Attributes:
      qformer: arguments of `qformer.QFormer`; E and D must be the encoder's and the LLM's.
      dropout: of the Q-Former in training.
      llama: shape of the LLM's layers.
      depth: number of the LLM's layers.
      question: shape of the question.
      remat: of the LLM, see `llama.LlamaBlock`.
    """

    qformer: Mapping[str, Any]
    dropout: float
    llama: LlamaConfig
    depth: int
    question: QuestionSpec
    remat: bool


class Blip2(nnx.Module):
    """uint8 images (B, S, S, c), c in {1, 3}, or their normed tokens (B, N, E) -> logits (B, C) in float32.

    A logit is the LLM's score of the first token of a class's answer, after the image and the question. Everything but
    the Q-Former, with its linear map to the LLM, is frozen.

    Args:
      encoder: of the images, frozen; all its tokens are read.
      head_norm: its final LayerNorm, frozen.
      spec: everything else that shapes the model.
      mean, std: of pixels in [0, 1], one value or three.
      dtype: of the computation.
      rngs: of the weights.
    """

    # `explain` reads the model as a classifier without a booster, see `Tapped.has_qformer` too.
    boost = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        head_norm: nnx.LayerNorm,
        spec: Blip2Spec,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.encoder, self.head_norm, self.dtype = encoder, head_norm, dtype
        self.mean, self.std = tuple(mean), tuple(std)
        self.rope = spec.llama.rotary
        # First, so that the trained weights of a seed do not depend on the size of the frozen ones.
        self.qformer = QFormer(**spec.qformer, dropout=spec.dropout, dtype=dtype, rngs=rngs)
        self.llama = freeze(LlamaBlock(spec.llama, depth=spec.depth, dtype=dtype, remat=spec.remat, rngs=rngs))
        self.question = freeze(Question(spec.question, spec.llama.width, rngs=rngs))

    def __call__(
        self, images: jax.Array, precomputed: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The logits (B, C) in float32; arguments: see `features`."""
        return self.question.scores(self.features(images, precomputed, key=key))

    def features(
        self, images: jax.Array, precomputed: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The LLM's output at its last token (B, D) in float32, which is compared with the answers.

        Args:
          images: uint8 images, or tokens (B, N, E) that `encode` gave.
          precomputed: not used: nothing can be computed before the images.
          key: random key of the Q-Former's dropout in training, None in evaluation.
        """
        del precomputed
        tokens = images if images.ndim == 3 else self.encode(images)
        tokens = tap("tokens", tokens)
        # The other taps are for the encoder.
        with closed():
            x = self.question.around(self.qformer(tokens, key=key))
            return self.llama(x, rope=self.rope, causal=True)[:, -1]

    def encode(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The encoder's tokens after its final norm (B, N, E) in float32."""
        del key
        x = normalize_pixels(images, self.mean, self.std)
        return self.head_norm(self.encoder(x)).astype(jnp.float32)

    def precompute(self) -> None:
        """Nothing; see `features`."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the LLM sees: Q + T."""
        return self.qformer.queries.shape[0] + self.question.spec.tokens


def build(
    backbone: str,
    *,
    spec: Blip2Spec,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool,
    encoder_arguments: Mapping[str, Any],
    rngs: nnx.Rngs,
) -> Blip2:
    """Builds the model with random weights; under `nnx.eval_shape` it costs no memory.

    Args:
      backbone: a key of BACKBONES with a norm before the head.
      spec: everything else that shapes the model.
      image_size, mean, std, dtype, remat, encoder_arguments, rngs: see `classifier.build`.
    """
    encoder, norm = frozen_with_norm(
        backbone, encoder_arguments, image_size=image_size, dtype=dtype, remat=remat, rngs=rngs
    )
    return Blip2(encoder, head_norm=norm, spec=spec, mean=mean, std=std, dtype=dtype, rngs=rngs)
