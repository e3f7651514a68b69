"""LLM layers in GGUF files: their metadata -> `models.families.LlamaConfig`, and their names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxboost.convert.formats.gguf_file import GgufTensors
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.tables import llama, llama_names, llm_families, rope
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.llama_configs import checked, with_biases
from jaxboost.convert.tables.llama_names import Layout
from jaxboost.errors import UserError
from jaxboost.models.families import LAYER_NORM, LlamaConfig

_ROPE_FACTORS = "rope_freqs.weight"
_SHORT_FACTORS, _LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """How the GGUF files of an architecture are read.

    Attributes:
      layout: names of their tensors.
      fields: what the layers have that LLaMA's have not.
      period: all layers but each `period`-th have the sliding window; 0: all have it.
      local_base: default base of the rotary embedding of the layers with a window; None: that of the others.
      largest: number of layers of the one size whose query scale is 1 / sqrt(D / H), not 1 / sqrt(K); no file says it.
    """

    layout: Layout = llama_names.GGUF_PLAIN
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    period: int = 0
    local_base: float | None = None
    largest: int | None = None


_GEMMA = dict(offset_norms=True, activation="gelu_tanh")
# Architecture of a GGUF file -> how it is read.
_FAMILIES = {
    "llama": _Family(layout=llama.GGUF),
    "qwen2": _Family(fields={"qkv_bias": True}),
    "qwen3": _Family(layout=llama_names.GGUF_QWEN3, fields={"qk_norm": True}),
    "phi3": _Family(layout=llama_names.GGUF_PHI3),
    "gemma": _Family(layout=llama_names.GGUF_GEMMA, fields=_GEMMA),
    "gemma2": _Family(layout=llama_names.GGUF_GEMMA2, fields=_GEMMA | dict(post_norms=True), period=2, largest=46),
    "gemma3": _Family(
        layout=llama_names.GGUF_GEMMA3,
        fields=_GEMMA | dict(post_norms=True, qk_norm=True),
        period=6,
        local_base=1e4,
        largest=62,
    ),
    "gpt2": _Family(layout=llama_names.GGUF_GPT2, fields=llm_families.OLDER | dict(activation="gelu_tanh")),
}


def of_gguf(tensors: GgufTensors) -> LlamaSource:
    """The layers in a GGUF file.

    Raises:
      UserError: the model is not of a family that is read as GGUF file, or its metadata is incomplete.
    """
    settings, name = tensors.settings, tensors.architecture
    if name not in _FAMILIES:
        raise UserError(
            f"{settings.where} is a {name!r:.60} checkpoint, not of a family that is read as GGUF file"
            f" ({', '.join(_FAMILIES)}): choose another file"
        )
    family = _FAMILIES[name]
    n_layers = settings.integer(f"{name}.block_count", limit=MAX_LAYERS)
    config = checked(_config(tensors, family, n_layers), settings.where)
    sliding = _sliding_layers(settings, name, family, n_layers) if config.window else frozenset()
    return LlamaSource(
        tensors=tensors,
        layout=with_biases(family.layout, config),
        config=config,
        n_layers=n_layers,
        sliding=sliding,
        sliding_rotation=_local_rotation(settings, name, family),
    )


def _sliding_layers(settings: Settings, name: str, family: _Family, n_layers: int) -> frozenset[int]:
    """Numbers of the layers with the sliding window: a list of them, or a period."""
    key = f"{name}.attention.sliding_window_pattern"
    listed = settings.get(key)
    if isinstance(listed, list):
        if len(listed) != n_layers:
            raise UserError(f"{settings.where}: {key!r} has {len(listed)} entries for {n_layers} layers")
        return frozenset(layer for layer, slides in enumerate(listed) if slides)
    period = settings.count(key, family.period, limit=MAX_LAYERS) if family.period else 0
    return frozenset(layer for layer in range(n_layers) if not period or (layer + 1) % period)


def _local_rotation(settings: Settings, name: str, family: _Family) -> dict[str, Any]:
    """See `LlamaSource.sliding_rotation`. The scaling is that of the other layers alone."""
    if family.local_base is None:
        return {}
    base = settings.number(f"{name}.rope.freq_base_swa", family.local_base)
    return {"rope_base": base, "rope_factors": None, "rope_unsupported": None}


def _config(tensors: GgufTensors, family: _Family, n_layers: int) -> LlamaConfig:
    settings, name = tensors.settings, tensors.architecture
    width, heads = settings.integer(f"{name}.embedding_length"), settings.integer(f"{name}.attention.head_count")
    head_dim = settings.integer(f"{name}.attention.key_length", max(1, width // heads))
    key = f"{name}.attention.value_length"
    if settings.integer(key, head_dim) != head_dim:
        raise UserError(f"{settings.where}: {key!r} is not the head width {head_dim}: these layers are not supported")
    fields: dict[str, Any] = {**family.fields}
    if n_layers == family.largest and width // heads != head_dim:
        fields["query_scale"] = (width // heads) ** -0.5
    if name == "gemma2":
        fields["score_cap"] = settings.number(f"{name}.attn_logit_softcapping", 50.0)
    norm = "layer_norm_epsilon" if fields.get("norm") == LAYER_NORM else "layer_norm_rms_epsilon"
    default_window = 4096 if name == "gemma2" else 0
    return LlamaConfig(
        width=width,
        heads=heads,
        kv_heads=settings.integer(f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_width=settings.integer(f"{name}.feed_forward_length"),
        eps=settings.number(f"{name}.attention.{norm}"),
        window=settings.count(f"{name}.attention.sliding_window", default_window, limit=1 << 24) or None,
        **_rotation(tensors, head_dim),
        **fields,
    )


def _rotation(tensors: GgufTensors, head_dim: int) -> dict[str, Any]:
    settings, name = tensors.settings, tensors.architecture
    base = settings.number(f"{name}.rope.freq_base", 10000.0)
    rotated = settings.integer(f"{name}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        return {"rope_base": base, **rope.partial(f"{rotated} of {head_dim}")}
    rotation = rope.fields(_scaling(tensors), head_dim=head_dim, rope_base=base)
    if _ROPE_FACTORS in tensors.names and rotation["rope_unsupported"] is None:
        # llama.cpp divides by both.
        linear = (rotation["rope_factors"] or (1.0,))[0]
        factors = tuple(linear * float(factor) for factor in tensors.read(_ROPE_FACTORS).reshape(-1))
        rotation = {"rope_factors": factors, "rope_unsupported": None}
    return {"rope_base": base, **rotation}


def _scaling(tensors: GgufTensors) -> Settings:
    """The scaling of a GGUF file under Hugging Face's names, as llama.cpp reads it.

    Without a type, a factor other than 0 and 1 is linear. Files of 2023 have another key for the factor.
    """
    settings, name = tensors.settings, tensors.architecture
    kind, factor = settings.get(f"{name}.rope.scaling.type"), settings.get(f"{name}.rope.scaling.factor")
    if kind == "longrope" or not {_SHORT_FACTORS, _LONG_FACTORS}.isdisjoint(tensors.names):
        short = tensors.read(_SHORT_FACTORS) if _SHORT_FACTORS in tensors.names else None
        values = {
            "rope_type": "longrope",
            "short_factor": None if short is None else short.reshape(-1).astype(float).tolist(),
            "attention_factor": settings.number(f"{name}.rope.scaling.attn_factor", 1.0),
            "max_position_embeddings": settings.get(f"{name}.context_length"),
            "original_max_position_embeddings": settings.get(f"{name}.rope.scaling.original_context_length"),
        }
        return Settings(values, settings.where)
    if factor is None:
        factor = settings.get(f"{name}.rope.scale_linear")
    if kind is None and factor not in (None, 0, 1):
        kind = "linear"
    return Settings({"rope_type": None if kind == "none" else kind, "factor": factor}, settings.where)
