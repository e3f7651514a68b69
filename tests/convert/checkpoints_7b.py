"""Checkpoints with the true shapes and sizes of a 7B LLaMA, sparse on disk: only one layer has values."""

import json
import math
import mmap

import gguf
import numpy as np

WIDTH, HEADS, MLP_WIDTH, LAYERS, VOCABULARY = 4096, 32, 11008, 32, 32000
FILLED_LAYER = 31


def shapes(layer, layout):
    """Tensor name -> shape of one layer."""
    norm, square, wide, tall = (WIDTH,), (WIDTH, WIDTH), (MLP_WIDTH, WIDTH), (WIDTH, MLP_WIDTH)
    if layout == "meta":
        prefix = f"layers.{layer}."
        named = {"attention_norm": norm, "ffn_norm": norm}
        named |= {f"attention.{name}": square for name in ("wq", "wk", "wv", "wo")}
        named |= {"feed_forward.w1": wide, "feed_forward.w3": wide, "feed_forward.w2": tall}
    else:
        prefix = f"model.layers.{layer}."
        named = {"input_layernorm": norm, "post_attention_layernorm": norm}
        named |= {f"self_attn.{name}_proj": square for name in "qkvo"}
        named |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": tall}
    return {f"{prefix}{name}.weight": shape for name, shape in named.items()}


def write_config(folder):
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": MLP_WIDTH,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))


def huggingface_shards():
    """The model's tensors -> shapes, in two files."""
    shards = [{"model.embed_tokens.weight": (VOCABULARY, WIDTH)}, {}]
    for layer in range(LAYERS):
        shards[layer >= 24] |= shapes(layer, "huggingface")
    shards[1] |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    return shards


def write_safetensors_7b(folder):
    """Two float16 shards: headers followed by holes."""
    write_config(folder)
    file_of, filled = {}, shapes(FILLED_LAYER, "huggingface")
    for number, tensors in enumerate(huggingface_shards(), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        header, offset = {}, 0
        for tensor, shape in tensors.items():
            end = offset + 2 * math.prod(shape)
            header[tensor] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
            offset, file_of[tensor] = end, name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        for tensor in filled.keys() & header.keys():
            start = 8 + len(text) + header[tensor]["data_offsets"][0]
            write_values(folder / name, start, filled[tensor], np.float16)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def values(shape):
    return (np.random.default_rng(0).standard_normal(shape, np.float32) / 50).astype(np.float16)


def write_values(path, offset, shape, dtype):
    with path.open("r+b") as file:
        file.seek(offset)
        values(shape).astype(dtype).tofile(file)


def save_sparse(tensors, path, filled):
    """A .pth file of the true size; the memory of its tensors is reserved, but never touched, and written as holes."""
    import torch

    state = {name: torch.empty(shape, dtype=torch.float16) for name, shape in tensors.items()}
    with torch.serialization.skip_data():
        torch.save(state, path)
    del state
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        state = torch.load(path, mmap=True, weights_only=True)
    for name in filled & tensors.keys():
        state[name].copy_(torch.from_numpy(values(tensors[name])))


def write_meta_7b(folder):
    folder.mkdir()
    tensors = {"tok_embeddings.weight": (VOCABULARY, WIDTH), "norm.weight": (WIDTH,)}
    tensors["output.weight"] = (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        tensors |= shapes(layer, "meta")
    save_sparse(tensors, folder / "consolidated.00.pth", shapes(FILLED_LAYER, "meta").keys())
    settings = {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(settings))


def write_bin_7b(folder):
    write_config(folder)
    file_of = {}
    for number, tensors in enumerate(huggingface_shards(), start=1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        save_sparse(tensors, folder / name, shapes(FILLED_LAYER, "huggingface").keys())
        file_of |= dict.fromkeys(tensors, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def write_gguf_7b(folder):
    """The metadata of a float16 file, followed by a hole."""
    folder.mkdir()
    names = {
        "attention_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "attention.wq": "attn_q",
        "attention.wk": "attn_k",
        "attention.wv": "attn_v",
        "attention.wo": "attn_output",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
    }
    path = folder / "llama-7b.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    tensors = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    tensors["output.weight"] = (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        for name, shape in shapes(layer, "meta").items():
            middle = name.removeprefix(f"layers.{layer}.").removesuffix(".weight")
            tensors[f"blk.{layer}.{names[middle]}.weight"] = shape
    for name, shape in tensors.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    # Every tensor's size is a multiple of the alignment, so the holes follow each other.
    start = -(-path.stat().st_size // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT
    size = sum(math.prod(shape) * (4 if len(shape) == 1 else 2) for shape in tensors.values())
    with path.open("r+b") as file:
        file.truncate(start + size)
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith(f"blk.{FILLED_LAYER}."):
            write_values(path, tensor.data_offset, tensor.data.shape, tensor.data.dtype)
