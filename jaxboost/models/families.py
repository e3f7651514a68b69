"""The families of LLMs: what sets their decoder layers apart, and published sizes.

LLaMA's layer (Touvron et al. 2023) is the common form. A family is named by the switches that differ from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

RMS_NORM, LAYER_NORM = "rms", "layer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """What sets the layers of a family apart. The defaults are LLaMA's.

    Attributes:
      norm: of the residual stream: RMS_NORM, or LAYER_NORM with biases (GPT-2, OPT).
      offset_norms: an RMSNorm with the weight w scales by 1 + w, and rounds once, after the scale (Gemma).
      qkv_bias: biases of queries, keys and values (Qwen2, GPT-2, OPT).
      o_bias: a bias of the attention's output projection (GPT-2, OPT).
      mlp_bias: biases of all linear maps of the MLP (GPT-2, OPT).
      qk_norm: an RMSNorm over the K features of each query and each key, before they are rotated (Qwen3, Gemma 3).
      post_norms: RMSNorms of the outputs of attention and MLP, before the residuals are added (Gemma 2 and 3).
      activation: of the MLP, a key of `llama.ACTIVATIONS`.
      gated: the MLP is down(activation(gate(x)) * up(x)); otherwise it is down(activation(up(x))), without `gate`.
      score_cap: c: scores s become c tanh(s / c) before the mask (Gemma 2); None: they stay as they are.
      query_scale: factor of the scores; None: 1 / sqrt(K).
      rotary: whether the family has a rotary embedding. GPT-2 and OPT add learned positions to the first layer's input
        instead, which are no part of the layers: the layers do not know the order of their tokens.
      window: under the causal mask a token attends to the `window` tokens up to itself (Mistral, Gemma, Phi-3), so that
        it has no effect on fewer tokens. More tokens are refused under a causal mask. None: no window.
      local_layers: positions, in the stack of layers that is described, of those with a rotary embedding of their own:
        the layers of Gemma 3 with a sliding window.
      local_rope_base: its base. None if there are no such layers.
      local_rope_factors: its divisors, as `LlamaConfig.rope_factors`.
      rope_magnitude: factor of the rotated queries, and of the rotated keys (LongRoPE).
      rope_limit: tokens up to which `LlamaConfig.rope_factors` hold (LongRoPE); more are refused. None: any number.
    """

    norm: str = RMS_NORM
    offset_norms: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    activation: str = "silu"
    gated: bool = True
    score_cap: float | None = None
    query_scale: float | None = None
    rotary: bool = True
    window: int | None = None
    local_layers: tuple[int, ...] = ()
    local_rope_base: float | None = None
    local_rope_factors: tuple[float, ...] | None = None
    rope_magnitude: float = 1.0
    rope_limit: int | None = None

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices of a layer, which LoRA changes."""
        return ("q", "k", "v", "o", *["gate"] * self.gated, "up", "down")

    @property
    def biased(self) -> tuple[str, ...]:
        """The matrices with a bias, which is called `{name}_bias`."""
        has_bias = {"q": self.qkv_bias, "k": self.qkv_bias, "v": self.qkv_bias, "o": self.o_bias}
        return tuple(name for name in self.matrices if has_bias.get(name, self.mlp_bias))

    @property
    def stream_norms(self) -> tuple[str, ...]:
        """The norms over the width D in a layer; a LayerNorm has a bias too, `{name}_bias`."""
        return ("attention_norm", "mlp_norm", *["attention_post_norm", "mlp_post_norm"] * self.post_norms)

    @property
    def not_absorbed(self) -> str | None:
        """Why keys cannot be left out by the algebra of `models.absorbed`; None if they can."""
        if self.qk_norm:
            return "these layers normalise each key, which is not linear in the token"
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(Architecture):
    """Shape and constants of a layer, and its family's architecture.

    Attributes:
      width: D, the width of the residual stream.
      heads: H, query heads.
      kv_heads: G, key/value heads (G < H: grouped-query attention; G must divide H).
      head_dim: K, width of one head.
      mlp_width: F, width of the MLP.
      eps: added to the mean square, or the variance, in every norm.
      rope_base: base of the rotary embedding's geometric frequencies.
      rope_factors: divisors of the K/2 inverse frequencies (LLaMA 3.1's, linear and LongRoPE scaling), None: all ones.
      rope_unsupported: a feature of the checkpoint's rotary embedding that rope_base and rope_factors cannot express.
        Layers with it run only without rotation. None if there is no such feature.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    eps: float
    rope_base: float
    rope_factors: tuple[float, ...] | None = None
    rope_unsupported: str | None = None

    @property
    def shape(self) -> dict[str, int]:
        """The dimensions that decide whether weights fit."""
        return {k: getattr(self, k) for k in ("width", "heads", "kv_heads", "head_dim", "mlp_width")}

    def chosen(self, positions: Sequence[int]) -> "LlamaConfig":
        """The same for some of the layers, in this order. Layers of one kind alone have nothing `local_`."""
        if not self.local_layers:
            return self
        local = tuple(place for place, position in enumerate(positions) if position in self.local_layers)
        one_kind: dict[str, Any] = dict(local_layers=(), local_rope_base=None, local_rope_factors=None)
        if not local:
            return dataclasses.replace(self, **one_kind, window=None)
        if len(local) == len(positions):
            own: dict[str, Any] = dict(rope_base=self.local_rope_base, rope_factors=self.local_rope_factors)
            return dataclasses.replace(self, **one_kind, **own, rope_unsupported=None)
        return dataclasses.replace(self, local_layers=local)

    @classmethod
    def of_entries(cls, entries: Mapping[str, Any]) -> "LlamaConfig":
        """The config whose `entries` were written as JSON, which has lists in the place of tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()
        }
        return cls(**values)

    def entries(self) -> dict[str, Any]:
        """The fields for a manifest or a record. Those of the architecture are left out where they are LLaMA's."""
        names = [field.name for field in dataclasses.fields(Architecture)]
        as_llama = {name for name in names if getattr(self, name) == getattr(Architecture, name)}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in as_llama}


def _sized(width: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int, **constants: Any) -> LlamaConfig:
    shape = dict(width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp_width=mlp_width)
    rest: dict[str, Any] = {"rope_base": 1e4, **constants}
    return LlamaConfig(**shape, **rest)


_QWEN2: dict[str, Any] = dict(eps=1e-6, rope_base=1e6, qkv_bias=True)
_QWEN3: dict[str, Any] = dict(eps=1e-6, rope_base=1e6, qk_norm=True)
_GEMMA: dict[str, Any] = dict(eps=1e-6, activation="gelu_tanh", offset_norms=True, post_norms=True)
_GEMMA2: dict[str, Any] = _GEMMA | dict(score_cap=50.0, window=4096)
# Five of six layers have a sliding window, and a rotary base of their own.
_GEMMA3: dict[str, Any] = _GEMMA | dict(rope_base=1e6, qk_norm=True, window=512, local_rope_base=1e4)
_LOCAL_OF_26 = tuple(layer for layer in range(26) if (layer + 1) % 6)
_OLDER: dict[str, Any] = dict(
    eps=1e-5, norm=LAYER_NORM, qkv_bias=True, o_bias=True, mlp_bias=True, gated=False, rotary=False
)
_GPT2 = _OLDER | dict(activation="gelu_tanh")
_OPT = _OLDER | dict(activation="relu")

# Published shapes, so that a model can be described and traced without its weights: (number of layers, each layer).
# docs/converting.md names the licences of the weights.
_PUBLISHED = {
    "llama-7b": (32, _sized(4096, 32, 32, 128, 11008, eps=1e-6)),
    "llama-2-7b": (32, _sized(4096, 32, 32, 128, 11008, eps=1e-5)),
    "llama-3-8b": (32, _sized(4096, 32, 8, 128, 14336, eps=1e-5, rope_base=5e5)),
    "tinyllama-1.1b": (22, _sized(2048, 32, 4, 64, 5632, eps=1e-5)),
    "smollm2-135m": (30, _sized(576, 9, 3, 64, 1536, eps=1e-5, rope_base=1e5)),
    "llama-tiny": (4, _sized(64, 4, 2, 16, 96, eps=1e-5)),
    "qwen2.5-0.5b": (24, _sized(896, 14, 2, 64, 4864, **_QWEN2)),
    "qwen2.5-1.5b": (28, _sized(1536, 12, 2, 128, 8960, **_QWEN2)),
    "qwen2.5-7b": (28, _sized(3584, 28, 4, 128, 18944, **_QWEN2)),
    "qwen3-0.6b": (28, _sized(1024, 16, 8, 128, 3072, **_QWEN3)),
    "qwen3-1.7b": (28, _sized(2048, 16, 8, 128, 6144, **_QWEN3)),
    "qwen3-8b": (36, _sized(4096, 32, 8, 128, 12288, **_QWEN3)),
    "mistral-7b": (32, _sized(4096, 32, 8, 128, 14336, eps=1e-5, rope_base=1e6)),  # version 0.3
    "phi-3-mini": (32, _sized(3072, 32, 32, 96, 8192, eps=1e-5, window=2047)),  # the one with a context of 4k
    "gemma-2-2b": (26, _sized(2304, 8, 4, 256, 9216, **_GEMMA2)),
    "gemma-2-9b": (42, _sized(3584, 16, 8, 256, 14336, **_GEMMA2)),
    "gemma-3-1b": (26, _sized(1152, 4, 1, 256, 6912, **_GEMMA3, local_layers=_LOCAL_OF_26)),
    "gpt2": (12, _sized(768, 12, 12, 64, 3072, **_GPT2)),
    "gpt2-xl": (48, _sized(1600, 25, 25, 64, 6400, **_GPT2)),
    "opt-125m": (12, _sized(768, 12, 12, 64, 3072, **_OPT)),
    "opt-1.3b": (24, _sized(2048, 32, 32, 64, 8192, **_OPT)),
    "opt-2.7b": (32, _sized(2560, 32, 32, 80, 10240, **_OPT)),
    "opt-6.7b": (32, _sized(4096, 32, 32, 128, 16384, **_OPT)),
}
DEPTHS = {name: depth for name, (depth, _) in _PUBLISHED.items()}
FAMILIES = {name: config for name, (_, config) in _PUBLISHED.items()}
