"""The arguments of models as manifests record them, with bounds.

The bounds are far above every published model, and low enough that no single entry takes all memory or time.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

# Unknown entries are refused: another version wrote them, or they are mistyped.
CLOSED = ConfigDict(extra="forbid")

Width = Annotated[int, Field(ge=1, le=1 << 16)]
MlpWidth = Annotated[int, Field(ge=1, le=1 << 20)]
Heads = Annotated[int, Field(ge=1, le=1 << 12)]
Depth = Annotated[int, Field(ge=1, le=1024)]
Depths = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)]
Layer = Annotated[int, Field(ge=0, lt=1024)]
Eps = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(ge=1e-30, le=1e30)]
RopeFactors = Annotated[tuple[Factor, ...], Field(max_length=1 << 15)]
Name = Annotated[str, Field(min_length=1, max_length=1024)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama:
    """The fields of `models.llama.LlamaConfig`."""

    __pydantic_config__ = CLOSED

    width: Width
    heads: Heads
    kv_heads: Heads
    head_dim: Width
    mlp_width: MlpWidth
    eps: Eps
    rope_base: Factor
    rope_factors: RopeFactors | None
    rope_unsupported: Name | None = None
    # What is LLaMA's is left out.
    norm: Literal["rms", "layer"] = "rms"
    offset_norms: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    activation: Literal["silu", "gelu_tanh", "gelu", "relu"] = "silu"
    gated: bool = True
    score_cap: Factor | None = None
    query_scale: Factor | None = None
    rotary: bool = True
    window: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    local_layers: Annotated[tuple[Layer, ...], Field(max_length=1024)] = ()
    local_rope_base: Factor | None = None
    local_rope_factors: RopeFactors | None = None
    rope_magnitude: Factor = 1.0
    rope_limit: Annotated[int, Field(ge=1, le=1 << 24)] | None = None

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} key/value heads")
        if bool(self.local_layers) != (self.local_rope_base is not None):
            raise ValueError("local_layers and local_rope_base do not go together")
        if self.head_dim % 2:
            raise ValueError(f"the head width {self.head_dim} is odd")
        for factors in (self.rope_factors, self.local_rope_factors):
            if factors is not None and len(factors) != self.head_dim // 2:
                raise ValueError(f"{len(factors)} rotary factors for a head width of {self.head_dim}")
        if self.local_rope_factors is not None and not self.local_layers:
            raise ValueError("local_rope_factors without local_layers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vit:
    """The arguments of `models.vit.ViT`, or of `models.pooled_vit.PooledViT`, that depend on the weights."""

    __pydantic_config__ = CLOSED

    patch: Annotated[int, Field(ge=1, le=1024)]
    width: Width
    depth: Depth
    heads: Heads
    mlp_width: MlpWidth
    eps: Eps
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"]
    patch_bias: bool
    pre_norm: bool
    layer_scale: bool
    registers: Annotated[int, Field(ge=1, le=1024)] | None = None
    rope: Factor | None = None
    key_bias: Literal[False] | None = None
    pooling: Literal["map"] | None = None

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of {self.heads} heads")
        if self.pooling and (self.registers or self.rope or self.key_bias is False):
            raise ValueError("a pooling does not go together with registers, rotary positions or keys without bias")
        if self.rope and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4, not {self.width // self.heads}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet:
    """The arguments of `models.resnet.ResNet` that depend on the weights."""

    __pydantic_config__ = CLOSED

    block: Literal["basic", "bottleneck"]
    depths: Depths
    base_width: Width
    stem: Literal["large"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InflatedResNet:
    """The arguments of `models.inflated_resnet.InflatedResNet` that depend on the weights."""

    __pydantic_config__ = CLOSED

    depths: Depths
    base_width: Width


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXt:
    """The arguments of `models.convnext.ConvNeXt` that depend on the weights."""

    __pydantic_config__ = CLOSED

    depths: Depths
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]
    eps: Eps
    layer_scale: bool
    response_norm: bool

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swin:
    """The arguments of `models.swin.Swin` that depend on the weights."""

    __pydantic_config__ = CLOSED

    patch: Annotated[int, Field(ge=1, le=1024)]
    width: Width
    depths: Depths
    heads: Annotated[tuple[Heads, ...], Field(min_length=1, max_length=8)]
    window: Annotated[int, Field(ge=1, le=64)]
    eps: Eps

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if len(self.depths) != len(self.heads):
            raise ValueError(f"{len(self.depths)} depths for {len(self.heads)} numbers of heads")
        if any((self.width << stage) % heads for stage, heads in enumerate(self.heads)):
            raise ValueError(f"a stage's width, {self.width} and its doubles, is not a multiple of its heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNet:
    """The arguments of `models.efficientnet.EfficientNetLite` that depend on the weights."""

    __pydantic_config__ = CLOSED

    depths: Annotated[Depths, Field(min_length=7, max_length=7)]
    widths: Annotated[tuple[Width, ...], Field(min_length=7, max_length=7)]
    eps: Eps
    padding: Literal["same", "symmetric"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """The arguments of `models.text.TextEncoder` that depend on the weights."""

    __pydantic_config__ = CLOSED

    context: Annotated[int, Field(ge=1, le=1 << 16)]
    width: Width
    depth: Depth
    heads: Heads
    mlp_width: MlpWidth
    eps: Eps
    activation: Literal["gelu", "quick_gelu"]
    embedding_width: Width

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of {self.heads} heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormer:
    """The arguments of `models.qformer.QFormer` that depend on the weights."""

    __pydantic_config__ = CLOSED

    queries: Annotated[int, Field(ge=1, le=1 << 12)]
    width: Width
    depth: Depth
    heads: Heads
    mlp_width: MlpWidth
    eps: Eps
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"]
    cross_every: Depth
    context_width: Width
    output_width: Width

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of {self.heads} heads")


# Family of encoders -> its arguments.
ARGUMENTS: dict[str, Any] = {
    "vit": Vit,
    "resnet": ResNet,
    "convnext": ConvNeXt,
    "swin": Swin,
    "efficientnet": EfficientNet,
    "inflated_resnet": InflatedResNet,
}
