"""The entries of manifest.json, with bounds.

The bounds are far above every published model, and low enough that no single entry takes all memory or time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema

from jaxboost.convert.tables.parts import (
    CLASSES,
    EMBEDDING,
    FINAL_NORM,
    LLAMA,
    NORM,
    POOL,
    PROMPTS,
    TEXT,
    TEXT_WEIGHTS,
    VISION,
)
from jaxboost.models.llama import LlamaConfig

# 1, of earlier versions, had Orbax checkpoints instead of safetensors files.
FORMAT_VERSION = 2
# Most classes of a text encoder, and most prompts of a class.
MAX_CLASSES, MAX_PROMPTS = 10_000, 1000
# Unknown entries are refused: another version wrote them, or they are mistyped.
_CLOSED = ConfigDict(extra="forbid")

_Width = Annotated[int, Field(ge=1, le=1 << 16)]
_MlpWidth = Annotated[int, Field(ge=1, le=1 << 20)]
_Heads = Annotated[int, Field(ge=1, le=1 << 12)]
_Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
_Depth = Annotated[int, Field(ge=1, le=1024)]
_Layer = Annotated[int, Field(ge=0, lt=1024)]
_Eps = Annotated[float, Field(gt=0, le=1)]
_Factor = Annotated[float, Field(ge=1e-30, le=1e30)]
_Text = Annotated[str, Field(min_length=1, max_length=1024)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Digests = Annotated[dict[Annotated[str, Field(max_length=16)], _Digest], Field(max_length=1026)]
_Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama:
    """The fields of `models.llama.LlamaConfig`."""

    __pydantic_config__ = _CLOSED

    width: _Width
    heads: _Heads
    kv_heads: _Heads
    head_dim: _Width
    mlp_width: _MlpWidth
    eps: _Eps
    rope_base: _Factor
    rope_factors: Annotated[tuple[_Factor, ...], Field(max_length=1 << 15)] | None
    rope_unsupported: _Text | None = None
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
    score_cap: _Factor | None = None
    query_scale: _Factor | None = None
    rotary: bool = True
    window: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    local_layers: Annotated[tuple[_Layer, ...], Field(max_length=1024)] = ()
    local_rope_base: _Factor | None = None

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} key/value heads")
        if bool(self.local_layers) != (self.local_rope_base is not None):
            raise ValueError("local_layers and local_rope_base do not go together")
        if self.head_dim % 2:
            raise ValueError(f"the head width {self.head_dim} is odd")
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ValueError(f"{len(self.rope_factors)} rotary factors for a head width of {self.head_dim}")


def _as_config(fields: Llama) -> LlamaConfig:
    return LlamaConfig(**dataclasses.asdict(fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vit:
    """The arguments of `models.vit.ViT`, or of `models.pooled_vit.PooledViT`, that depend on the weights."""

    __pydantic_config__ = _CLOSED

    patch: Annotated[int, Field(ge=1, le=1024)]
    width: _Width
    depth: _Depth
    heads: _Heads
    mlp_width: _MlpWidth
    eps: _Eps
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"]
    patch_bias: bool
    pre_norm: bool
    layer_scale: bool
    registers: Annotated[int, Field(ge=1, le=1024)] | None = None
    rope: _Factor | None = None
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
class Text:
    """The arguments of `models.text.TextEncoder` that depend on the weights."""

    __pydantic_config__ = _CLOSED

    context: Annotated[int, Field(ge=1, le=1 << 16)]
    width: _Width
    depth: _Depth
    heads: _Heads
    mlp_width: _MlpWidth
    eps: _Eps
    activation: Literal["gelu", "quick_gelu"]
    embedding_width: _Width

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of {self.heads} heads")


def _as_arguments(fields: Vit | Text) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(fields).items() if value is not None}


def _read_as(kind: Any) -> GetPydanticSchema:
    """Annotates a field that is validated as another type."""
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(kind))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a block holds.

    Attributes:
      format_version: version of this format.
      kind: LLAMA.
      source: where the weights come from: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, meta, gguf or hub.
      layers: numbers of the layers, in the order in which they are used.
      layers_in_source: how many layers the source has.
      final_norm: whether the norm after the source's last layer is there too.
      dtype: float32 or bfloat16.
      config: shape and constants of the layers.
      sha256: fingerprint of each layer (key: its number) and of the final norm (key: "final_norm").
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = _CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["llama"] = LLAMA
    source: _Text
    source_format: _Text
    layers: Annotated[tuple[_Layer, ...], Field(min_length=1, max_length=1024)]
    layers_in_source: _Depth
    final_norm: bool
    dtype: _Dtype
    config: Annotated[LlamaConfig, _read_as(Annotated[Llama, AfterValidator(_as_config)])]
    sha256: _Digests
    jaxboost_version: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderManifest:
    """What a converted vision encoder holds.

    Attributes:
      format_version: version of this format.
      kind: VISION.
      source: where the weights come from: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, onnx or hub.
      dtype: float32 or bfloat16.
      arguments: of `models.vit.ViT`, all that depend on the weights; "registers", "rope" and "key_bias" only where they
        differ from the defaults, and "pooling" only for a `models.pooled_vit.PooledViT`.
      image_size: side of the images that the stored positions are for, in pixels.
      resizing: how positions are resized to other image sizes, one of `positions.RESIZINGS`.
      sha256: fingerprint of each part: "embedding", the number of each block, "norm", the final LayerNorm, and "pool"
        of a PooledViT.
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = _CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["vision"] = VISION
    source: _Text
    source_format: _Text
    dtype: _Dtype
    arguments: Annotated[Mapping[str, Any], _read_as(Annotated[Vit, AfterValidator(_as_arguments)])]
    image_size: _Pixels
    resizing: Literal["bicubic", "antialiased"] = "bicubic"
    sha256: _Digests
    jaxboost_version: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassText:
    """What is said of one class.

    Attributes:
      name: of the class, as the data set has it.
      prompts: the texts whose embeddings are averaged.
      called: what CoOp puts behind its context, without the full stop.
      end: place of the token that ends this text, without a context; the first token has the place 0.
    """

    __pydantic_config__ = _CLOSED

    name: _Text
    prompts: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
    called: _Text
    end: Annotated[int, Field(ge=1, le=1 << 16)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextManifest:
    """What a converted text encoder of CLIP holds.

    Attributes:
      format_version: version of this format.
      kind: TEXT.
      source: where the weights come from: the name of a folder, or id@commit on the hub.
      source_format: safetensors, torch or hub.
      dtype: float32.
      arguments: of `models.text.TextEncoder`, all that depend on the weights.
      classes: in the order of the rows of the part "classes".
      vision_width: V, width of the vision encoder of the same checkpoint.
      vision_norm: dtype -> fingerprint of the part "norm" of that vision encoder, converted to this dtype: it shows
        whether a converted vision encoder is of the same checkpoint.
      sha256: fingerprint of each part: "classes", "prompts", "text", and the number of each block.
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = _CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["text"] = TEXT
    source: _Text
    source_format: _Text
    dtype: Literal["float32"] = "float32"
    arguments: Annotated[Mapping[str, Any], _read_as(Annotated[Text, AfterValidator(_as_arguments)])]
    classes: Annotated[tuple[ClassText, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    vision_width: _Width
    vision_norm: dict[_Dtype, _Digest]
    sha256: _Digests
    jaxboost_version: _Text

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(each.name for each in self.classes)


def _whole_block(manifest: Manifest) -> Manifest:
    """Raises ValueError if the entries do not fit together."""
    if len(set(manifest.layers)) != len(manifest.layers) or max(manifest.layers) >= manifest.layers_in_source:
        raise ValueError(f"layers named twice, or above the {manifest.layers_in_source} of the source")
    if set(manifest.sha256) != {*map(str, manifest.layers), *[FINAL_NORM] * manifest.final_norm}:
        raise ValueError("sha256 does not name the layers and the norm that are there")
    return manifest


def _whole_encoder(manifest: EncoderManifest) -> EncoderManifest:
    """Raises ValueError if the entries do not fit together."""
    if manifest.image_size < manifest.arguments["patch"]:
        raise ValueError(f"images of {manifest.image_size} pixels are smaller than a patch")
    pool = [POOL] * ("pooling" in manifest.arguments)
    if set(manifest.sha256) != {EMBEDDING, *map(str, range(manifest.arguments["depth"])), NORM, *pool}:
        raise ValueError("sha256 does not name the embedding, the blocks, the norm and the pooling that are there")
    return manifest


def _whole_text(manifest: TextManifest) -> TextManifest:
    """Raises ValueError if the entries do not fit together."""
    if len(set(manifest.names)) != len(manifest.names):
        raise ValueError("a class is named twice")
    if any(each.end >= manifest.arguments["context"] for each in manifest.classes):
        raise ValueError(f"a class name has more than {manifest.arguments['context']} tokens")
    if set(manifest.sha256) != {CLASSES, PROMPTS, TEXT_WEIGHTS, *map(str, range(manifest.arguments["depth"]))}:
        raise ValueError("sha256 does not name the parts that are there")
    return manifest


# Kind of folder -> the type of its manifest, with all checks.
CHECKED: dict[str, Any] = {
    LLAMA: Annotated[Manifest, AfterValidator(_whole_block)],
    VISION: Annotated[EncoderManifest, AfterValidator(_whole_encoder)],
    TEXT: Annotated[TextManifest, AfterValidator(_whole_text)],
}
