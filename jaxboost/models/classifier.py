"""The assembled classifier, encoder - boost - head, and the table of backbones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.absorbed import Precomputed
from jaxboost.models.boost import VARIANTS, Boost
from jaxboost.models.frozen import freeze
from jaxboost.models.layers import layer_norm, linear, torch_init, vit_init
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.resnet import CONVOLUTIONS, ResNet
from jaxboost.models.vit import PLAIN, ViT
from jaxboost.models.vit3d import ViT3D
from jaxboost.models.vivit import ViViT

CHANNELS = 3  # every backbone sees three; grey images are repeated, as the reference does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """An encoder and the norm that its head begins with.

    Attributes:
      encoder: class of the encoder.
      ndim: spatial dimensions of its input, 2 or 3.
      arguments: what the encoder is built with, beside the image size.
      head_eps: eps of the LayerNorm before the linear head, None for no norm there.
      pooled: the encoder gives one pooled feature: a booster would have no tokens to mix.
    """

    encoder: type[nnx.Module]
    ndim: int
    arguments: dict[str, Any]
    head_eps: float | None
    pooled: bool = False


def _vit(width: int, depth: int, heads: int, patch: int = 16, **published: Any) -> Backbone:
    arguments = dict(patch=patch, width=width, depth=depth, heads=heads, mlp_width=4 * width, **published)
    return Backbone(encoder=ViT, ndim=2, arguments=arguments, head_eps=published.get("eps", PLAIN["eps"]))


def _vit3d(width: int, depth: int, heads: int, mlp_width: int, patch: int = 4) -> Backbone:
    arguments = dict(patch=patch, width=width, depth=depth, heads=heads, head_dim=64, mlp_width=mlp_width)
    return Backbone(encoder=ViT3D, ndim=3, arguments=arguments, head_eps=1e-5)


def _vivit(width: int, depth: int, heads: int, patch: int = 4) -> Backbone:
    arguments = dict(
        patch=patch,
        width=width,
        spatial_depth=depth,
        temporal_depth=depth,
        heads=heads,
        head_dim=64,
        mlp_width=width,
    )
    return Backbone(encoder=ViViT, ndim=3, arguments=arguments, head_eps=None)


def _resnet(block: str, *depths: int, convolution: str = "2d") -> Backbone:
    arguments = dict(block=block, depths=depths, convolution=convolution)
    return Backbone(encoder=ResNet, ndim=CONVOLUTIONS[convolution], arguments=arguments, head_eps=None, pooled=True)


# CLIP (Radford et al. 2021).
_CLIP = dict(eps=1e-5, activation="quick_gelu", patch_bias=False, pre_norm=True)

BACKBONES = {
    "vit_ti16": _vit(width=192, depth=12, heads=3),
    "vit_s": _vit(width=384, depth=12, heads=6),
    "vit_b16": _vit(width=768, depth=12, heads=12),
    "vit_l16": _vit(width=1024, depth=24, heads=16),
    "clip_vit_b32": _vit(width=768, depth=12, heads=12, patch=32, **_CLIP),
    "clip_vit_b16": _vit(width=768, depth=12, heads=12, **_CLIP),
    "clip_vit_l14": _vit(width=1024, depth=24, heads=16, patch=14, **_CLIP),
    "dinov2_s14": _vit(width=384, depth=12, heads=6, patch=14, layer_scale=True),
    "vit3d": _vit3d(width=1024, depth=8, heads=8, mlp_width=1024),
    "vivit_s": _vivit(width=512, depth=4, heads=8),
    "vivit_m": _vivit(width=1024, depth=8, heads=8),
    # MedMNIST's baselines (Yang et al. 2023).
    "resnet18": _resnet("basic", 2, 2, 2, 2),
    "resnet50": _resnet("bottleneck", 3, 4, 6, 3),
    "resnet18_3d": _resnet("basic", 2, 2, 2, 2, convolution="3d"),
    "resnet50_3d": _resnet("bottleneck", 3, 4, 6, 3, convolution="3d"),
    "resnet18_acs": _resnet("basic", 2, 2, 2, 2, convolution="acs"),
    "resnet50_acs": _resnet("bottleneck", 3, 4, 6, 3, convolution="acs"),
    # Not the paper's: small enough for tests and a laptop.
    "vit_tiny": _vit(width=128, depth=2, heads=2, patch=7),
    "vit3d_tiny": _vit3d(width=128, depth=2, heads=2, mlp_width=128, patch=7),
    "vivit_tiny": _vivit(width=128, depth=2, heads=2),
}


class Classifier(nnx.Module):
    """uint8 images (B, S, S, c) or volumes (B, S, S, S, c), c in {1, 3} -> logits (B, classes) in float32.

    Pixels become ([0, 1] - mean) / std; grey is repeated to three channels. The CLS token is pooled; a ResNet's one
    token is pooled already.
    """

    def __init__(
        self,
        encoder: nnx.Module,
        boost: Boost | None,
        *,
        head_norm: nnx.LayerNorm | None,
        head: nnx.Linear,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        self.encoder, self.boost, self.head_norm, self.head = encoder, boost, head_norm, head
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(
        self, images: jax.Array, precomputed: Precomputed | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The logits.

        Args:
          precomputed: what `precompute` gave for these weights, None to do without; the logits are the same.
          key: of what is random in training (drop path). Its presence says that the model is trained, which a ResNet
            has to know.
        """
        return self.head(self.features(images, precomputed, key=key)).astype(jnp.float32)

    def features(
        self, images: jax.Array, precomputed: Precomputed | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """What the head's linear layer reads, (B, width)."""
        x = normalised(images, self.mean, self.std)
        if isinstance(self.encoder, ResNet):
            cls = self.encoder(x, train=key is not None)
        elif self.boost is None:
            cls = self.encoder(x, queries=1, key=key)
        else:
            tokens = self.encoder(x, queries=None if self.boost.reads_all_tokens else 1, key=key)
            cls = self.boost.pooled(tokens, precomputed=precomputed)
        pooled = cls[:, 0]
        if self.head_norm is not None:
            pooled = self.head_norm(pooled)
        return pooled

    def precompute(self) -> Precomputed | None:
        """What a call can reuse as long as the weights stay: see `Boost.precompute`."""
        return None if self.boost is None else self.boost.precompute()


def normalised(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """([0, 1] - mean) / std of uint8 pixels, grey repeated to three channels."""
    x = (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
    return jnp.broadcast_to(x, (*images.shape[:-1], CHANNELS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoostSpec:
    """Everything about the booster that shapes the model.

    Attributes:
      kind: "none" or a key of `boost.VARIANTS`.
      config: the LLaMA layer's; the controls without the layer take their hidden width from it.
      depth: number of consecutive LLaMA layers.
      trainable: the paper's fine-tuning arm: the layers are trained too.
      rope, causal, path, init: see `Boost`.
    """

    kind: str
    config: LlamaConfig | None = None
    depth: int = 1
    trainable: bool = False
    rope: bool = False
    causal: bool = False
    path: str = "auto"
    init: str = "uniform"


def build(
    backbone: str,
    *,
    boost: BoostSpec,
    classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype,
    remat: bool = False,
    drop_path: float = 0.0,
    frozen: bool = False,
    encoder_arguments: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> Classifier:
    """Builds a classifier with random weights; call it under `nnx.eval_shape` or `jax.jit` where they are not wanted.

    Args:
      backbone: a key of BACKBONES.
      image_size: side S of the (cubic) input, in pixels; a multiple of the backbone's patch, where it has one.
      dtype: of the computation; trained weights are float32 always.
      remat: see `transformer.Transformer` and `resnet.ResNet`.
      drop_path: see `transformer.Transformer`.
      frozen: the encoder and the norm before the head are not trained.
      encoder_arguments: what to build the encoder with instead of what BACKBONES says, such as its checkpoint's eps,
        which the norm before the head then has too.

    Raises:
      ValueError: a booster or drop path for a backbone that gives no tokens.
    """
    spec, given = BACKBONES[backbone], dict(encoder_arguments or {})
    if spec.pooled and boost.kind != "none":
        raise ValueError(f"backbone {backbone} gives one pooled feature, no tokens for boost {boost.kind}")
    if spec.pooled and drop_path:
        raise ValueError(f"backbone {backbone} has no drop path")
    arguments = spec.arguments | given | ({} if spec.pooled else {"drop_path": drop_path})
    encoder = spec.encoder(image_size=image_size, channels=CHANNELS, dtype=dtype, remat=remat, rngs=rngs, **arguments)
    width = encoder.width
    booster = None
    if boost.kind != "none":
        block = None
        if VARIANTS[boost.kind].layer:
            block = LlamaBlock(boost.config, depth=boost.depth, dtype=dtype, rngs=rngs)
            if not boost.trainable:
                freeze(block)
        booster = Boost(
            boost.kind,
            width=width,
            block_width=boost.config.width,
            block=block,
            rope=boost.rope,
            causal=boost.causal,
            path=boost.path,
            init=boost.init,
            dtype=dtype,
            rngs=rngs,
        )
    norm = None
    if spec.head_eps is not None:
        norm = layer_norm(width, eps=given.get("eps", spec.head_eps), dtype=dtype, rngs=rngs)
    if frozen:
        freeze(encoder)
        if norm is not None:
            freeze(norm)
    init = vit_init if spec.encoder is ViT else torch_init
    head = linear(width, classes, init=init, dtype=jnp.float32, rngs=rngs)
    return Classifier(encoder, booster, head_norm=norm, head=head, mean=mean, std=std)
