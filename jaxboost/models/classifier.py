"""R-LLM's classifier: encoder - booster - head."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models import tuning
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import FIRST, INITS, LAYER, MEAN, Boost, Precomputed, check_path, has_block
from jaxboost.models.encoder import Encoder
from jaxboost.models.frozen import freeze
from jaxboost.models.layers import layer_norm, linear, normalize_pixels, with_columns
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.slices import ATTENTION, GatedPool, SliceEncoder, Slices, sliced
from jaxboost.models.taps import tap
from jaxboost.models.trained_layer import TrainedLayer


@flax.struct.dataclass
class WithEncoder:
    """What the calls with the same weights can reuse of a classifier whose encoder has LoRA.

    Attributes:
      encoder: see `tuning.merged_lora`.
      boost: see `Boost.precompute`; None without a booster.
    """

    encoder: dict[str, jax.Array]
    boost: Any = None


class Classifier(nnx.Module):
    """uint8 images (B, S, S, c) or volumes (B, S, S, S, c), c in {1, 3} -> logits (B, classes) in float32.

    Pixels become ([0, 1] - mean) / std; grey is repeated to three channels. The head reads the first token: CLS, or the
    single token of a pooling encoder; or the mean of the tokens, if the encoder has no CLS token, or what `pool` makes
    of them. In the place of images the encoder's tokens (B, Q, W) may be given, as `encode` returns them. A head that
    is F wider than the encoder also reads F features of clinical columns.
    """

    def __init__(
        self,
        encoder: Encoder,
        boost: Boost | TrainedLayer | None,
        *,
        head_norm: nnx.LayerNorm | None,
        head: nnx.Linear,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: jnp.dtype,
        pool: GatedPool | None = None,
    ):
        self.encoder, self.boost, self.head_norm, self.head = encoder, boost, head_norm, head
        self.pool = pool
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype

    def __call__(
        self,
        images: jax.Array,
        precomputed: Precomputed | WithEncoder | None = None,
        *,
        columns: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The logits (B, classes) in float32; arguments: see `features`."""
        return self.head(self.features(images, precomputed, columns=columns, key=key)).astype(jnp.float32)

    def features(
        self,
        images: jax.Array,
        precomputed: Precomputed | WithEncoder | None = None,
        *,
        columns: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The input of the head's linear layer (B, W + F) in float32: the boosted CLS token, or mean, after the norm.

        The features of clinical columns follow, if the model reads any.

        Args:
          images: uint8 images or volumes, or their tokens (B, Q, W) that `encode` gave.
          precomputed: the result of `precompute` for these weights; None: not computed, same features.
          columns: features of clinical columns, float32 (B, F); None: the model reads none.
          key: random key of a training step (stochastic depth), None in evaluation. With a key, batch norms use the
            batch's statistics.
        """
        of_boost: Any = precomputed
        merged = None
        if isinstance(precomputed, WithEncoder):
            of_boost, merged = precomputed.boost, precomputed.encoder
        tokens = images if images.ndim == 3 else self.encode(images, merged, key=key)
        # Tokens from a file are float32, whatever the dtype of the computation.
        tokens = tokens.astype(self.dtype)
        if self.boost is not None:
            tokens = self.boost.pooled(tap("tokens", tokens), precomputed=of_boost)
        if self.pool is not None:
            tokens = self.pool(tokens)
        pooled = tokens[:, 0]
        if self.head_norm is not None:
            pooled = self.head_norm(pooled)
        return with_columns(pooled.astype(jnp.float32), columns)

    def encode(
        self, images: jax.Array, merged: dict[str, jax.Array] | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The encoder's tokens (B, Q, W): all N of them; if nothing reads the others, CLS or their mean (Q = 1).

        Args:
          images: uint8 images or volumes.
          merged: of an encoder with LoRA, see `tuning.merged_lora`; None: it is not merged, same tokens.
          key: see `features`.
        """
        encoder = self.encoder if merged is None else tuning.with_merged(self.encoder, merged)
        if isinstance(encoder, SliceEncoder):
            images = encoder.views(images)
        x = normalize_pixels(images, self.mean, self.std, keep_grey=self.encoder.traits.takes_grey)
        all_tokens = self.pool is not None or (self.boost is not None and self.boost.reads_all_tokens)
        if all_tokens or self.encoder.traits.cls_first:
            return encoder(x, queries=None if all_tokens else 1, key=key)
        return encoder(x, key=key).mean(1, keepdims=True)

    def precompute(self) -> Precomputed | WithEncoder | None:
        """What all calls with the same weights can reuse, see `Boost.precompute`.

        An encoder's LoRA is merged into its matrices. In bfloat16 it is not, because small changes would be lost.
        """
        of_boost = None if self.boost is None else self.boost.precompute()
        merged = tuning.merged_lora(self.encoder) if self.dtype == jnp.float32 else {}
        return WithEncoder(encoder=merged, boost=of_boost) if merged else of_boost

    @property
    def tokens(self) -> int:
        """Number of tokens that the booster's LLaMA layers see, or would see without a booster."""
        return self.encoder.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoostSpec:
    """Everything about the booster that shapes the model.

    Attributes:
      kind: one of `boost.KINDS`.
      config: the LLaMA layers' shape, for all kinds but "none"; a kind without layers takes its hidden width from it.
      depth: number of consecutive LLaMA layers.
      trainable: the LLaMA layers are trained too: the paper's fine-tuning control.
      rope, causal, path, init: see `Boost`.
      lora_rank: rank of LoRA on the LLaMA layers, which are frozen then; 0: no LoRA.
      lora_alpha: its scale is lora_alpha / lora_rank; 0: 1.
    """

    kind: str
    config: LlamaConfig | None = None
    depth: int = 1
    trainable: bool = False
    rope: bool = False
    causal: bool = False
    path: str = "auto"
    init: str = "uniform"
    lora_rank: int = 0
    lora_alpha: float = 0.0


def build(
    backbone: str,
    *,
    boost: BoostSpec,
    classes: int,
    columns: int = 0,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool = False,
    drop_path: float = 0.0,
    frozen: bool = False,
    slices: Slices | None = None,
    last_block: bool = False,
    lora_rank: int = 0,
    lora_alpha: float = 0.0,
    lora_targets: Sequence[str] = (),
    encoder_arguments: Mapping[str, Any] | None = None,
    block: LlamaBlock | None = None,
    rngs: nnx.Rngs,
) -> Classifier:
    """Builds a classifier with random weights; under `nnx.eval_shape` it costs no memory.

    Args:
      backbone: a key of BACKBONES.
      boost: the booster.
      classes: number of logits.
      columns: F, number of features of clinical columns.
      image_size: side S of the (cubic) input, in pixels; a multiple of the backbone's patch, if it has one.
      mean: of pixels in [0, 1], one value or three.
      std: see `mean`.
      dtype: of the computation; trained weights are always float32.
      remat: recompute activations in the backward pass, see `transformer.Transformer` and `resnet.ResNet`.
      drop_path: stochastic depth, see `transformer.Transformer`.
      frozen: the encoder and the norm before the head are not trained.
      slices: which slices of a volume a 2D encoder sees; None: images, or whole volumes. Attention pools them only
        without a booster, which gives the mean.
      last_block: of a frozen encoder the last block, what follows it, and the norm before the head are trained.
      lora_rank: rank of LoRA on a frozen encoder; 0: no LoRA.
      lora_alpha: its scale is lora_alpha / lora_rank; 0: 1.
      lora_targets: the linear layers that it changes, see `tuning.add_lora`.
      encoder_arguments: arguments of the encoder that take precedence over those in BACKBONES, such as the eps of its
        checkpoint. The norm before the head then has the same eps.
      block: LLaMA layers with the booster's `config`; None: new random ones.
      rngs: of the weights.

    Raises:
      UserError: a booster for a backbone without tokens, or stochastic depth for one without that option.
    """
    spec, changes = sliced(BACKBONES[backbone], slices), dict(encoder_arguments or {})
    if boost.kind != "none" and not spec.traits.gives_tokens:
        raise ArgumentError(f"backbone {backbone} gives one pooled feature, no tokens for boost {boost.kind}")
    if drop_path and not spec.traits.has_stochastic_depth:
        raise ArgumentError(f"backbone {backbone} has no drop path")
    depth_rate = {"drop_path": drop_path} if spec.traits.has_stochastic_depth else {}
    encoder = spec.build(image_size=image_size, dtype=dtype, remat=remat, rngs=rngs, **{**changes, **depth_rate})
    booster = _build_boost(boost, encoder.width, FIRST if spec.traits.cls_first else MEAN, dtype, rngs, block)
    norm = None
    if spec.head_eps is not None:
        norm = layer_norm(encoder.width, eps=changes.get("eps", spec.head_eps), dtype=dtype, rngs=rngs)
    if frozen:
        freeze(encoder, but=tuning.last_block(encoder) if last_block else ())
        if norm is not None and not last_block:
            freeze(norm)
    pools = slices is not None and slices.pooling == ATTENTION and booster is None
    pool = GatedPool(encoder.width, dtype=dtype, rngs=rngs) if pools else None
    head = linear(encoder.width + columns, classes, init=spec.traits.head_init, dtype=jnp.float32, rngs=rngs)
    if boost.lora_rank and isinstance(booster, Boost) and booster.block is not None:
        # Last, so that the other weights are drawn as without it.
        booster.block.add_lora(boost.lora_rank, alpha=boost.lora_alpha or None, rngs=rngs)
    if lora_rank:
        tuning.add_lora(encoder, lora_targets, rank=lora_rank, alpha=lora_alpha or None, rngs=rngs)
    return Classifier(encoder, booster, head_norm=norm, head=head, pool=pool, mean=mean, std=std, dtype=dtype)


def _build_boost(
    spec: BoostSpec, width: int, pool: str, dtype: jnp.dtype, rngs: nnx.Rngs, block: LlamaBlock | None
) -> Boost | TrainedLayer | None:
    if spec.kind == "none":
        return None
    if spec.config is None:
        raise ArgumentError(f"boost kind {spec.kind} needs the LLaMA layers' config")
    lora = spec.lora_rank > 0
    check_path(spec.path, spec.kind, rope=spec.rope, lora=lora, pool=pool, architecture=spec.config)
    if spec.kind == LAYER:
        given: dict[str, Any] = dict(path=spec.path, mean=pool == MEAN, init=INITS[spec.init], dtype=dtype, rngs=rngs)
        return TrainedLayer(width=width, block_width=spec.config.width, **given)
    if not has_block(spec.kind):
        block = None
    elif block is None:
        block = LlamaBlock(spec.config, depth=spec.depth, dtype=dtype, rngs=rngs)
        if not spec.trainable:
            freeze(block)
    return Boost(
        spec.kind,
        width=width,
        block=block,
        block_width=spec.config.width,
        rope=spec.rope,
        causal=spec.causal,
        path=spec.path,
        pool=pool,
        init=spec.init,
        dtype=dtype,
        rngs=rngs,
    )
