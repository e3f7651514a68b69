"""What config.json of each family of LLMs means: keys, defaults, architecture, sliding windows, names of tensors.

Defaults are those of transformers' configuration classes, which config.json may leave out.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables import llama_names, rope
from jaxboost.convert.tables.llama_names import Layout
from jaxboost.errors import UserError
from jaxboost.models.families import LAYER_NORM

_SILU = {"silu": "silu"}
_TANH = dict.fromkeys(("gelu_pytorch_tanh", "gelu_new"), "gelu_tanh")
_ANY = {**_SILU, **_TANH, "gelu": "gelu", "relu": "relu"}


def _nothing(settings: Settings) -> dict[str, Any]:
    del settings
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How the configuration of a model type is read.

    Attributes:
      title: its name in messages.
      layout: names of its tensors.
      architecture: config.json -> fields of `models.families.Architecture`, without `activation` and `window`.
      keys: LLaMA's key in config.json -> the family's.
      defaults: by the family's keys. Without a default a number must be there.
      activations: the family's name of an activation that its layers may have -> ours.
      bases: beginnings of the tensors' names, of which a checkpoint has one.
      optional_window: whether 'use_sliding_window' decides about the window. Other families have no such key.
      period: all layers but each `period`-th have the sliding window, if config.json does not list them; 0: all of
        them have it.
      mlp_ratio: width of the MLP in widths of the stream, if config.json does not give it; None: it must.
      rope_bases: the default base of each kind of layers, if they rotate differently: `rope.FULL`, `rope.SLIDING`.
      tied: whether the output head is the matrix of the embeddings, if config.json does not say it.
      scaled_embeddings: whether the LLM multiplies its embeddings by the square root of the width.
      score_cap: default cap of the scores of the next token, see `vocabulary.Vocabulary`.
    """

    title: str
    layout: Layout = llama_names.LLAMA
    architecture: Callable[[Settings], dict[str, Any]] = _nothing
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activations: Mapping[str, str] = dataclasses.field(default_factory=lambda: _SILU)
    bases: tuple[str, ...] = ("model.", "")
    optional_window: bool = False
    period: int = 0
    mlp_ratio: int | None = None
    rope_bases: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tied: bool = False
    scaled_embeddings: bool = False
    score_cap: float | None = None

    def key(self, name: str) -> str:
        """The family's key for a key of LLaMA's."""
        return self.keys.get(name, name)

    def default(self, name: str, otherwise: Any = None) -> Any:
        """The default of a key of LLaMA's."""
        return self.defaults.get(self.key(name), otherwise)

    def value(self, settings: Settings, name: str) -> Any:
        """The entry for a key of LLaMA's. A null stays None, which may mean something else than a missing entry."""
        key = self.key(name)
        return settings.get(key) if key in settings.values else self.defaults.get(key)

    def activation(self, settings: Settings) -> str:
        """Our name of the activation. Raises UserError if the family's layers do not have it."""
        found = self.value(settings, "hidden_act") or self.default("hidden_act") or "silu"
        if not isinstance(found, str) or found not in self.activations:
            raise UserError(
                f"{settings.where}: the activation is {found!r:.60}, {self.title} layers have "
                + " or ".join(map(repr, self.activations))
            )
        return self.activations[found]

    def window(self, settings: Settings) -> int | None:
        """Tokens in the sliding window of those layers that have one; None if none has."""
        unused = self.optional_window and not self.value(settings, "use_sliding_window")
        if unused or "sliding_window" not in self.defaults or self.value(settings, "sliding_window") is None:
            return None
        return settings.integer("sliding_window", self.default("sliding_window"), limit=1 << 24)

    def rotation(self, kind: str) -> dict[str, Any]:
        """The arguments of `rope.of_config` for layers of a kind."""
        return {"kind": kind, "base": self.rope_bases[kind]} if self.rope_bases else {}

    def sliding_layers(self, settings: Settings, n_layers: int) -> frozenset[int]:
        """Numbers of the layers with the sliding window, if there is one.

        Raises:
          UserError: 'layer_types' names other kinds of layers, or not one for each layer.
        """
        kinds = settings.get("layer_types") if self._has_kinds else None
        if kinds is not None:
            _check_kinds(kinds, n_layers, settings.where)
            return frozenset(layer for layer, kind in enumerate(kinds) if kind == rope.SLIDING)
        if "max_window_layers" in self.defaults:
            first = settings.count("max_window_layers", self.default("max_window_layers"), limit=1 << 20)
            return frozenset(range(first, n_layers))
        period = settings.integer("sliding_window_pattern", self.period) if self.period else 0
        return frozenset(layer for layer in range(n_layers) if not period or (layer + 1) % period)

    @property
    def _has_kinds(self) -> bool:
        """Whether layers of one model may differ, so that 'layer_types' is read."""
        return bool(self.period) or "max_window_layers" in self.defaults


def _check_kinds(kinds: Any, n_layers: int, where: str) -> None:
    """Raises UserError if `kinds` are not the kinds of `n_layers` layers."""
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        found = len(kinds) if isinstance(kinds, list) else reprlib.repr(kinds)
        raise UserError(f"{where}: 'layer_types' has {found} entries for {n_layers} layers: download the file again")
    for kind in kinds:
        if kind not in (rope.FULL, rope.SLIDING):
            raise UserError(
                f"{where}: 'layer_types' has {reprlib.repr(kind)}, but only {rope.FULL} and {rope.SLIDING} are"
                " supported: choose another checkpoint"
            )


def _llama(settings: Settings) -> dict[str, Any]:
    return {**_attention_bias(settings), "mlp_bias": bool(settings.get("mlp_bias"))}


def _gemma(settings: Settings) -> dict[str, Any]:
    if settings.get("use_bidirectional_attention"):
        raise UserError(
            f"{settings.where}: layers that were trained without a causal mask ('use_bidirectional_attention' is true,"
            " as for EmbeddingGemma) are not supported: choose another checkpoint"
        )
    return {**_attention_bias(settings), "offset_norms": True}


def _attention_bias(settings: Settings) -> dict[str, Any]:
    """Biases of all four maps of the attention, a rarely used option."""
    return dict.fromkeys(("qkv_bias", "o_bias"), bool(settings.get("attention_bias")))


def _qwen2(settings: Settings) -> dict[str, Any]:
    del settings
    return {"qkv_bias": True}


def _qwen3(settings: Settings) -> dict[str, Any]:
    return {**_attention_bias(settings), "qk_norm": True}


def _gemma2(settings: Settings) -> dict[str, Any]:
    return {
        **_gemma(settings),
        "post_norms": True,
        "query_scale": _query_scale(settings),
        "score_cap": _number_or_none(settings, "attn_logit_softcapping", 50.0),
    }


def _gemma3(settings: Settings) -> dict[str, Any]:
    if settings.get("attn_logit_softcapping") is not None:
        raise UserError(
            f"{settings.where}: Gemma 3 has no 'attn_logit_softcapping', but this file does: choose another checkpoint"
        )
    return {
        **_gemma(settings),
        "post_norms": True,
        "qk_norm": True,
        "query_scale": _query_scale(settings),
    }


def _query_scale(settings: Settings) -> float | None:
    """1 / sqrt(query_pre_attn_scalar), None if that number is the head width, as in most sizes."""
    scalar = settings.number("query_pre_attn_scalar", 256.0)
    return None if scalar == settings.integer("head_dim", 256) else scalar**-0.5


def _number_or_none(settings: Settings, key: str, default: float) -> float | None:
    return None if key in settings.values and settings.get(key) is None else settings.number(key, default)


# The architecture of the families before LLaMA.
OLDER: dict[str, Any] = dict(norm=LAYER_NORM, qkv_bias=True, o_bias=True, mlp_bias=True, gated=False, rotary=False)


def _gpt2(settings: Settings) -> dict[str, Any]:
    if settings.get("scale_attn_by_inverse_layer_idx"):
        raise UserError(
            f"{settings.where}: scores that are scaled by the layer's number ('scale_attn_by_inverse_layer_idx') are"
            " not supported: choose another checkpoint"
        )
    return {**OLDER, "query_scale": None if settings.values.get("scale_attn_weights", True) else 1.0}


def _opt(settings: Settings) -> dict[str, Any]:
    if settings.get("_remove_final_layer_norm"):
        raise UserError(
            f"{settings.where}: an OPT without its final norm ('_remove_final_layer_norm' is true) is not supported:"
            " choose another checkpoint"
        )
    for key, what in (
        ("do_layer_norm_before", "norms behind the residuals (OPT-350M)"),
        ("layer_norm_elementwise_affine", "norms without weights"),
    ):
        if not settings.values.get(key, True):
            raise UserError(f"{settings.where}: {what} ({key!r} is false) are not supported: choose another size")
    return {
        **OLDER,
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), bool(settings.values.get("enable_bias", True))),
    }


_WINDOWED = {"sliding_window": 4096}
_QWEN = {"num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA = {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA2 = dict(
    defaults={**_GEMMA, **_WINDOWED, "num_attention_heads": 8, "num_key_value_heads": 4},
    keys={"hidden_act": "hidden_activation"},
    activations=_TANH,
    tied=True,
    scaled_embeddings=True,
)
FAMILIES = {
    "llama": Family(title="LLaMA", architecture=_llama),
    "mistral": Family(title="Mistral", defaults={"num_key_value_heads": 8, **_WINDOWED}),
    "qwen2": Family(title="Qwen2", architecture=_qwen2, defaults=_QWEN, optional_window=True),
    "qwen3": Family(
        title="Qwen3",
        layout=llama_names.QWEN3,
        architecture=_qwen3,
        defaults={**_QWEN, "head_dim": 128},
        optional_window=True,
    ),
    "phi3": Family(
        title="Phi-3",
        layout=llama_names.PHI3,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": None},
    ),
    "gemma": Family(
        title="Gemma",
        architecture=_gemma,
        defaults={**_GEMMA, "num_attention_heads": 16, "num_key_value_heads": 16},
        # The first files say "gelu", but mean the approximation by tanh.
        activations={**_TANH, "gelu": "gelu_tanh"},
        tied=True,
        scaled_embeddings=True,
    ),
    "gemma2": Family(
        title="Gemma 2", layout=llama_names.GEMMA2, architecture=_gemma2, period=2, score_cap=30.0, **_GEMMA2
    ),
    "gemma3_text": Family(
        title="Gemma 3",
        layout=llama_names.GEMMA3,
        architecture=_gemma3,
        period=6,
        rope_bases={rope.FULL: 1e6, rope.SLIDING: 1e4},
        bases=("model.", "", "language_model.model.", "model.language_model."),
        **_GEMMA2,
    ),
    "gpt2": Family(
        title="GPT-2",
        layout=llama_names.GPT2,
        architecture=_gpt2,
        keys={
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
            "rms_norm_eps": "layer_norm_epsilon",
        },
        defaults={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
        activations=_ANY,
        bases=("transformer.", ""),
        tied=True,
        mlp_ratio=4,
    ),
    "opt": Family(
        title="OPT",
        layout=llama_names.OPT,
        architecture=_opt,
        # The eps is no entry of config.json.
        keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
        defaults={"activation_function": "relu", "rms_norm_eps": 1e-5},
        activations=_ANY,
        bases=("model.decoder.", "decoder.", "", "language_model.model.decoder."),
        tied=True,
    ),
}
# A model with a vision encoder, whose language model has its own section.
_OF_TWO = {"gemma3": ("text_config", "gemma3_text"), "blip-2": ("text_config", "opt")}
MODEL_TYPES = (*FAMILIES, *_OF_TWO)


def family_of(settings: Settings) -> tuple[Family, Settings] | None:
    """The family of a config.json, and its settings of the language model; None if it is not known."""
    model_type = settings.get("model_type")
    if not isinstance(model_type, str):
        return None
    if model_type in _OF_TWO:
        section, model_type = _OF_TWO[model_type]
        return FAMILIES[model_type], settings.section(section)
    return (FAMILIES[model_type], settings) if model_type in FAMILIES else None
