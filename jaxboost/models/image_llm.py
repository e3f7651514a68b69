"""A frozen vision encoder in front of a frozen LLM, with adapters in both: what PneumoLLM and LaVIN share.

Shapes: d source tokens (B, d, W), the encoder's CLS tokens; D, the width of the LLM.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.adapters import Adaptation, AdapterMaps, MixtureAdapter, Projection, RepAdapter
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.encoder import BlockEncoder, Encoder, Traits
from jaxboost.models.frozen import Quantized, dequantize, freeze
from jaxboost.models.layers import linear, normalize_pixels, patches_2d, stack, torch_init, with_columns
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.taps import tap

NECK_WIDTH = 128
# Name of a kind of adapters -> its class.
ADAPTERS = {"rep": RepAdapter, "mixture": MixtureAdapter}
Adapters = RepAdapter | MixtureAdapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLLMSpec:
    """The choices that shape the shared parts, except the encoder.

    Attributes:
      llama: shape of LLaMA's layers. Its width is the output width of the neck, also with depth 0.
      depth: number of LLaMA's layers, 0 for the ablation without LLaMA (PneumoLLM's Table 4).
      every: the source tokens are the CLS tokens after each `every`-th block.
      adapters: kind of the adapters, a key of ADAPTERS.
      vision_adapters, llama_adapters: adapters in the encoder's and in LLaMA's layers (PneumoLLM's Table 6).
      causal: LLaMA's causal mask.
      remat: see `llama.LlamaBlock`.
    """

    llama: LlamaConfig
    depth: int
    every: int
    adapters: str = "rep"
    vision_adapters: bool
    llama_adapters: bool
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


class ImageLLM(nnx.Module):
    """The shared parts. A subclass makes them in its own order, which its random initial weights depend on.

    It has a method `_pool`, and `__call__`, which returns the logits.

    Attributes:
      encoder: a `BlockEncoder`, whose CLS tokens are read, or another encoder, whose tokens are all read.
      spec: everything else that shapes the model.
      mean, std: of pixels in [0, 1], one value or three.
      dtype: of the computation.
      vision_adapters, llama_adapters: stacked over the layers, or None.
      neck_in, neck_out: the visual neck.
      llama: the frozen LLM, or None.
    """

    spec: Any
    llama: Any

    def _set_vision(
        self,
        encoder: Encoder,
        spec: ImageLLMSpec,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder, self.spec, self.dtype = encoder, spec, dtype
        self.mean, self.std = tuple(mean), tuple(std)
        depth = self._blocks.depth if spec.vision_adapters else 0
        self.vision_adapters = _make_adapters(spec.adapters, encoder.width, depth, rngs)

    def _set_neck(self, rngs: nnx.Rngs) -> None:
        W, D, dtype = self.encoder.width, self.spec.llama.width, self.dtype
        self.neck_in = linear(W, NECK_WIDTH, init=_xavier_init, dtype=dtype, rngs=rngs)
        self.neck_out = linear(NECK_WIDTH, D, init=_xavier_init, dtype=dtype, rngs=rngs)

    def _set_llama(self, rngs: nnx.Rngs) -> None:
        spec, depth = self.spec, self.spec.depth
        self.llama = (
            freeze(LlamaBlock(spec.llama, depth=depth, dtype=self.dtype, remat=spec.remat, rngs=rngs))
            if depth
            else None
        )
        adapted = depth if spec.llama_adapters else 0
        self.llama_adapters = _make_adapters(spec.adapters, spec.llama.width, adapted, rngs)

    def encode(
        self, images: jax.Array, precomputed: Merged | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Source tokens (B, d, W), those of the lower blocks first.

        Args:
          images: uint8 images (B, S, S, c), c in {1, 3}.
          precomputed: the adapters merged for these weights; None: they are not, same tokens.
          key: random key of the adapters' dropout in training, None in evaluation.
        """
        x = normalize_pixels(images, self.mean, self.std)
        if not self.encoder.traits.has_first_tokens:
            return self.encoder(x)
        merged = None if precomputed is None else precomputed.vision
        cls = self._blocks.first_tokens(x, adaptation(self.vision_adapters, merged, self._blocks.depth, key))
        return cls[self.spec.every - 1 :: self.spec.every].swapaxes(0, 1)

    @property
    def source_tokens(self) -> int:
        """d, the number of source tokens."""
        blockwise = self.encoder.traits.has_first_tokens
        return self._blocks.depth // self.spec.every if blockwise else self.encoder.tokens

    @property
    def _blocks(self) -> BlockEncoder:
        """The encoder, if it has the trait `has_first_tokens`."""
        return cast(BlockEncoder, self.encoder)

    def _neck(self, x: jax.Array) -> jax.Array:
        """Tokens (B, N, W) -> tokens of the LLM's width (B, N, D)."""
        return self.neck_out(jax.nn.silu(self.neck_in(x)))

    def features(
        self,
        images: jax.Array,
        precomputed: Merged | None = None,
        *,
        columns: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The input of the last linear layer in float32: (B, D), or (B, D + F) with clinical columns behind them.

        Args:
          images: uint8 images, or source tokens (B, d, W) that `encode` gave.
          precomputed: the result of `precompute` for these weights; None: not computed, same features.
          columns: features of clinical columns, float32 (B, F); None: the model reads none.
          key: random key of the adapters' dropout in training, None in evaluation.
        """
        vision_key, llama_key = (None, None) if key is None else jax.random.split(key)
        x = images if images.ndim == 3 else self.encode(images, precomputed, key=vision_key)
        # Source tokens from a file are float32, whatever the dtype of the computation.
        return with_columns(self._pool(tap("tokens", x).astype(self.dtype), precomputed, key=llama_key), columns)

    def precompute(self) -> Merged | None:
        """Merges the adapters exactly into the projections that follow them, except where each image has its own.

        Returns None if none is merged. Also for a computation in 16 bits: its rounding would lose the small changes
        that adapters make to a projection.
        """
        if self.dtype != jnp.float32:
            return None
        vision = llama = None
        if isinstance(self.vision_adapters, RepAdapter):
            qkv = self._blocks.qkv()
            vision = _merged(self.vision_adapters, qkv.kernel, qkv.bias)
        adapters = self._affine_adapters()
        if adapters is not None and self.llama is not None:
            layers = self.llama.layers
            llama = {
                name: _merged(adapters, getattr(layers, name).get_value(), layers.bias(name))
                for name in ("q", "k", "v")
            }
        return None if vision is None and llama is None else Merged(vision=vision, llama=llama)

    def _affine_adapters(self) -> RepAdapter | AdapterMaps | None:
        """The LLM's adapters, stacked over the layers."""
        return self.llama_adapters

    def _pool(self, x: jax.Array, precomputed: Merged | None, *, key: jax.Array | None) -> jax.Array:
        """The features (B, D) of source tokens x (B, d, W)."""
        raise NotImplementedError

    def _run_llama(
        self, y: jax.Array, precomputed: Merged | None, *, key: jax.Array | None, keys: int | None = None
    ) -> jax.Array:
        """The LLM's output (B, N, D) for its input y (B, N, D); `keys`: see `llama.LlamaLayer`."""
        merged = None if precomputed is None else precomputed.llama
        adapters = self._affine_adapters() if merged is None else None
        y = self.llama(
            tap("llm_in", y),
            rope=self.spec.llama.rotary,
            causal=self.spec.causal,
            keys=keys,
            adaptation=adaptation(adapters, merged, self.spec.depth, key),
        )
        return tap("llm_out", y)


def frozen_encoder(
    backbone: str,
    *,
    image_size: int,
    dtype: jnp.dtype,
    remat: bool,
    arguments: dict[str, Any] | None,
    rngs: nnx.Rngs,
) -> Encoder:
    """The encoder of a model, with random weights; a pretrained one is frozen.

    Args:
      backbone: a key of ENCODERS.
      image_size: side S of the images, in pixels; a multiple of the backbone's patch.
      dtype: of the computation.
      remat: see `transformer.Transformer`.
      arguments: they take precedence over those in ENCODERS, such as the eps of the encoder's checkpoint.
      rngs: of the weights.
    """
    row = ENCODERS[backbone]
    encoder = row.build(image_size=image_size, dtype=dtype, remat=remat, rngs=rngs, **(arguments or {}))
    return freeze(encoder) if row.traits.has_first_tokens else encoder


def adaptation(
    adapters: Adapters | AdapterMaps | None, merged: Any, depth: int, key: jax.Array | None
) -> Adaptation | None:
    """How the inputs of `depth` layers are adapted, with merged adapters if there are any; None: they are not."""
    if merged is not None:
        return Adaptation(merged=merged)
    if adapters is None:
        return None
    return Adaptation(adapter=adapters, key=None if key is None else jax.random.split(key, depth))


def _make_adapters(kind: str, width: int, depth: int, rngs: nnx.Rngs) -> Any:
    return stack(lambda r: ADAPTERS[kind](width, rngs=r), depth, rngs) if depth else None


def _xavier_init(fan_in: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    del fan_in
    return nnx.initializers.xavier_uniform(), nnx.initializers.zeros


def _merged(adapters: RepAdapter | AdapterMaps, kernels: jax.Array | Quantized, biases: jax.Array | None) -> Projection:
    # One layer after the other: all products at once would need as much memory as all the layers.
    return jax.lax.map(lambda layer: layer[0].merge(dequantize(layer[1]), layer[2]), (adapters, kernels, biases))
