"""The table of backbones. A new one is a file with its encoder class (see `encoder.Encoder`) and a row here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxboost.models.convnext import ConvNeXt
from jaxboost.models.efficientnet import EfficientNetLite
from jaxboost.models.encoder import Encoder, Traits
from jaxboost.models.frozen import freeze
from jaxboost.models.inflated_resnet import InflatedResNet
from jaxboost.models.layers import CHANNELS, layer_norm
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.resnet import CONVOLUTIONS, ResNet
from jaxboost.models.swin import Swin
from jaxboost.models.vit import PLAIN, ViT
from jaxboost.models.vit3d import ViT3D
from jaxboost.models.vivit import ViViT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """A row of the table: an encoder, its size, and the norm in front of its head.

    Attributes:
      encoder: class of the encoder.
      ndim: spatial dimensions of its input, 2 or 3.
      arguments: of the encoder's constructor, except the image size.
      head_eps: eps of the LayerNorm before the linear head, None for no norm there.
    """

    encoder: type[Encoder]
    ndim: int
    arguments: dict[str, Any]
    head_eps: float | None

    @property
    def traits(self) -> Traits:
        """The traits of the encoder's class."""
        return self.encoder.traits

    @property
    def recorded_arguments(self) -> dict[str, Any]:
        """The arguments as converted weights record them: with all defaults written out."""
        return {**self.traits.defaults, **self.arguments}

    @property
    def loads_weights(self) -> bool:
        """Whether converted weights can fit this row."""
        chosen = ((self.arguments.get(name), values) for name, values in self.traits.open.items() if values)
        return self.traits.names is not None and all(value is None or value in values for value, values in chosen)

    def differing(self, arguments: Mapping[str, Any]) -> list[str]:
        """The differences between the arguments that converted weights record and those of this row, in words."""
        expected, several = self.recorded_arguments, self.traits.open
        found = {name: values[0] for name, values in several.items() if values}
        # JSON has no tuples.
        found |= {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}

        def fits(name: str) -> bool:
            if name in several:
                return not several[name] or {found.get(name), expected.get(name)} <= set(several[name])
            return name in expected and found.get(name) == expected[name]

        return [
            f"{name} {found.get(name)}, not {expected.get(name)}" for name in {**expected, **found} if not fits(name)
        ]

    def build(self, *, image_size: int, dtype: jnp.dtype, rngs: nnx.Rngs, **changes: Any) -> Any:
        """The encoder with random weights.

        Args:
          image_size: side of the (cubic) input, in pixels.
          dtype: of the computation.
          rngs: of the weights.
          **changes: other arguments of the encoder; they take precedence over the row's.
        """
        make: Any = self.encoder
        return make(image_size=image_size, channels=CHANNELS, dtype=dtype, rngs=rngs, **{**self.arguments, **changes})


def _vit(width: int, depth: int, heads: int, patch: int = 16, **published: Any) -> Backbone:
    arguments = dict(patch=patch, width=width, depth=depth, heads=heads, mlp_width=4 * width) | published
    return Backbone(encoder=ViT, ndim=2, arguments=arguments, head_eps=published.get("eps", PLAIN["eps"]))


def _siglip(width: int, depth: int, heads: int, mlp_width: int, patch: int) -> Backbone:
    """SigLIP (Zhai et al. 2023)."""
    shape = dict(patch=patch, width=width, depth=depth, heads=heads, mlp_width=mlp_width)
    # Its final norm stands before the pooling, inside the encoder.
    return Backbone(
        encoder=PooledViT, ndim=2, arguments=shape | dict(activation="gelu_tanh", pooling="map"), head_eps=None
    )


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


def _convnext(depths: tuple[int, ...], width: int, *, version: int) -> Backbone:
    widths = tuple(width * 2**stage for stage in range(len(depths)))
    changes = dict(layer_scale=False, response_norm=True) if version == 2 else {}
    arguments = dict(depths=depths, widths=widths, **changes)
    return Backbone(encoder=ConvNeXt, ndim=2, arguments=arguments, head_eps=1e-6)


def _swin(width: int, third: int) -> Backbone:
    depths, heads = (2, 2, third, 2), tuple(width // 32 * 2**stage for stage in range(4))
    arguments = dict(patch=4, width=width, depths=depths, heads=heads, window=7)
    return Backbone(encoder=Swin, ndim=2, arguments=arguments, head_eps=None)


# Size -> depths and width of the first stage; those up to nano are timm's for version 1, the paper's for version 2.
_CONVNEXTS = {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
}


def _resnet(block: str, *depths: int, convolution: str = "2d") -> Backbone:
    arguments = dict(block=block, depths=depths, convolution=convolution)
    return Backbone(encoder=ResNet, ndim=CONVOLUTIONS[convolution], arguments=arguments, head_eps=None)


# CLIP (Radford et al. 2021).
_CLIP: dict[str, Any] = dict(eps=1e-5, activation="quick_gelu", patch_bias=False, pre_norm=True)
# OpenCLIP's own training (Cherti et al. 2023).
_OPEN_CLIP: dict[str, Any] = _CLIP | dict(activation="gelu")
# DINOv2 (Oquab et al. 2023), with registers (Darcet et al. 2024) or without.
_DINOV2: dict[str, Any] = dict(patch=14, layer_scale=True)
# DINOv3 (Siméoni et al. 2025).
_DINOV3: dict[str, Any] = dict(eps=1e-5, layer_scale=True, registers=4, rope=100.0, key_bias=False)

BACKBONES = {
    "vit_ti16": _vit(width=192, depth=12, heads=3),
    "vit_s": _vit(width=384, depth=12, heads=6),
    "vit_b16": _vit(width=768, depth=12, heads=12),
    "vit_b32": _vit(width=768, depth=12, heads=12, patch=32),
    "vit_l16": _vit(width=1024, depth=24, heads=16),
    "vit_h14": _vit(width=1280, depth=32, heads=16, patch=14),
    "clip_vit_b32": _vit(width=768, depth=12, heads=12, patch=32, **_CLIP),
    "clip_vit_b16": _vit(width=768, depth=12, heads=12, **_CLIP),
    "clip_vit_l14": _vit(width=1024, depth=24, heads=16, patch=14, **_CLIP),
    "openclip_vit_b32": _vit(width=768, depth=12, heads=12, patch=32, **_OPEN_CLIP),
    "openclip_vit_b16": _vit(width=768, depth=12, heads=12, **_OPEN_CLIP),
    "openclip_vit_l14": _vit(width=1024, depth=24, heads=16, patch=14, **_OPEN_CLIP),
    "dinov2_s14": _vit(width=384, depth=12, heads=6, **_DINOV2),
    "dinov2_s14_reg4": _vit(width=384, depth=12, heads=6, registers=4, **_DINOV2),
    "dinov2_b14": _vit(width=768, depth=12, heads=12, **_DINOV2),
    "dinov2_b14_reg4": _vit(width=768, depth=12, heads=12, registers=4, **_DINOV2),
    "dinov2_l14": _vit(width=1024, depth=24, heads=16, **_DINOV2),
    "dinov2_l14_reg4": _vit(width=1024, depth=24, heads=16, registers=4, **_DINOV2),
    "dinov3_s16": _vit(width=384, depth=12, heads=6, **_DINOV3),
    "dinov3_b16": _vit(width=768, depth=12, heads=12, **_DINOV3),
    "dinov3_l16": _vit(width=1024, depth=24, heads=16, **_DINOV3),
    # Of EVA (Fang et al. 2023), as BLIP-2 has it (Li et al. 2023, section 3.3): without the last of its 40 blocks.
    "blip2_vit_g14": _vit(width=1408, depth=39, heads=16, patch=14, mlp_width=6144),
    "siglip_b16": _siglip(width=768, depth=12, heads=12, mlp_width=3072, patch=16),
    "siglip_l16": _siglip(width=1024, depth=24, heads=16, mlp_width=4096, patch=16),
    "siglip_so400m14": _siglip(width=1152, depth=27, heads=16, mlp_width=4304, patch=14),
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
    "resnet152_ct": Backbone(encoder=InflatedResNet, ndim=3, arguments=dict(depths=(3, 8, 36, 3)), head_eps=None),
    **{f"convnext_{size}": _convnext(*shape, version=1) for size, shape in _CONVNEXTS.items()},
    **{f"convnextv2_{size}": _convnext(*shape, version=2) for size, shape in _CONVNEXTS.items()},
    "swin_tiny": _swin(width=96, third=6),
    "swin_small": _swin(width=96, third=18),
    "swin_base": _swin(width=128, third=18),
    "efficientnet_lite0": Backbone(
        encoder=EfficientNetLite,
        ndim=2,
        arguments=dict(depths=(1, 2, 2, 3, 3, 4, 1), widths=(16, 24, 40, 80, 112, 192, 320)),
        head_eps=None,
    ),
    # Not in the paper: small enough for tests and a laptop.
    "vit_tiny": _vit(width=128, depth=2, heads=2, patch=7),
    "vit3d_tiny": _vit3d(width=128, depth=2, heads=2, mlp_width=128, patch=7),
    "vivit_tiny": _vivit(width=128, depth=2, heads=2),
}


def frozen_with_norm(
    backbone: str, arguments: Mapping[str, Any], *, image_size: int, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs
) -> tuple[Encoder, nnx.LayerNorm]:
    """A frozen encoder and the norm before its head, which is frozen too; with random weights.

    Args:
      backbone: a key of BACKBONES with such a norm.
      arguments: of the encoder; they take precedence over the row's. The norm has the same eps.
      image_size, dtype, remat, rngs: see `classifier.build`.

    Raises:
      ValueError: the backbone has no such norm.
    """
    row = BACKBONES[backbone]
    if row.head_eps is None:
        raise ValueError(f"backbone {backbone} has no final norm")
    encoder = freeze(row.build(image_size=image_size, dtype=dtype, remat=remat, rngs=rngs, **arguments))
    norm = layer_norm(encoder.width, eps=arguments.get("eps", row.head_eps), dtype=dtype, rngs=rngs)
    return encoder, freeze(norm)
