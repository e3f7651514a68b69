"""Tables of names: our weights of a decoder layer -> tensors of a checkpoint, for each naming scheme and family."""

import dataclasses
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One naming scheme of checkpoints.

    Attributes:
      prefix: beginning of a layer's tensor names, with `{layer}` for its number.
      weights: our name of a weight -> the rest of the tensor's name. Several weights with one name are in one tensor,
        one after the other along its outputs, in this order.
      final_norm: name of the norm after the last layer.
      embedding: name of the token embeddings, one row for each token of the vocabulary.
      positions: name of the learned positions, one row for each; "" without them.
      first_position: row of the first position: OPT has two rows before it.
      interleaved: whether the rotary embedding pairs rows (0, 1), (2, 3) ... of q and k (Meta, GGUF) instead of
        (0, K/2), (1, K/2 + 1) ... (Hugging Face and ours).
      buffers: endings of constants that are recomputed, not weights.
      in_out: whether linear maps are stored as (in, out), as GPT-2's are, not as (out, in).
      norm_offset: what was added to the weights of all norms: 1 in the GGUF files of Gemma.
    """

    prefix: str
    weights: Mapping[str, str]
    final_norm: str
    embedding: str = "embed_tokens.weight"
    positions: str = ""
    first_position: int = 0
    interleaved: bool
    buffers: tuple[str, ...] = ()
    in_out: bool = False
    norm_offset: float = 0.0

    def names(self, layer: int) -> dict[str, str]:
        """Our name of each weight of `layer` -> its tensor's name."""
        prefix = self.prefix.format(layer=layer)
        return {weight: prefix + ending for weight, ending in self.weights.items()}

    def tensors(self, layer: int) -> dict[str, tuple[str, ...]]:
        """Name of each tensor of `layer` -> our names of the weights in it, in their order."""
        held: dict[str, tuple[str, ...]] = {}
        for weight, name in self.names(layer).items():
            held[name] = (*held.get(name, ()), weight)
        return held

    def of_final_norm(self, weight: str) -> str:
        """The tensor of the norm after the last layer that is called `weight` in a block, "scale" or "bias"."""
        return self.final_norm if weight == "scale" else _bias(self.final_norm)

    def below(self, base: str) -> "Layout":
        """The same layout where all names begin with `base`."""
        names = {name: getattr(self, name) for name in ("prefix", "final_norm", "embedding", "positions")}
        return dataclasses.replace(self, **{name: base + given for name, given in names.items() if given})

    def with_biases(self, of: Collection[str]) -> "Layout":
        """The same layout where each weight in `of` has a bias too."""
        biases = {f"{weight}_bias": _bias(name) for weight, name in self.weights.items() if weight in of}
        return dataclasses.replace(self, weights={**self.weights, **biases})


def _bias(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"


# Hugging Face's names below the beginning that depends on the model's class, such as "model.".
LLAMA = Layout(
    prefix="layers.{layer}.",
    weights={
        "attention_norm": "input_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "o": "self_attn.o_proj.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
    },
    final_norm="norm.weight",
    interleaved=False,
    buffers=("rotary_emb.inv_freq",),
)
_QK_NORMS = {"q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight"}
QWEN3 = dataclasses.replace(LLAMA, weights={**LLAMA.weights, **_QK_NORMS})
PHI3 = dataclasses.replace(
    LLAMA,
    weights={
        **LLAMA.weights,
        **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj.weight"),
        **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight"),
    },
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    weights={
        **LLAMA.weights,
        "attention_post_norm": "post_attention_layernorm.weight",
        "mlp_norm": "pre_feedforward_layernorm.weight",
        "mlp_post_norm": "post_feedforward_layernorm.weight",
    },
)
GEMMA3 = dataclasses.replace(GEMMA2, weights={**GEMMA2.weights, **_QK_NORMS})
GPT2 = Layout(
    prefix="h.{layer}.",
    weights={
        "attention_norm": "ln_1.weight",
        **dict.fromkeys(("q", "k", "v"), "attn.c_attn.weight"),
        "o": "attn.c_proj.weight",
        "mlp_norm": "ln_2.weight",
        "up": "mlp.c_fc.weight",
        "down": "mlp.c_proj.weight",
    },
    final_norm="ln_f.weight",
    embedding="wte.weight",
    positions="wpe.weight",
    interleaved=False,
    buffers=(".attn.bias", ".attn.masked_bias"),
    in_out=True,
)
OPT = Layout(
    prefix="layers.{layer}.",
    weights={
        "attention_norm": "self_attn_layer_norm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "o": "self_attn.out_proj.weight",
        "mlp_norm": "final_layer_norm.weight",
        "up": "fc1.weight",
        "down": "fc2.weight",
    },
    final_norm="final_layer_norm.weight",
    positions="embed_positions.weight",
    first_position=2,
    interleaved=False,
)

META = Layout(
    prefix="layers.{layer}.",
    weights={
        "attention_norm": "attention_norm.weight",
        "q": "attention.wq.weight",
        "k": "attention.wk.weight",
        "v": "attention.wv.weight",
        "o": "attention.wo.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "feed_forward.w1.weight",
        "up": "feed_forward.w3.weight",
        "down": "feed_forward.w2.weight",
    },
    final_norm="norm.weight",
    embedding="tok_embeddings.weight",
    interleaved=True,
    buffers=("rope.freqs",),
)

GGUF = Layout(
    prefix="blk.{layer}.",
    weights={
        "attention_norm": "attn_norm.weight",
        "q": "attn_q.weight",
        "k": "attn_k.weight",
        "v": "attn_v.weight",
        "o": "attn_output.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
    },
    final_norm="output_norm.weight",
    embedding="token_embd.weight",
    interleaved=True,
)
# llama.cpp reorders queries and keys of LLaMA alone.
GGUF_PLAIN = dataclasses.replace(GGUF, interleaved=False)
_GGUF_QK_NORMS = {"q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight"}
GGUF_QWEN3 = dataclasses.replace(GGUF_PLAIN, weights={**GGUF.weights, **_GGUF_QK_NORMS})
GGUF_PHI3 = dataclasses.replace(
    GGUF_PLAIN,
    weights={
        **GGUF.weights,
        **dict.fromkeys(("q", "k", "v"), "attn_qkv.weight"),
        **dict.fromkeys(("gate", "up"), "ffn_up.weight"),
    },
)
GGUF_GEMMA = dataclasses.replace(GGUF_PLAIN, norm_offset=1.0)
GGUF_GEMMA2 = dataclasses.replace(
    GGUF_GEMMA,
    weights={
        **GGUF.weights,
        "attention_post_norm": "post_attention_norm.weight",
        "mlp_post_norm": "post_ffw_norm.weight",
    },
)
GGUF_GEMMA3 = dataclasses.replace(GGUF_GEMMA2, weights={**GGUF_GEMMA2.weights, **_GGUF_QK_NORMS})
# The converter of llama.cpp transposes GPT-2's linear maps.
GGUF_GPT2 = dataclasses.replace(
    GGUF_PLAIN,
    weights={
        **{weight: name for weight, name in GGUF.weights.items() if weight != "gate"},
        **dict.fromkeys(("q", "k", "v"), "attn_qkv.weight"),
    },
)
