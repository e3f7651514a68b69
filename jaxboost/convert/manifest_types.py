"""The entries of manifest.json, with bounds."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetPydanticSchema, TypeAdapter, ValidationInfo

from jaxboost.convert import argument_types
from jaxboost.convert.argument_types import CLOSED, Depth, Layer, Name, Width
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import (
    CLASSES,
    FINAL_NORM,
    LLAMA,
    PROMPTS,
    QFORMER,
    QUESTION,
    TEXT,
    TEXT_WEIGHTS,
    VISION,
)
from jaxboost.models.llama import LlamaConfig

# 1, of earlier versions, had Orbax checkpoints instead of safetensors files.
FORMAT_VERSION = 2
# Most classes of a text encoder, and most prompts of a class.
MAX_CLASSES, MAX_PROMPTS = 10_000, 1000
# Most tokens of a question, and most characters.
MAX_TOKENS, MAX_CHARACTERS = 2048, 16_384

_Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Digests = Annotated[dict[Annotated[str, Field(max_length=16)], _Digest], Field(max_length=1026)]
_Channels = Annotated[tuple[Annotated[float, Field(ge=0, le=1e30)], ...], Field(min_length=3, max_length=3)]
_Dtype = Literal["float32", "bfloat16"]
_Token = Annotated[int, Field(ge=0, lt=1 << 24)]


def _as_config(fields: argument_types.Llama) -> LlamaConfig:
    return LlamaConfig(**dataclasses.asdict(fields))


def _as_arguments(fields: Mapping[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """The arguments of an encoder, checked as its family has them; absent ones are left out."""
    kind = argument_types.ARGUMENTS[info.data.get("family", "vit")]
    checked = _adapter(kind).validate_json(json.dumps(fields), strict=True)
    return _present(checked)


def _present(fields: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(fields).items() if value is not None}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


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
      adapter: see `merging.identity`; None: none was merged, or an earlier version merged it, which `source` shows.
      config: shape and constants of the layers.
      sha256: fingerprint of each layer (key: its number) and of the final norm (key: "final_norm").
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["llama"] = LLAMA
    source: Name
    source_format: Name
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=1024)]
    layers_in_source: Depth
    final_norm: bool
    dtype: _Dtype
    adapter: Name | None = None
    config: Annotated[LlamaConfig, _read_as(Annotated[argument_types.Llama, AfterValidator(_as_config)])]
    sha256: _Digests
    jaxboost_version: Name


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderManifest:
    """What a converted vision encoder holds.

    Attributes:
      format_version: version of this format.
      kind: VISION.
      source: where the weights come from: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, onnx or hub.
      dtype: float32 or bfloat16.
      family: `Traits.names` of the encoder; folders of earlier versions, which have no such entry, are ViTs.
      arguments: of the encoder, all that depend on the weights; a ViT's "registers", "rope" and "key_bias" only where
        they differ from the defaults, and "pooling" only for a `models.pooled_vit.PooledViT`.
      image_size: side of the images that the stored positions are for, or that the source was trained with, in pixels.
      resizing: how positions are resized to other image sizes, one of `positions.RESIZINGS`.
      pixel_mean, pixel_std: the source was trained with (pixel - mean) / std of pixels in [0, 1], by channel; None: its
        files do not say it.
      sha256: fingerprint of each part. A ViT has "embedding", the number of each block, "norm", the final LayerNorm,
        and "pool" if it is a PooledViT; another encoder has "encoder", and "norm" if there is one after it.
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["vision"] = VISION
    source: Name
    source_format: Name
    dtype: _Dtype
    family: Literal["vit", "resnet", "convnext", "swin", "efficientnet", "inflated_resnet"] = "vit"
    arguments: Annotated[Mapping[str, Any], _read_as(Annotated[dict[str, Any], AfterValidator(_as_arguments)])]
    image_size: _Pixels
    resizing: Literal["bicubic", "antialiased"] = "bicubic"
    pixel_mean: _Channels | None = None
    pixel_std: _Channels | None = None
    sha256: _Digests
    jaxboost_version: Name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassText:
    """What is said of one class.

    Attributes:
      name: of the class, as the data set has it.
      prompts: the texts whose embeddings are averaged.
      called: what CoOp puts behind its context, without the full stop.
      end: place of the token that ends this text, without a context; the first token has the place 0.
    """

    __pydantic_config__ = CLOSED

    name: Name
    prompts: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
    called: Name
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

    __pydantic_config__ = CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["text"] = TEXT
    source: Name
    source_format: Name
    dtype: Literal["float32"] = "float32"
    arguments: Annotated[Mapping[str, Any], _read_as(Annotated[argument_types.TextEncoder, AfterValidator(_present)])]
    classes: Annotated[tuple[ClassText, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    vision_width: Width
    vision_norm: dict[_Dtype, _Digest]
    sha256: _Digests
    jaxboost_version: Name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(each.name for each in self.classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What stands for one class.

    Attributes:
      text: of the answer.
      token: number of its first token, whose score is the class's.
    """

    __pydantic_config__ = CLOSED

    text: Name
    token: _Token


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionManifest:
    """What a converted question holds.

    Attributes:
      format_version: version of this format.
      kind: QUESTION.
      source: the LLM whose rows these are: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, gguf or hub.
      dtype: float32.
      question: the text, with `question_text.PLACE` where the image is, if the user named its place.
      tokens: numbers of the question's tokens, T, with the token that begins a text if the LLM has one.
      place: number of tokens before the image.
      answers: one for each class, C, in the order of the labels.
      width: D, of the LLM.
      positions: number of its learned positions; 0: it has none.
      cap: the LLM's soft cap of scores: s becomes cap tanh(s / cap); None: it has none.
      norm: dtype -> fingerprint of the part "final_norm" of the LLM's block, converted to this dtype: it shows whether
        a block is of the same checkpoint.
      sha256: fingerprint of the part "question".
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["question"] = QUESTION
    source: Name
    source_format: Name
    dtype: Literal["float32"] = "float32"
    question: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    tokens: Annotated[tuple[_Token, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    place: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    answers: Annotated[tuple[Answer, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    width: Width
    positions: Annotated[int, Field(ge=0, le=1 << 17)] = 0
    cap: argument_types.Factor | None = None
    norm: dict[_Dtype, _Digest]
    sha256: _Digests
    jaxboost_version: Name


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerManifest:
    """What a converted Q-Former of BLIP-2 holds.

    Attributes:
      format_version: version of this format.
      kind: QFORMER.
      source: where the weights come from: the name of a folder, or id@commit on the hub.
      source_format: safetensors, torch or hub.
      dtype: float32, because the weights are trained.
      arguments: of `models.qformer.QFormer`, all that depend on the weights.
      norms: "encoder" and "block" -> dtype -> fingerprint of the final norm of that part of the same checkpoint,
        converted to this dtype: it shows whether a converted encoder or block is of the same checkpoint.
      sha256: fingerprint of the only part, "qformer".
      jaxboost_version: version that converted.
    """

    __pydantic_config__ = CLOSED

    format_version: int = FORMAT_VERSION
    kind: Literal["qformer"] = QFORMER
    source: Name
    source_format: Name
    dtype: Literal["float32"] = "float32"
    arguments: Annotated[Mapping[str, Any], _read_as(Annotated[argument_types.QFormer, AfterValidator(_present)])]
    norms: dict[Literal["encoder", "block"], dict[_Dtype, _Digest]]
    sha256: _Digests
    jaxboost_version: Name


def _whole_block(manifest: Manifest) -> Manifest:
    """Raises ValueError if the entries do not fit together."""
    if len(set(manifest.layers)) != len(manifest.layers) or max(manifest.layers) >= manifest.layers_in_source:
        raise ValueError(f"layers named twice, or above the {manifest.layers_in_source} of the source")
    if set(manifest.sha256) != {*map(str, manifest.layers), *[FINAL_NORM] * manifest.final_norm}:
        raise ValueError("sha256 does not name the layers and the norm that are there")
    return manifest


def _whole_encoder(manifest: EncoderManifest) -> EncoderManifest:
    """Raises ValueError if the entries do not fit together."""
    if manifest.image_size < manifest.arguments.get("patch", 1):
        raise ValueError(f"images of {manifest.image_size} pixels are smaller than a patch")
    if set(manifest.sha256) != set(shapes.keys_of(manifest.family, manifest.arguments)):
        raise ValueError("sha256 does not name the parts that are there")
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


def _whole_question(manifest: QuestionManifest) -> QuestionManifest:
    """Raises ValueError if the entries do not fit together."""
    if manifest.place > len(manifest.tokens):
        raise ValueError(f"place {manifest.place} is behind the {len(manifest.tokens)} tokens")
    if len({each.token for each in manifest.answers}) != len(manifest.answers):
        raise ValueError("two answers have the same first token")
    if set(manifest.sha256) != {QUESTION}:
        raise ValueError("sha256 does not name the part that is there")
    return manifest


def _whole_qformer(manifest: QFormerManifest) -> QFormerManifest:
    """Raises ValueError if the entries do not fit together."""
    if set(manifest.sha256) != {QFORMER}:
        raise ValueError("sha256 does not name the part that is there")
    return manifest


# Kind of folder -> the type of its manifest, with all checks.
CHECKED: dict[str, Any] = {
    LLAMA: Annotated[Manifest, AfterValidator(_whole_block)],
    VISION: Annotated[EncoderManifest, AfterValidator(_whole_encoder)],
    TEXT: Annotated[TextManifest, AfterValidator(_whole_text)],
    QUESTION: Annotated[QuestionManifest, AfterValidator(_whole_question)],
    QFORMER: Annotated[QFormerManifest, AfterValidator(_whole_qformer)],
}
