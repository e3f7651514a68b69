"""What config.json, params.json and GGUF metadata say about the layers."""

import json

import numpy as np
import pytest

from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.sources import open_source
from jaxboost.convert.tables import rope
from jaxboost.convert.tables.llama_configs import parse_config
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig
from tests.reference import llama_checkpoints as reference

SMALLEST = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
}
LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192.0}


def parse(**changes):
    return parse_config(Settings(SMALLEST | changes, "folder/config.json"))


def test_defaults_are_those_of_transformers():
    from transformers import LlamaConfig as Theirs

    theirs = Theirs(**{key: value for key, value in SMALLEST.items() if key != "model_type"})
    config, n_layers = parse()
    assert n_layers == 2
    assert config == LlamaConfig(
        width=64,
        heads=4,
        kv_heads=theirs.num_key_value_heads,
        head_dim=theirs.head_dim,
        mlp_width=96,
        eps=theirs.rms_norm_eps,
        rope_base=theirs.rope_parameters["rope_theta"],
    )


def test_nulls_count_as_absent():
    assert parse(num_key_value_heads=None, head_dim=None, rope_scaling=None, rope_parameters=None) == parse()


def test_mistral_has_eight_key_value_heads_unless_it_says_otherwise():
    big = {"model_type": "mistral", "num_attention_heads": 16}
    assert parse(**big)[0].kv_heads == 8
    assert parse(**big, num_key_value_heads=None)[0].kv_heads == 16


def test_older_and_newer_rope_entries_agree():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    older = parse(rope_theta=500000.0, rope_scaling=scaling | {"rope_type": "llama3"})
    newer = parse(rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 500000.0})
    assert older == newer
    assert older[0].rope_base == 500000.0
    assert older[0].rope_factors == rope.llama3_factors(head_dim=16, rope_base=500000.0, factor=8.0, **LLAMA3_FACTORS)


LONG = {"max_position_embeddings": 131072}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bloom"}, "this is a 'bloom' checkpoint, not of a known family"),
        ({"model_type": "phi"}, "; the nearest is phi3"),
        ({"model_type": "convnext"}, "the nearest is the same model in timm's names, such as timm/convnext_tiny"),
        ({"model_type": "clip_text_model"}, "the nearest is a CLIP with both towers, .* for its texts with --prompts"),
        ({"model_type": ["llama"]}, r"this is a \['llama'\] checkpoint, not of a known family"),
        ({"model_type": None}, "this is a None checkpoint"),
        ({"hidden_act": "gelu"}, "the activation is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"the weights are quantized \(gptq\)"),
        ({"rope_scaling": {"type": ["yarn"]}}, r"the kind of rotary scaling is \['yarn'\] instead of a name"),
        (
            LONG | {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
            "1 rotary factors for a head width of 16",
        ),
        (LONG | {"rope_scaling": {"rope_type": "longrope", "short_factor": "1"}}, "'short_factor' is '1' instead of 8"),
        ({"rope_parameters": [1]}, r"'rope_parameters' is \[1\] instead of an object"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_size": "64"}, "'hidden_size' is '64' instead of a positive number"),
        ({"hidden_size": 64.5}, "'hidden_size' is 64.5 instead of a whole number"),
        ({"intermediate_size": -1}, "'intermediate_size' is -1 instead of a positive number"),
        ({"num_key_value_heads": 3}, "4 heads are not a multiple of 3 key/value heads"),
        ({"head_dim": 15}, "the head width 15 is odd"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(**changes)
    assert str(caught.value).startswith("folder/config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "the rotary scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "the rotary scaling 'yarn'"),
        (LONG | {"rope_scaling": {"type": "su"}}, "the rotary scaling 'su'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "the rotation of a part of each head (a fraction of 0.5)",
        ),
        ({"partial_rotary_factor": 0.25}, "the rotation of a part of each head (a fraction of 0.25)"),
    ],
)
def test_rotation_that_is_not_supported_is_recorded(changes, problem):
    config, _ = parse(**changes)
    assert config.rope_unsupported == problem
    assert problem is None or config.rope_factors is None


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "the rotary scaling 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "the rotation of a part of each head (8 of 16)"),
    ],
)
def test_rotation_of_gguf_that_is_not_supported_is_recorded(metadata, problem, tmp_path):
    source = reference.write_gguf(reference.tiny_llama(seed=1), tmp_path / "gguf", metadata=metadata)
    assert open_source(source).config.rope_unsupported == problem


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"\xff\xfe", b"[]"])
def test_broken_json(text):
    with pytest.raises(UserError, match=r"^config\.json .*: download it again$"):
        Settings.parse(text, "config.json")


@pytest.mark.parametrize(
    ("params", "factor"),
    [({}, 32.0), ({"rope_scaling_factor": 8.0}, 8.0), ({"use_scaled_rope": False}, None)],
)
def test_scaled_rope_of_meta(params, factor, tmp_path):
    model = reference.tiny_llama(seed=1)
    source = reference.write_meta(model, tmp_path / "meta", **{"use_scaled_rope": True} | params)
    config = open_source(source).config
    expected = factor and rope.llama3_factors(head_dim=16, rope_base=50000.0, factor=factor, **LLAMA3_FACTORS)
    assert config.rope_factors == expected


def test_scaled_rope_of_llama_3_1_has_the_factor_8(tmp_path):
    # Only the parts that the configuration is read from; 4096 is the width of the smallest LLaMA 3.1.
    import torch

    torch.save({"layers.0.feed_forward.w1.weight": torch.zeros(96, 4096)}, tmp_path / "consolidated.00.pth")
    params = {"dim": 4096, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32, "norm_eps": 1e-5, "rope_theta": 500000.0}
    (tmp_path / "params.json").write_text(json.dumps(params | {"use_scaled_rope": True}))
    config = open_source(str(tmp_path)).config
    assert config.rope_factors == rope.llama3_factors(head_dim=128, rope_base=5e5, factor=8.0, **LLAMA3_FACTORS)
    assert (config.width, config.heads, config.kv_heads, config.head_dim, config.mlp_width) == (4096, 32, 8, 128, 96)


def test_meta_defaults(tmp_path):
    model = reference.tiny_llama(seed=1, num_key_value_heads=4)
    source = reference.write_meta(model, tmp_path / "meta")
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    del params["n_kv_heads"], params["rope_theta"]
    (tmp_path / "meta" / "params.json").write_text(json.dumps(params))
    config = open_source(source).config
    assert (config.kv_heads, config.rope_base, config.rope_factors) == (4, 10000.0, None)


def test_rope_factors_of_gguf(tmp_path):
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    source = reference.write_gguf(reference.tiny_llama(seed=1), tmp_path / "gguf", rope_factors=factors)
    assert open_source(source).config.rope_factors == tuple(factors.tolist())


TYPE, FACTOR, OLD_FACTOR = "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear"


@pytest.mark.parametrize(
    ("metadata", "factors"),
    [
        ({TYPE: "none", FACTOR: 4.0}, None),
        ({TYPE: "linear", FACTOR: 4.0}, (4.0,) * 8),
        # As llama.cpp reads them: linear is the default, and the key of 2023 counts if the present one is missing.
        ({FACTOR: 4.0}, (4.0,) * 8),
        ({FACTOR: 1.0}, None),
        ({FACTOR: 0.0}, None),
        ({OLD_FACTOR: 2.0}, (2.0,) * 8),
        ({FACTOR: 4.0, OLD_FACTOR: 2.0}, (4.0,) * 8),
        ({TYPE: "none", OLD_FACTOR: 2.0}, None),
    ],
)
def test_rope_scaling_of_gguf(metadata, factors, tmp_path):
    source = reference.write_gguf(reference.tiny_llama(seed=1), tmp_path / "gguf", metadata=metadata)
    config = open_source(source).config
    assert (config.rope_factors, config.rope_unsupported) == (factors, None)


def test_gguf_with_both_factors_and_scaling(tmp_path):
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    model = reference.tiny_llama(seed=1)
    for metadata, scale in (({FACTOR: 4.0}, 4.0), ({TYPE: "none", FACTOR: 4.0}, 1.0)):
        source = reference.write_gguf(model, tmp_path / "gguf", rope_factors=factors, metadata=metadata)
        assert open_source(source).config.rope_factors == tuple((scale * factors).tolist())
    source = reference.write_gguf(model, tmp_path / "gguf", rope_factors=factors, metadata={TYPE: "yarn"})
    assert open_source(source).config.rope_unsupported == "the rotary scaling 'yarn'"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.attention.value_length": 32}, "'llama.attention.value_length' is not the head width 16"),
        ({"split.count": 2}, "is one part of several: join them with `llama-gguf-split --merge` first"),
    ],
)
def test_gguf_metadata_refused(metadata, message, tmp_path):
    source = reference.write_gguf(reference.tiny_llama(seed=1), tmp_path / "gguf", metadata=metadata)
    with pytest.raises(UserError, match=message):
        open_source(source)


def test_other_architecture_of_gguf(tmp_path):
    source = reference.write_gguf(reference.tiny_llama(seed=1), tmp_path / "gguf", architecture="falcon")
    with pytest.raises(
        UserError, match=r"is a 'falcon' checkpoint, not of a family that is read.*gemma3, gpt2\): choose"
    ):
        open_source(source)
