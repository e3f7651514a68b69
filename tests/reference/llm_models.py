"""Tiny random models of the LLM families as transformers has them, and their decoder layers with switches."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

WIDTH, HEADS, KV_HEADS, MLP_WIDTH, LAYERS = 48, 6, 2, 56, 4

_SHAPE = dict(
    hidden_size=WIDTH,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    intermediate_size=MLP_WIDTH,
    num_hidden_layers=LAYERS,
    vocab_size=20,
    max_position_embeddings=64,
    rms_norm_eps=0.05,  # large enough to be seen
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
# A soft cap and a query scale that matter, and heads that are not WIDTH / HEADS wide.
_GEMMA = dict(head_dim=12, query_pre_attn_scalar=20, sliding_window=32, layer_types=_KINDS)
_ROPE_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
}
# The context grew from 16 tokens to 64; nine tokens have the short factors.
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [4.0, 5.0, 6.0, 7.0],
}
# model_type -> arguments of its configuration.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": _SHAPE,
    "mistral": _SHAPE | dict(head_dim=12, sliding_window=32),
    "qwen3": _SHAPE | dict(head_dim=12),
    "phi3": _SHAPE | dict(sliding_window=32, original_max_position_embeddings=16, rope_parameters=_LONGROPE),
    "gemma": _SHAPE | dict(head_dim=12),
    "gemma2": _SHAPE | _GEMMA | dict(attn_logit_softcapping=2.0),
    "gemma3_text": _SHAPE | _GEMMA | dict(rope_parameters=_ROPE_BASES),
    "gpt2": dict(
        n_embd=WIDTH,
        n_head=HEADS,
        n_inner=MLP_WIDTH,
        n_layer=LAYERS,
        layer_norm_epsilon=0.05,
        vocab_size=20,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": {
        name: value
        for name, value in _SHAPE.items()
        # The eps of OPT is always that of nn.LayerNorm.
        if name not in ("num_key_value_heads", "intermediate_size", "rms_norm_eps")
    }
    | dict(ffn_dim=MLP_WIDTH, word_embed_proj_dim=WIDTH),
}


def tiny(family: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """A float32 model with a language-model head; no weight has its initial value."""
    arguments = {"attn_implementation": "eager", **FAMILIES[family], **overrides}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **arguments)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                if "norm" in name or ".ln_" in name:
                    mean = 0.0 if family.startswith("gemma") or name.endswith("bias") else 1.0
                    parameter.copy_(mean + 0.3 * noise)
                elif name.endswith("bias"):
                    parameter.copy_(0.5 * noise)
                else:
                    parameter.copy_(noise / WIDTH**0.5)
    return model


def save(model: nn.Module, folder: Path, *, safetensors: bool = True) -> str:
    """Writes the model's folder and returns the value of `--source`."""
    if safetensors:
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True)
        model.config.save_pretrained(folder)
        torch.save({name: value.clone() for name, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    return str(folder)


def base_of(model: nn.Module) -> Any:
    """The module that holds the layers."""
    return model.base_model.decoder if model.config.model_type == "opt" else model.base_model


class Layers(nn.Module):
    """Chosen decoder layers of a model and its final norm; (B, N, D) -> (B, N, D), without learned positions."""

    def __init__(self, model: nn.Module, layers: tuple[int, ...], *, rope: bool, causal: bool):
        super().__init__()
        self.base, self.layers, self.rope, self.causal = base_of(model), layers, rope, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        N, config = x.shape[1], self.base.config
        hidden = torch.full((N, N), torch.finfo(torch.float32).min).triu(1)[None, None]
        mask = hidden if self.causal else torch.zeros_like(hidden)
        every = self.base.h if config.model_type == "gpt2" else self.base.layers
        for number in self.layers:
            arguments = {}
            if hasattr(self.base, "rotary_emb"):
                kind = (config.layer_types[number],) if config.model_type == "gemma3_text" else ()
                cos, sin = self.base.rotary_emb(x, torch.arange(N)[None], *kind)
                if not self.rope:
                    cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
                arguments["position_embeddings"] = (cos, sin)
            x = every[number](x, attention_mask=mask, **arguments)
        norms = [getattr(self.base, name, None) for name in ("norm", "ln_f", "final_layer_norm")]
        (norm,) = [norm for norm in norms if norm is not None]
        return norm(x)


def whole(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The model's own pass from embedded tokens, its learned positions zero."""
    base = base_of(model)
    for name in ("wpe", "embed_positions"):
        if hasattr(base, name):
            getattr(base, name).weight.data.zero_()
    return base(inputs_embeds=x, use_cache=False).last_hidden_state


def write_gguf(model: nn.Module, path: Path, *, leave_out: tuple[str, ...] = ()) -> str:
    """The model as llama.cpp stores it, by the gguf package's own tables of names; `leave_out`: keys without family."""
    import gguf

    config = model.config
    name = config.model_type.removesuffix("_text")
    (architecture,) = [key for key, each in gguf.MODEL_ARCH_NAMES.items() if each == name]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, name)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    entries = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.n_inner if name == "gpt2" else config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
    }
    if name == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        rope = config.rope_parameters.get("full_attention", config.rope_parameters)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        entries |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.sliding_window": getattr(config, "sliding_window", None) or 0,
        }
        if rope["rope_type"] == "longrope":
            factor = config.max_position_embeddings / rope["original_max_position_embeddings"]
            entries["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
            writer.add_rope_scaling_attn_factors((1 + math.log(factor) / math.log(16)) ** 0.5)
            for length in ("short", "long"):
                factors = np.array(rope[f"{length}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{length}.weight", factors)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    for key, value in entries.items():
        if key not in leave_out:
            writer.add_uint32(f"{name}.{key}", value)
    for own, value in model.state_dict().items():
        if found := names.get_name(own, try_suffixes=(".weight", ".bias")):
            # Gemma's norms scale by 1 + w; GPT-2's linear maps are (in, out).
            value = value + 1 if name.startswith("gemma") and own.endswith("norm.weight") else value
            value = value.T if name == "gpt2" and ".c_" in own and value.ndim == 2 else value
            writer.add_tensor(found, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
