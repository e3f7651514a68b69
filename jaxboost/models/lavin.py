"""LaVIN (Luo et al. 2023, "Cheap and quick"): PneumoLLM's parts with the text branch that PneumoLLM removes.

The LLM reads a question with the image's tokens in it, under its causal mask, and a class has the score of the first
token of its answer.

Shapes: d source tokens (B, d, W), the encoder's CLS tokens; T tokens of the question; D, the width of the LLM.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.adapters import Adaptation, AdapterMaps, MixtureAdapter, RepAdapter
from jaxboost.models.encoder import Encoder
from jaxboost.models.frozen import freeze
from jaxboost.models.image_llm import ImageLLM, ImageLLMSpec, Merged, frozen_encoder
from jaxboost.models.layers import layer_of
from jaxboost.models.question import Question, QuestionSpec
from jaxboost.models.taps import closed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LavinSpec(ImageLLMSpec):
    """The choices that shape the model, except its encoder; the LLM's layers are causal.

    Attributes:
      question: its shape.
    """

    question: QuestionSpec


class Lavin(ImageLLM):
    """uint8 images (B, S, S, c), c in {1, 3}, or their source tokens (B, d, W) -> answers' scores (B, C) in float32.

    The features are the LLM's output at the last token of the question.

    Args:
      encoder: a `BlockEncoder`, whose CLS tokens are read.
      spec: everything else that shapes the model.
      mean, std: of pixels in [0, 1], one value or three.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        spec: LavinSpec,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        D = spec.llama.width
        self._set_vision(encoder, spec, mean=mean, std=std, dtype=dtype, rngs=rngs)
        self._set_neck(rngs)
        self._set_llama(rngs)
        # The released code has a second one, for texts without an image.
        routes = isinstance(self.llama_adapters, MixtureAdapter)
        self.modality = nnx.Param(jax.random.normal(rngs.params(), (D,))) if routes else None
        self.question = freeze(Question(spec.question, D, rngs=rngs))

    def __call__(
        self, images: jax.Array, precomputed: Merged | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The scores (B, C) in float32; arguments: see `features`."""
        return self.question.scores(self.features(images, precomputed, key=key))

    @property
    def tokens(self) -> int:
        """Number of tokens that the LLM sees together: source tokens and the question."""
        return self.source_tokens + self.spec.question.tokens

    def routes(self) -> jax.Array:
        """The weights of the two adapters in each layer of the LLM, (L, 2) in float32.

        They follow from the modality token. It comes first and the mask is causal, so it sees itself alone and goes
        the same way for all images. No other token attends to it. So it is no part of the sequence here.
        """
        assert self.modality is not None, "mixture adapters"
        first = self.modality[...].astype(self.dtype)[None, None]

        def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
            layer, adapter = layer_of(self.llama.layers, index), layer_of(self.llama_adapters, index)
            weights = adapter.route(layer.norm(x, "attention_norm"))[0, 0]
            adapted = Adaptation(adapter=adapter.mixed(weights))
            return layer(x, rope=False, causal=True, mask=None, adaptation=adapted), weights

        # As in `LlamaBlock`: without a policy the backward pass would keep a second copy of all weights.
        step = jax.checkpoint(step, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        with closed():
            return jax.lax.scan(step, first, jnp.arange(self.spec.depth))[1]

    def _affine_adapters(self) -> RepAdapter | AdapterMaps | None:
        """The LLM's adapters, stacked over the layers; a mixture is one adapter, whose weights are the same for all."""
        if not isinstance(self.llama_adapters, MixtureAdapter):
            return self.llama_adapters
        return jax.vmap(lambda adapter, weights: adapter.mixed(weights))(self.llama_adapters, self.routes())

    def _pool(self, x: jax.Array, precomputed: Merged | None, *, key: jax.Array | None) -> jax.Array:
        y = self._run_llama(self.question.around(self._neck(x)), precomputed, key=key)
        return y[:, -1].astype(jnp.float32)


def build(
    backbone: str,
    *,
    spec: LavinSpec,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool,
    encoder_arguments: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> Lavin:
    """Builds the model with random weights; arguments: see `pneumollm.build`. The backbone has CLS tokens."""
    encoder = frozen_encoder(
        backbone, image_size=image_size, dtype=dtype, remat=remat, arguments=encoder_arguments, rngs=rngs
    )
    return Lavin(encoder, spec, mean=mean, std=std, dtype=dtype, rngs=rngs)
