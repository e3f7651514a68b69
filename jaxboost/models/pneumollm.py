"""PneumoLLM (Song et al. 2024): a frozen vision encoder and a whole frozen LLaMA, joined and adapted by few weights.

Shapes: d source tokens, the encoder's CLS tokens (B, d, W); m diagnosis tokens (B, m, W); D, the width of LLaMA.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.adapters import Adaptation, Projection, RepAdapter
from jaxboost.models.classifier import BACKBONES, CHANNELS, normalised
from jaxboost.models.frozen import Quantized, dequantize, freeze
from jaxboost.models.layers import linear, patches_2d, stack, torch_init
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.vit import ViT

NECK_WIDTH = 128
ENGINE_WIDTH = 12
COCOOP_REDUCTION = 16
TOKENS = ("none", "coop", "cocoop", "engine")
PATCHES = "conv14"  # the encoder of Figure 6 that is no pretrained one: a trained patch embedding
ENCODERS = (*(name for name, backbone in BACKBONES.items() if backbone.encoder is ViT), PATCHES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PneumoSpec:
    """Everything that shapes the model beside its encoder.

    Attributes:
      llama: shape of LLaMA's layers; where `depth` is 0, its width is still the neck's.
      depth: LLaMA's layers, 0 for the ablation without it (Table 4).
      every: a source token is the CLS token after each `every`-th block.
      vision_adapters, llama_adapters: RepAdapters in the encoder's and in LLaMA's layers (Table 6).
      tokens: what makes the diagnosis tokens, one of TOKENS (Table 6).
      count: m; not read where `tokens` is "none".
      emitter: the information emitter mask: nobody sees the diagnosis tokens (Equation 2).
      causal: LLaMA's own causal mask too, which the emitter's replaces.
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
    """Adapters merged into what follows them, stacked over the layers; None where there are none."""

    vision: Projection | None
    llama: dict[str, Projection] | None


class PatchTokens(nnx.Module):
    """Images (B, S, S, C) -> a source token for each patch of 14 x 14 pixels (B, (S / 14)^2, W)."""

    def __init__(self, *, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.patch, self.width = 14, width
        self.embedding = linear(self.patch**2 * CHANNELS, width, init=torch_init, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.embedding(patches_2d(images, self.patch))


class Engine(nnx.Module):
    """Contextual multi-token engine (section 3.2): X (B, d, W) -> M^T X (B, m, W).

    M (B, d, m) is the softmax over d of an MLP of X.
    """

    def __init__(self, width: int, count: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.hidden = linear(width, ENGINE_WIDTH, init=torch_init, dtype=dtype, rngs=rngs)
        self.scores = linear(ENGINE_WIDTH, count, init=torch_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = self.scores(jax.nn.relu(self.hidden(x))).astype(jnp.float32)  # (B, d, m)
        weights = jax.nn.softmax(scores, axis=1).astype(x.dtype)
        return weights.swapaxes(1, 2) @ x


class Prompts(nnx.Module):
    """Learned diagnosis tokens (B, m, W), the same for all images as in CoOp (Zhou et al. 2022b).

    With `conditional` all of them are shifted by a bottleneck MLP of the image's last CLS token, as in CoCoOp (Zhou et
    al. 2022a).
    """

    def __init__(self, width: int, count: int, *, conditional: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.prompts = nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))
        hidden = width // COCOOP_REDUCTION
        self.hidden = linear(width, hidden, init=torch_init, dtype=dtype, rngs=rngs) if conditional else None
        self.shift = linear(hidden, width, init=torch_init, dtype=dtype, rngs=rngs) if conditional else None

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = jnp.broadcast_to(self.prompts[...].astype(x.dtype), (x.shape[0], *self.prompts.shape))
        return tokens if self.shift is None else tokens + self.shift(jax.nn.relu(self.hidden(x[:, -1:])))


class PneumoLLM(nnx.Module):
    """uint8 images (B, S, S, c), c in {1, 3}, or their source tokens (B, d, W) -> logits (B, classes) in float32."""

    def __init__(
        self,
        encoder: ViT | PatchTokens,
        spec: PneumoSpec,
        *,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        W, D = encoder.width, spec.llama.width
        self.encoder, self.spec, self.dtype = encoder, spec, dtype
        self.mean, self.std = tuple(mean), tuple(std)
        self.vision_adapters = _make_adapters(W, encoder.depth, rngs) if spec.vision_adapters else None
        self.engine = _make_tokens(spec, W, dtype, rngs)
        self.neck_in = linear(W, NECK_WIDTH, init=_xavier_init, dtype=dtype, rngs=rngs)
        self.neck_out = linear(NECK_WIDTH, D, init=_xavier_init, dtype=dtype, rngs=rngs)
        self.llama = (
            freeze(LlamaBlock(spec.llama, depth=spec.depth, dtype=dtype, remat=spec.remat, rngs=rngs))
            if spec.depth
            else None
        )
        self.llama_adapters = _make_adapters(D, spec.depth, rngs) if spec.depth and spec.llama_adapters else None
        self.head = linear(D, classes, bias=False, init=torch_init, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, images: jax.Array, precomputed: Merged | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The logits.

        Args:
          precomputed: what `precompute` gave for these weights, None to do without; the logits are the same.
          key: of the adapters' dropout, None for none.
        """
        return self.head(self.features(images, precomputed, key=key)).astype(jnp.float32)

    def encode(
        self, images: jax.Array, precomputed: Merged | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Source tokens (B, d, W), those of the lower blocks first."""
        x = normalised(images, self.mean, self.std)
        if isinstance(self.encoder, PatchTokens):
            return self.encoder(x)
        merged = None if precomputed is None else precomputed.vision
        cls = self.encoder.first_tokens(x, _adaptation(self.vision_adapters, merged, self.encoder.depth, key))
        return cls[self.spec.every - 1 :: self.spec.every].swapaxes(0, 1)

    def features(
        self, images: jax.Array, precomputed: Merged | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """What the head's linear layer reads, the mean over LLaMA's output tokens (B, D)."""
        vision_key, llama_key = (None, None) if key is None else jax.random.split(key)
        x = images if images.ndim == 3 else self.encode(images, precomputed, key=vision_key)
        # Source tokens that were kept come in float32, whatever the computation.
        x, d = x.astype(self.dtype), x.shape[1]
        if self.engine is not None:
            x = jnp.concatenate([x, self.engine(x)], axis=1)
        y = self.neck_out(jax.nn.silu(self.neck_in(x)))
        if self.llama is not None:
            mask = (jnp.arange(y.shape[1]) < d)[None] if self.spec.emitter else None
            merged = None if precomputed is None else precomputed.llama
            adaptation = _adaptation(self.llama_adapters, merged, self.spec.depth, llama_key)
            y = self.llama(y, rope=True, causal=self.spec.causal, mask=mask, adaptation=adaptation)
        return y.astype(jnp.float32).mean(axis=1)

    def precompute(self) -> Merged | None:
        """All adapters merged exactly into the projections that follow them.

        None where there is no adapter, and in 16 bits, whose rounding would swallow what small adapters change.
        """
        if self.dtype != jnp.float32 or (self.vision_adapters is None and self.llama_adapters is None):
            return None
        vision = llama = None
        if self.vision_adapters is not None:
            blocks, last = self.encoder.transformer.blocks, self.encoder.transformer.last
            qkv = jax.tree.map(
                lambda *parts: jnp.concatenate([*parts[:-1], parts[-1][None]]),
                *([] if blocks is None else [_values(blocks.attention.qkv)]),
                _values(last.attention.qkv),
            )
            vision = _merged(self.vision_adapters, *qkv)
        if self.llama_adapters is not None:
            layers = self.llama.layers
            llama = {
                name: _merged(self.llama_adapters, kernel.get_value(), None)
                for name, kernel in (("q", layers.q), ("k", layers.k), ("v", layers.v))
            }
        return Merged(vision=vision, llama=llama)


def build(
    backbone: str,
    *,
    spec: PneumoSpec,
    classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool,
    encoder_arguments: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> PneumoLLM:
    """Builds the model with random weights, to be called under `nnx.eval_shape` or `jax.jit`.

    Args:
      backbone: one of ENCODERS.
      encoder_arguments: what to build it with instead of what BACKBONES says, such as its checkpoint's eps.
      remat: of the encoder, see `transformer.Transformer`; LLaMA's is in `spec`.
      The others are those of `classifier.build`.
    """
    if backbone == PATCHES:
        encoder = PatchTokens(width=BACKBONES["clip_vit_l14"].arguments["width"], dtype=dtype, rngs=rngs)
    else:
        arguments = BACKBONES[backbone].arguments | (encoder_arguments or {})
        encoder = freeze(
            ViT(image_size=image_size, channels=CHANNELS, dtype=dtype, remat=remat, rngs=rngs, **arguments)
        )
    return PneumoLLM(encoder, spec, classes=classes, mean=mean, std=std, dtype=dtype, rngs=rngs)


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
    # One layer after the other: a product of all at once would need their size again.
    return jax.lax.map(lambda layer: layer[0].merge(dequantize(layer[1]), layer[2]), (adapters, kernels, biases))


def _values(projection: nnx.Linear) -> tuple[jax.Array, jax.Array]:
    return projection.kernel[...], projection.bias[...]
