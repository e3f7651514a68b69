"""PneumoLLM (Song et al. 2024): a frozen vision encoder and a whole frozen LLaMA, connected by few trained weights.

Shapes: d source tokens (B, d, W), the encoder's CLS tokens; m diagnosis tokens (B, m, W); D, the width of LLaMA.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.adapters import Adaptation, Projection, RepAdapter
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.encoder import BlockEncoder, Encoder, Traits
from jaxboost.models.frozen import Quantized, dequantize, freeze
from jaxboost.models.layers import linear, normalize_pixels, patches_2d, stack, torch_init, with_columns
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.taps import tap

NECK_WIDTH = 128
ENGINE_WIDTH = 12
COCOOP_REDUCTION = 16
TOKENS = ("none", "coop", "cocoop", "engine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PneumoSpec:
    """The choices that shape the model, except its encoder.

    Attributes:
      llama: shape of LLaMA's layers. Its width is the output width of the neck, also with depth 0.
      depth: number of LLaMA's layers, 0 for the ablation without LLaMA (Table 4).
      every: the source tokens are the CLS tokens after each `every`-th block.
      vision_adapters, llama_adapters: RepAdapters in the encoder's and in LLaMA's layers (Table 6).
      tokens: how the diagnosis tokens are made, one of TOKENS (Table 6).
      count: m; not used with tokens "none".
      emitter: the mask of the information emitter: no token attends to the diagnosis tokens (Equation 2).
      causal: LLaMA's causal mask. The paper replaces it by the emitter's mask.
      remat: see `llama.LlamaBlock`.
    """

    llama: LlamaConfig
    depth: int
    every: int
    vision_adapters: bool
    llama_adapters: bool
    tokens: str
    count: int
    emitter: bool
    causal: bool
    remat: bool


@flax.struct.dataclass
class Merged:
    """Adapters merged into the projections that follow them, stacked over the layers; None if there are none."""

    vision: Projection | None
    llama: dict[str, Projection] | None


class PatchTokens(nnx.Module):
    """Images (B, S, S, C) -> one source token for each patch (B, N, W): a trained patch embedding, without CLS.

    Args:
      image_size: S, a multiple of `patch`, both in pixels.
      patch: side of a patch.
      channels: C.
      width: W.
      remat: not used: there is nothing to recompute.
      dtype: of the computation.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(has_stochastic_depth=False)

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        remat: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        del remat
        self.patch, self.width, self.tokens = patch, width, (image_size // patch) ** 2
        self.embedding = linear(patch**2 * channels, width, init=torch_init, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first tokens (B, Q, W), see `encoder.Encoder`."""
        del key
        return self.embedding(patches_2d(images, self.patch)[:, :queries])


# The encoders of PneumoLLM: those whose CLS tokens can be read, and one of Figure 6 that is not pretrained.
ENCODERS = {name: backbone for name, backbone in BACKBONES.items() if backbone.traits.has_first_tokens} | {
    "conv14": Backbone(
        encoder=PatchTokens,
        ndim=2,
        arguments=dict(patch=14, width=BACKBONES["clip_vit_l14"].arguments["width"]),
        head_eps=None,
    )
}


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


class PneumoLLM(nnx.Module):
    """uint8 images (B, S, S, c), c in {1, 3}, or their source tokens (B, d, W) -> logits (B, classes) in float32.

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
        W, D = encoder.width, spec.llama.width
        self.encoder, self.spec, self.dtype = encoder, spec, dtype
        self.mean, self.std = tuple(mean), tuple(std)
        self.vision_adapters = _make_adapters(W, self._blocks.depth, rngs) if spec.vision_adapters else None
        self.engine = _make_tokens(spec, W, dtype, rngs)
        self.neck_in = linear(W, NECK_WIDTH, init=_xavier_init, dtype=dtype, rngs=rngs)
        self.neck_out = linear(NECK_WIDTH, D, init=_xavier_init, dtype=dtype, rngs=rngs)
        self.llama = (
            freeze(LlamaBlock(spec.llama, depth=spec.depth, dtype=dtype, remat=spec.remat, rngs=rngs))
            if spec.depth
            else None
        )
        self.llama_adapters = _make_adapters(D, spec.depth, rngs) if spec.depth and spec.llama_adapters else None
        self.head = linear(D + columns, classes, bias=False, init=torch_init, dtype=jnp.float32, rngs=rngs)

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

    def features(
        self,
        images: jax.Array,
        precomputed: Merged | None = None,
        *,
        columns: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The input of the head's linear layer (B, D + F) in float32: the mean of LLaMA's output tokens, then columns.

        Args:
          images: uint8 images, or source tokens (B, d, W) that `encode` gave.
          precomputed: the result of `precompute` for these weights; None: not computed, same features.
          columns: features of clinical columns, float32 (B, F); None: the model reads none.
          key: random key of the adapters' dropout in training, None in evaluation.
        """
        vision_key, llama_key = (None, None) if key is None else jax.random.split(key)
        x = images if images.ndim == 3 else self.encode(images, precomputed, key=vision_key)
        return with_columns(self._pool(tap("tokens", x), precomputed, key=llama_key), columns)

    def encode(
        self, images: jax.Array, precomputed: Merged | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Source tokens (B, d, W), those of the lower blocks first; arguments: see `features`; images only."""
        x = normalize_pixels(images, self.mean, self.std)
        if not self.encoder.traits.has_first_tokens:
            return self.encoder(x)
        merged = None if precomputed is None else precomputed.vision
        cls = self._blocks.first_tokens(x, _adaptation(self.vision_adapters, merged, self._blocks.depth, key))
        return cls[self.spec.every - 1 :: self.spec.every].swapaxes(0, 1)

    @property
    def tokens(self) -> int:
        """Number of tokens that LLaMA sees, or would see if there were layers: source and diagnosis tokens."""
        blockwise = self.encoder.traits.has_first_tokens
        source = self._blocks.depth // self.spec.every if blockwise else self.encoder.tokens
        return source + (self.spec.count if self.engine is not None else 0)

    @property
    def _blocks(self) -> BlockEncoder:
        """The encoder, if it has the trait `has_first_tokens`."""
        return cast(BlockEncoder, self.encoder)

    def _pool(self, x: jax.Array, precomputed: Merged | None, *, key: jax.Array | None) -> jax.Array:
        """The mean over LLaMA's output tokens (B, D), from source tokens x (B, d, W)."""
        # Source tokens from a file are float32, whatever the dtype of the computation.
        x, d = x.astype(self.dtype), x.shape[1]
        if self.engine is not None:
            x = jnp.concatenate([x, self.engine(x)], axis=1)
        y = self.neck_out(jax.nn.silu(self.neck_in(x)))
        if self.llama is not None:
            # The diagnosis tokens come last: without their keys no token attends to them.
            keys = d if self.spec.emitter else None
            merged = None if precomputed is None else precomputed.llama
            adaptation = _adaptation(self.llama_adapters, merged, self.spec.depth, key)
            rope, causal = self.spec.llama.rotary, self.spec.causal
            y = self.llama(tap("llm_in", y), rope=rope, causal=causal, keys=keys, adaptation=adaptation)
            y = tap("llm_out", y)
        return y.astype(jnp.float32).mean(axis=1)

    def precompute(self) -> Merged | None:
        """Merges all adapters exactly into the projections that follow them.

        Returns None if there is no adapter. Also for a computation in 16 bits: its rounding would lose the small
        changes that adapters make to a projection.
        """
        if self.dtype != jnp.float32 or (self.vision_adapters is None and self.llama_adapters is None):
            return None
        vision = llama = None
        if self.vision_adapters is not None:
            qkv = self._blocks.qkv()
            vision = _merged(self.vision_adapters, qkv.kernel, qkv.bias)
        if self.llama_adapters is not None and self.llama is not None:
            layers = self.llama.layers
            llama = {
                name: _merged(self.llama_adapters, getattr(layers, name).get_value(), layers.bias(name))
                for name in ("q", "k", "v")
            }
        return Merged(vision=vision, llama=llama)


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
    row = ENCODERS[backbone]
    encoder = row.build(image_size=image_size, dtype=dtype, remat=remat, rngs=rngs, **(encoder_arguments or {}))
    if row.traits.has_first_tokens:
        freeze(encoder)
    return PneumoLLM(encoder, spec, classes=classes, columns=columns, mean=mean, std=std, dtype=dtype, rngs=rngs)


def _make_adapters(width: int, depth: int, rngs: nnx.Rngs) -> RepAdapter:
    return stack(lambda r: RepAdapter(width, rngs=r), depth, rngs)


def _make_tokens(spec: PneumoSpec, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> Engine | Prompts | None:
    if spec.tokens == "none":
        return None
    if spec.tokens == "engine":
        return Engine(width, spec.count, dtype=dtype, rngs=rngs)
    return Prompts(width, spec.count, conditional=spec.tokens == "cocoop", dtype=dtype, rngs=rngs)


def _xavier_init(fan_in: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    del fan_in
    return nnx.initializers.xavier_uniform(), nnx.initializers.zeros


def _adaptation(adapters: RepAdapter | None, merged: Any, depth: int, key: jax.Array | None) -> Adaptation | None:
    if adapters is None:
        return None
    if merged is not None:
        return Adaptation(merged=merged)
    return Adaptation(adapter=adapters, key=None if key is None else jax.random.split(key, depth))


def _merged(adapters: RepAdapter, kernels: jax.Array | Quantized, biases: jax.Array | None) -> Projection:
    # One layer after the other: all products at once would need as much memory as all the layers.
    return jax.lax.map(lambda layer: layer[0].merge(dequantize(layer[1]), layer[2]), (adapters, kernels, biases))
