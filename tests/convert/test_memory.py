"""Memory that one layer of a 7B model takes to convert, and one block of a large vision encoder.

The checkpoints have true shapes and sizes, but are sparse: only layer 31 has values, which are compared.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxboost.convert.encoders import load_encoder
from jaxboost.convert.store import load_block
from tests.convert.checkpoints_7b import (
    FILLED_LAYER,
    WIDTH,
    values,
    write_bin_7b,
    write_gguf_7b,
    write_meta_7b,
    write_safetensors_7b,
    write_values,
)

ROOT = Path(__file__).parents[2]
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
