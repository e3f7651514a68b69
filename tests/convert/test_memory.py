"""Memory that one layer of a 7B model takes to convert, and one block of a large vision encoder.

The checkpoints have true shapes and sizes, but are sparse: only layer 31 has values, which are compared.
"""

import json
import math
import mmap
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from jaxboost.convert.encoders import load_encoder
from jaxboost.convert.store import load_block

ROOT = Path(__file__).parents[2]
WIDTH, HEADS, MLP_WIDTH, LAYERS, VOCABULARY = 4096, 32, 11008, 32, 32000
FILLED_LAYER = 31
LIMIT_GB = 1.5

# VmHWM belongs to the process alone; ru_maxrss would count what its parent held at the fork.
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = open("/proc/self/status").read()
    print("peak kB", status.split("VmHWM:")[1].split()[0])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc"),
]


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


WRITERS = {"safetensors": write_safetensors_7b, "meta": write_meta_7b, "bin": write_bin_7b, "gguf": write_gguf_7b}


def peak_gb(source, layers, out):
    """Converts in a process of its own and returns its peak resident memory in GB (10^9 bytes)."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "convert_weights.py")]
    command += ["--source", str(source), "--layers", layers, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.rsplit("peak kB", 1)[1]) * 1024 / 1e9


@pytest.fixture
def scratch(tmp_path):
    """A folder whose contents do not wait for pytest's clearing of old runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_peak_memory_of_7b(name, scratch):
    source = scratch / "llama-7b"
    WRITERS[name](source)
    size = sum(path.stat().st_size for path in source.iterdir())
    assert size > 13.4e9
    expected = values((WIDTH, WIDTH)).astype(np.float32)
    source = source / "llama-7b.gguf" if name == "gguf" else source
    one = peak_gb(source, "31", scratch / "one")
    three = peak_gb(source, "31,0,15", scratch / "three")
    block = load_block(scratch / "one", (FILLED_LAYER,), final_norm=False)
    np.testing.assert_array_equal(np.asarray(block.weights["v"][0]).T, expected)
    print(f"{name}: one layer {one:.2f} GB, three layers {three:.2f} GB")
    assert one < LIMIT_GB
    # A second layer held would add 0.81 GB.
    assert three < one + 0.4


ENCODER_LIMIT_GB = 1.0
ENCODER = {"hidden_size": 2048, "num_attention_heads": 32, "intermediate_size": 8192, "patch_size": 16}
ENCODER_BLOCK_GB = 4 * (12 * 2048**2 + 13 * 2048) / 1e9


def write_encoder(folder, depth):
    """A float32 ViT in Hugging Face's layout: the first block has values, the others and the embedding are a hole."""
    folder.mkdir()
    config = {"model_type": "vit", "num_hidden_layers": depth, **ENCODER}
    (folder / "config.json").write_text(json.dumps(config))
    D, F, P = ENCODER["hidden_size"], ENCODER["intermediate_size"], ENCODER["patch_size"]
    tensors = {
        "embeddings.cls_token": (1, 1, D),
        "embeddings.position_embeddings": (1, 1 + (224 // P) ** 2, D),
        "embeddings.patch_embeddings.projection.weight": (D, 3, P, P),
        "embeddings.patch_embeddings.projection.bias": (D,),
    }
    modules = {"layernorm": (D,)}
    for layer in range(depth):
        prefix = f"encoder.layer.{layer}."
        modules |= {f"{prefix}layernorm_{place}": (D,) for place in ("before", "after")}
        modules |= {f"{prefix}attention.attention.{name}": (D, D) for name in ("query", "key", "value")}
        modules |= {f"{prefix}attention.output.dense": (D, D), f"{prefix}intermediate.dense": (F, D)}
        modules |= {f"{prefix}output.dense": (D, F)}
    for module, shape in modules.items():
        tensors |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    for name, shape in tensors.items():
        if name.startswith("encoder.layer.0."):
            write_values(path, 8 + len(text) + header[name]["data_offsets"][0], shape, np.float32)


def test_peak_memory_of_an_encoder(scratch):
    """At most one array is in memory, however many blocks there are."""
    peaks = {}
    for depth in (1, 6):
        source = scratch / f"vit-{depth}"
        write_encoder(source, depth)
        assert (source / "model.safetensors").stat().st_size > depth * ENCODER_BLOCK_GB * 1e9
        peaks[depth] = peak_gb(source, "all", scratch / f"encoder-{depth}")
    kernel = values((ENCODER["intermediate_size"], ENCODER["hidden_size"])).astype(np.float32)
    encoder = load_encoder(scratch / "encoder-6", image_size=32)
    np.testing.assert_array_equal(
        np.asarray(encoder.weights["transformer"]["blocks"]["mlp"]["up"]["kernel"][0]).T, kernel
    )
    print(f"one block {peaks[1]:.2f} GB, six {peaks[6]:.2f} GB, a block has {ENCODER_BLOCK_GB:.2f} GB")
    # A second block held would add a whole one.
    assert peaks[6] < peaks[1] + ENCODER_BLOCK_GB / 2
    assert peaks[6] < ENCODER_LIMIT_GB
