"""A tiny random LLaMA, and functions that write it in every format that `jaxboost.convert` reads.

Each function takes the model and a folder, and returns the value of `--source`.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP_WIDTH, LAYERS = 64, 4, 2, 16, 96, 4
EPS, ROPE_BASE, VOCABULARY = 1e-5, 50000.0, 50

# Our names of a layer's weights -> Hugging Face's, Meta's and GGUF's.
WEIGHTS = {
    "attention_norm": ("input_layernorm", "attention_norm", "attn_norm"),
    "q": ("self_attn.q_proj", "attention.wq", "attn_q"),
    "k": ("self_attn.k_proj", "attention.wk", "attn_k"),
    "v": ("self_attn.v_proj", "attention.wv", "attn_v"),
    "o": ("self_attn.o_proj", "attention.wo", "attn_output"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm", "ffn_norm"),
    "gate": ("mlp.gate_proj", "feed_forward.w1", "ffn_gate"),
    "up": ("mlp.up_proj", "feed_forward.w3", "ffn_up"),
    "down": ("mlp.down_proj", "feed_forward.w2", "ffn_down"),
}
_META_AXES = {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 0, "up": 0, "down": 1}


def tiny_llama(seed: int, **overrides):
    """A float32 transformers `LlamaForCausalLM` with grouped-query heads and norms that are not ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": LAYERS,
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings | overrides)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                mean, std = (1.0, 0.2) if "norm" in name else (0.0, 0.05)
                parameter.copy_(torch.randn_like(parameter) * std + mean)
    return model


def layer_weights(model, layer: int) -> dict[str, np.ndarray]:
    """Our name -> weight of a layer as a block stores it: matrices (in, out)."""
    state = _state(model)
    return {
        weight: np.ascontiguousarray(state[f"model.layers.{layer}.{names[0]}.weight"].T)
        for weight, names in WEIGHTS.items()
    }


def final_norm_weight(model) -> np.ndarray:
    return _state(model)["model.norm.weight"]


def write_safetensors(model, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def write_sharded_safetensors(model, folder: Path) -> str:
    model.save_pretrained(folder, max_shard_size="100KB")
    return str(folder)


def write_bin(model, folder: Path) -> str:
    import torch

    _write_config(model, folder)
    torch.save(_state_with_old_buffers(model), folder / "pytorch_model.bin")
    return str(folder)


def write_sharded_bin(model, folder: Path, parts: int = 3) -> str:
    import torch

    _write_config(model, folder)
    state = _state_with_old_buffers(model)
    file_of = {
        name: f"pytorch_model-{1 + number % parts:05d}-of-{parts:05d}.bin" for number, name in enumerate(sorted(state))
    }
    for file in set(file_of.values()):
        torch.save({name: state[name] for name in state if file_of[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": file_of}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return str(folder)


def write_meta(model, folder: Path, parts: int = 1, **params) -> str:
    """Meta's layout: interleaved q and k, and one file per model-parallel part."""
    import torch

    state, config = _state(model), model.config
    tensors = {
        "tok_embeddings.weight": (state["model.embed_tokens.weight"], 1),
        "norm.weight": (state["model.norm.weight"], None),
        "output.weight": (state["lm_head.weight"], 0),
        "rope.freqs": (np.ones(config.head_dim // 2, np.float32), None),
    }
    for layer in range(config.num_hidden_layers):
        for weight, (ours, theirs, _) in WEIGHTS.items():
            array = _interleaved(state[f"model.layers.{layer}.{ours}.weight"], weight, config)
            tensors[f"layers.{layer}.{theirs}.weight"] = (array, _META_AXES.get(weight))
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        held = {
            name: torch.from_numpy((array if axis is None else np.split(array, parts, axis)[part]).copy())
            for name, (array, axis) in tensors.items()
        }
        torch.save(held, folder / f"consolidated.{part:02d}.pth")
    settings = {
        "dim": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "multiple_of": 32,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(settings | params))
    return str(folder)


def write_gguf(
    model,
    folder: Path,
    dtype: type[np.floating] = np.float32,
    *,
    architecture: str = "llama",
    rope_factors: np.ndarray | None = None,
    metadata: Mapping[str, str | float | int] | None = None,
) -> str:
    """llama.cpp's layout: interleaved q and k, matrices in `dtype`, norms in float32; `metadata` is added."""
    import gguf

    state, config = _state(model), model.config
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_token_list([f"token{number}" for number in range(config.vocab_size)])
    adders = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
    for key, value in (metadata or {}).items():
        adders[type(value)](key, value)
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for weight, (ours, _, theirs) in WEIGHTS.items():
            array = _interleaved(state[f"model.layers.{layer}.{ours}.weight"], weight, config)
            tensors[f"blk.{layer}.{theirs}.weight"] = array
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array, dtype if array.ndim > 1 else np.float32))
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


# The float16 file rounds the matrices; the others keep the model's float32.
WRITERS: dict[str, Callable[..., str]] = {
    "safetensors": write_safetensors,
    "safetensors_sharded": write_sharded_safetensors,
    "bin": write_bin,
    "bin_sharded": write_sharded_bin,
    "meta": write_meta,
    "meta_two_parts": partial(write_meta, parts=2),
    "gguf": write_gguf,
    "gguf_float16": partial(write_gguf, dtype=np.float16),
}


def _state(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _state_with_old_buffers(model) -> dict:
    """The state dict with the rotary constants that older releases saved too."""
    import torch

    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for layer in range(model.config.num_hidden_layers):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(model.config.head_dim // 2)
    return state


def _write_config(model, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)


def _interleaved(array: np.ndarray, weight: str, config) -> np.ndarray:
    """Rows (i, K/2 + i) of each q or k head become rows (2i, 2i + 1)."""
    if weight not in ("q", "k"):
        return array
    heads = config.num_attention_heads if weight == "q" else config.num_key_value_heads
    return np.concatenate(
        [
            np.stack([head[: len(head) // 2], head[len(head) // 2 :]], axis=1).reshape(head.shape)
            for head in np.split(array, heads)
        ]
    )
