"""PneumoLLM (Song et al. 2024): a frozen vision encoder and a whole frozen LLaMA, connected by few trained weights.

Shapes: d source tokens (B, d, W), the encoder's CLS tokens; m diagnosis tokens (B, m, W); D, the width of LLaMA.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.encoder import Encoder
from jaxboost.models.image_llm import ImageLLM, ImageLLMSpec, Merged, frozen_encoder
from jaxboost.models.layers import linear, torch_init

ENGINE_WIDTH = 12
COCOOP_REDUCTION = 16
TOKENS = ("none", "coop", "cocoop", "engine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PneumoSpec(ImageLLMSpec):
    """The choices that shape the model, except its encoder; `causal` is off in the paper, which has the emitter's mask.

    Attributes:
      tokens: how the diagnosis tokens are made, one of TOKENS (Table 6).
      count: m; not used with tokens "none".
      emitter: the mask of the information emitter: no token attends to the diagnosis tokens (Equation 2).
    """

    tokens: str
    count: int
    emitter: bool


class Engine(nnx.Module):
    """Contextual multi-token engine (section 3.2): X (B, d, W) -> M^T X (B, m, W).

    M (B, d, m) is the softmax over d of an MLP of X.
    """

    def __init__(self, width: int, count: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.hidden = linear(width, ENGINE_WIDTH, init=torch_init, dtype=dtype, rngs=rngs)
        self.scores = linear(ENGINE_WIDTH, count, init=torch_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Source tokens (B, d, W) -> diagnosis tokens (B, m, W)."""
        scores = self.scores(jax.nn.relu(self.hidden(x))).astype(jnp.float32)  # (B, d, m)
        weights = jax.nn.softmax(scores, axis=1).astype(x.dtype)
        return weights.swapaxes(1, 2) @ x


class Prompts(nnx.Module):
    """Learned diagnosis tokens (B, m, W), the same for all images as in CoOp (Zhou et al. 2022b).

    With `conditional`, a bottleneck MLP of the image's last CLS token shifts all of them, as in CoCoOp (Zhou et al.
    2022a).
    """

    def __init__(self, width: int, count: int, *, conditional: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.prompts = nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))
        hidden = width // COCOOP_REDUCTION
        self.hidden: Any = linear(width, hidden, init=torch_init, dtype=dtype, rngs=rngs) if conditional else None
        self.shift = linear(hidden, width, init=torch_init, dtype=dtype, rngs=rngs) if conditional else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Source tokens (B, d, W) -> diagnosis tokens (B, m, W)."""
        tokens = jnp.broadcast_to(self.prompts[...].astype(x.dtype), (x.shape[0], *self.prompts.shape))
        return tokens if self.shift is None else tokens + self.shift(jax.nn.relu(self.hidden(x[:, -1:])))


class PneumoLLM(ImageLLM):
    """uint8 images (B, S, S, c), c in {1, 3}, or their source tokens (B, d, W) -> logits (B, classes) in float32.

    The features are the mean of LLaMA's output tokens.

    Args:
      encoder: a `BlockEncoder`, whose CLS tokens are read, or another encoder, whose tokens are all read.
      spec: everything else that shapes the model.
      classes: number of logits.
      columns: F, number of features of clinical columns.
      mean, std: of pixels in [0, 1], one value or three.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        spec: PneumoSpec,
        *,
        classes: int,
        columns: int = 0,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self._set_vision(encoder, spec, mean=mean, std=std, dtype=dtype, rngs=rngs)
        self.engine = _make_tokens(spec, encoder.width, dtype, rngs)
        self._set_neck(rngs)
        self._set_llama(rngs)
        self.head = linear(
            spec.llama.width + columns, classes, bias=False, init=torch_init, dtype=jnp.float32, rngs=rngs
        )

    def __call__(
        self,
        images: jax.Array,
        precomputed: Merged | None = None,
        *,
        columns: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The logits (B, classes) in float32; arguments: see `features`."""
        return self.head(self.features(images, precomputed, columns=columns, key=key)).astype(jnp.float32)

    @property
    def tokens(self) -> int:
        """Number of tokens that LLaMA sees, or would see if there were layers: source and diagnosis tokens."""
        return self.source_tokens + (self.spec.count if self.engine is not None else 0)

    def _pool(self, x: jax.Array, precomputed: Merged | None, *, key: jax.Array | None) -> jax.Array:
        d = x.shape[1]
        if self.engine is not None:
            x = jnp.concatenate([x, self.engine(x)], axis=1)
        y = self._neck(x)
        if self.llama is not None:
            # The diagnosis tokens come last: without their keys no token attends to them.
            y = self._run_llama(y, precomputed, key=key, keys=d if self.spec.emitter else None)
        return y.astype(jnp.float32).mean(axis=1)


def build(
    backbone: str,
    *,
    spec: PneumoSpec,
    classes: int,
    columns: int = 0,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool,
    encoder_arguments: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> PneumoLLM:
    """Builds the model with random weights; under `nnx.eval_shape` it costs no memory.

    Args:
      backbone: a key of ENCODERS. A pretrained one is frozen.
      spec: everything else that shapes the model.
      classes: number of logits.
      columns: F, number of features of clinical columns.
      image_size: side S of the images, in pixels; a multiple of the backbone's patch.
      mean: of pixels in [0, 1], one value or three.
      std: see `mean`.
      dtype: of the computation; trained weights are always float32.
      remat: of the encoder, see `transformer.Transformer`; LLaMA's is in `spec`.
      encoder_arguments: arguments of the encoder that take precedence over those in ENCODERS, such as the eps of its
        checkpoint.
      rngs: of the weights.
    """
    encoder = frozen_encoder(
        backbone, image_size=image_size, dtype=dtype, remat=remat, arguments=encoder_arguments, rngs=rngs
    )
    return PneumoLLM(encoder, spec, classes=classes, columns=columns, mean=mean, std=std, dtype=dtype, rngs=rngs)


def _make_tokens(spec: PneumoSpec, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> Engine | Prompts | None:
    if spec.tokens == "none":
        return None
    if spec.tokens == "engine":
        return Engine(width, spec.count, dtype=dtype, rngs=rngs)
    return Prompts(width, spec.count, conditional=spec.tokens == "cocoop", dtype=dtype, rngs=rngs)
