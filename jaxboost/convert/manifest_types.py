"""The types of the entries of manifest.json, with bounds.

`manifests` imports this module late, because importing pydantic takes a tenth of a second.

The bounds are far above every published model, and low enough that no single entry takes all memory or time.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

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


class _Closed(BaseModel, extra="forbid"):
    """Refuses unknown entries: another version wrote them, or they are mistyped."""


class Llama(_Closed):
    """See `models.llama.LlamaConfig`."""

    width: _Width
    heads: _Heads
    kv_heads: _Heads
    head_dim: _Width
    mlp_width: _MlpWidth
    eps: _Eps
    rope_base: _Factor
    rope_factors: Annotated[list[_Factor], Field(max_length=1 << 15)] | None
    rope_unsupported: _Text | None = None

    def model_post_init(self, context: Any) -> None:
        """Checks that the fields fit together."""
        del context
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} key/value heads")
        if self.head_dim % 2:
            raise ValueError(f"the head width {self.head_dim} is odd")
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ValueError(f"{len(self.rope_factors)} rotary factors for a head width of {self.head_dim}")


class Vit(_Closed):
    """The arguments of `models.vit.ViT` that depend on the weights."""

    patch: Annotated[int, Field(ge=1, le=1024)]
    width: _Width
    depth: _Depth
    heads: _Heads
    mlp_width: _MlpWidth
    eps: _Eps
    activation: Literal["gelu", "quick_gelu"]
    patch_bias: bool
    pre_norm: bool
    layer_scale: bool
    registers: Annotated[int, Field(ge=1, le=1024)] | None = None

    def model_post_init(self, context: Any) -> None:
        """Checks that the fields fit together."""
        del context
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of {self.heads} heads")


class _Manifest(_Closed):
    format_version: int
    source: _Text
    source_format: _Text
    dtype: Literal["float32", "bfloat16"]
    sha256: _Digests
    jaxboost_version: _Text


class Block(_Manifest):
    """See `manifests.Manifest`."""

    kind: Literal["llama"]
    layers: Annotated[list[_Layer], Field(min_length=1, max_length=1024)]
    layers_in_source: _Depth
    final_norm: bool
    config: Llama

    def model_post_init(self, context: Any) -> None:
        """Checks that the fields fit together."""
        del context
        if len(set(self.layers)) != len(self.layers) or max(self.layers) >= self.layers_in_source:
            raise ValueError(f"layers named twice, or above the {self.layers_in_source} of the source")
        if set(self.sha256) != {*map(str, self.layers), *["final_norm"] * self.final_norm}:
            raise ValueError("sha256 does not name the layers and the norm that are there")


class Encoder(_Manifest):
    """See `manifests.EncoderManifest`."""

    kind: Literal["vision"]
    arguments: Vit
    image_size: _Pixels
    resizing: Literal["bicubic", "antialiased"] = "bicubic"

    def model_post_init(self, context: Any) -> None:
        """Checks that the fields fit together."""
        del context
        if self.image_size < self.arguments.patch:
            raise ValueError(f"images of {self.image_size} pixels are smaller than a patch")
        if set(self.sha256) != {"embedding", *map(str, range(self.arguments.depth)), "norm"}:
            raise ValueError("sha256 does not name the embedding, the blocks and the norm that are there")
