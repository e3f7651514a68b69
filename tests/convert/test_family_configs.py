"""What config.json of each LLM family says: defaults of transformers, sliding windows, options, refusals, names."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from jaxboost.convert import convert
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.sources import open_source
from jaxboost.convert.store import fingerprint_of, load_block, read_manifest
from jaxboost.convert.tables.llama_configs import parse_config
from jaxboost.convert.tables.llm_families import family_of
from jaxboost.errors import UserError
from jaxboost.models import rotary
from tests.reference import llm_models

SHAPE = {"hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 4, "intermediate_size": 96}
GPT2_SHAPE = {"n_embd": 64, "n_head": 32, "n_layer": 4}
OPT_SHAPE = {"hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 4, "ffn_dim": 96}
SMALLEST = {
    **dict.fromkeys(("mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text"), SHAPE),
    "gpt2": GPT2_SHAPE,
    "opt": OPT_SHAPE,
}


def parse(family, where="folder/config.json", **changes):
    return parse_config(Settings({"model_type": family, **SMALLEST.get(family, SHAPE), **changes}, where))


@pytest.mark.parametrize("family", SMALLEST)
def test_defaults_are_those_of_transformers(family):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family, **SMALLEST[family], **({"pad_token_id": 0} if family == "phi3" else {}))
    config, n_layers = parse(family)
    heads = theirs.num_attention_heads
    assert n_layers == theirs.num_hidden_layers
    assert (config.width, config.heads, config.kv_heads) == (64, heads, getattr(theirs, "num_key_value_heads", heads))
    assert config.head_dim == (getattr(theirs, "head_dim", None) or 64 // heads)
    assert config.mlp_width == {"gpt2": 256}.get(family, 96)
    eps = getattr(theirs, "rms_norm_eps", getattr(theirs, "layer_norm_epsilon", 1e-5))
    assert config.eps == eps
    rope = getattr(theirs, "rope_parameters", None) or {"rope_theta": 10000.0}
    assert config.rope_base == rope.get("full_attention", rope)["rope_theta"]
    assert config.window == (getattr(theirs, "sliding_window", None) or None)
    assert config.score_cap == (theirs.attn_logit_softcapping if family == "gemma2" else None)
    # The query scale of Gemma is that of its head width by default.
    assert config.query_scale is None


def test_the_tanh_is_an_approximation_by_tanh_and_the_first_gemma_means_it():
    assert [parse("gemma", hidden_act=name)[0].activation for name in ("gelu", "gelu_pytorch_tanh")] == [
        "gelu_tanh"
    ] * 2
    assert parse("gpt2", activation_function="gelu")[0].activation == "gelu"
    assert parse("gpt2")[0].activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("gemma2", {"query_pre_attn_scalar": 144}, {"query_scale": 1 / 12}),
        ("gemma2", {"query_pre_attn_scalar": 64, "head_dim": 64}, {"query_scale": None, "head_dim": 64}),
        ("gemma2", {"attn_logit_softcapping": None}, {"score_cap": None}),
        ("gemma2", {"sliding_window": None}, {"window": None}),
        ("gpt2", {"scale_attn_weights": False}, {"query_scale": 1.0}),
        ("gpt2", {"n_inner": None}, {"mlp_width": 256}),
        ("opt", {"enable_bias": False}, {"qkv_bias": False, "o_bias": False, "mlp_bias": False, "norm": "layer"}),
        ("llama", {"attention_bias": True}, {"qkv_bias": True, "o_bias": True, "mlp_bias": False}),
        ("llama", {"mlp_bias": True}, {"qkv_bias": False, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 512}, {"window": 512}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 512}, {"window": None}),
        ("mistral", {"sliding_window": None}, {"window": None}),
        # Keys that transformers does not read for these families.
        ("mistral", {"use_sliding_window": False, "sliding_window": 512}, {"window": 512}),
        ("gemma2", {"use_sliding_window": False, "sliding_window": 512}, {"window": 512}),
        ("llama", {"use_sliding_window": True, "sliding_window": 512}, {"window": None}),
        (
            "phi3",
            {
                "rope_scaling": {"type": "su", "short_factor": [2]},
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
            },
            {"rope_unsupported": None, "rope_limit": 4096, "rope_magnitude": 1.190238},
        ),
        (
            "gemma3_text",
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"rope_base": 5e5},
        ),
    ],
)
def test_options(family, changes, expected):
    config, _ = parse(family, **changes)
    assert {name: getattr(config, name) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by the layer's number"),
        ("gpt2", {"n_embd": None}, "has no 'n_embd'"),
        ("gpt2", {"activation_function": "tanh"}, "the activation is 'tanh', GPT-2 layers have 'silu' or"),
        ("opt", {"do_layer_norm_before": False}, r"norms behind the residuals \(OPT-350M\)"),
        ("opt", {"layer_norm_elementwise_affine": False}, "norms without weights"),
        ("qwen2", {"hidden_act": ["silu"]}, r"the activation is \['silu'\], Qwen2 layers have 'silu'"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "Gemma 3 has no 'attn_logit_softcapping'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "trained without a causal mask .*EmbeddingGemma"),
        ("gemma", {"use_bidirectional_attention": True}, "trained without a causal mask"),
        ("opt", {"_remove_final_layer_norm": True}, "an OPT without its final norm .*: choose another checkpoint"),
        ("gemma3", {"text_config": [1]}, r"'text_config' is \[1\] instead of an object"),
        (
            "mixtral",
            {},
            "is a 'mixtral' checkpoint, not of a known family: choose an LLM of the type llama, mistral, qwen2",
        ),
    ],
)
def test_refused(family, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(family, **changes)
    assert str(caught.value).startswith("folder/config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["full_attention"] * 3, "'layer_types' has 3 entries for 4 layers"),
        ("full_attention", "'layer_types' has 'full_attention' entries for 4 layers"),
        (["full_attention"] * 3 + ["linear_attention"], "'layer_types' has 'linear_attention', but only full_att"),
        (["full_attention"] * 3 + [[]], r"'layer_types' has \[\], but only"),
    ],
)
def test_kinds_of_layers_that_are_not_known_are_refused(kinds, message, tmp_path):
    """Without a window too."""
    source = llm_models.save(llm_models.tiny("qwen2"), tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_types": kinds}))
    with pytest.raises(UserError, match=message) as caught:
        open_source(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 5}),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 5}),
    ],
)
def test_layers_with_a_window_are_those_of_transformers(family, arguments):
    from transformers import AutoConfig

    arguments = {**SMALLEST[family], **arguments, "num_hidden_layers": 14}
    kinds = AutoConfig.for_model(family, **arguments).layer_types
    found, settings = family_of(Settings({"model_type": family, **arguments}, "config.json"))
    expected = {layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"}
    assert found.sliding_layers(settings, 14) == expected
    assert 0 < len(expected) < 14


CACHE = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen2-7B-AWQ/snapshots/abc"


@pytest.mark.parametrize(
    ("folder", "name_or_path", "original"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", None, "perhaps Qwen/Qwen2.5-7B-Instruct"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", None, "perhaps TheBloke/Mistral-7B-v0.1"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", None, "perhaps Qwen/Qwen2.5-7B-Instruct"),
        ("unsloth/gemma-2-2b-it-bnb-4bit", None, "perhaps unsloth/gemma-2-2b-it"),
        ("Qwen/Qwen3-8B-FP8", None, "perhaps Qwen/Qwen3-8B"),
        ("owner/name-NVFP4", None, "perhaps owner/name"),
        (CACHE, None, "perhaps Qwen/Qwen2-7B"),
        ("/data/models/Qwen3-8B-HQQ-4bit", None, "perhaps Qwen3-8B"),
        ("me/my-model", "Qwen/Qwen3-8B", "perhaps Qwen/Qwen3-8B"),
        ("me/my-model", "Qwen/Qwen3-8B-exl2", "perhaps Qwen/Qwen3-8B"),
        ("me/my-model", "me/my-model", "or a GGUF file of the model"),
        ("me/my-model", ["a"], "or a GGUF file of the model"),
    ],
)
def test_quantized_weights_are_refused_with_the_name_of_the_original(folder, name_or_path, original):
    entries = {"quantization_config": {"quant_method": "awq"}, "_name_or_path": name_or_path}
    with pytest.raises(UserError) as caught:
        parse("qwen2", where=f"{folder}/config.json", **entries)
    assert str(caught.value) == (
        f"{folder}/config.json: the weights are quantized (awq): convert the original repository, whose weights are"
        f" float16, bfloat16 or float32, {original}"
    )


def test_quantized_weights_without_the_name_of_a_method():
    with pytest.raises(UserError, match=r"quantized \(bitsandbytes, 4 bits\)"):
        parse("qwen2", quantization_config={"load_in_4bit": True})


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return llm_models.save(llm_models.tiny("gemma3_text"), tmp_path_factory.mktemp("gemma3") / "source")


@pytest.mark.parametrize(
    ("layers", "base", "factors", "window", "local"),
    [
        ("0,2", 300.0, None, 32, ((), None)),
        ("3,1", 5000.0, (4.0,) * 6, None, ((), None)),
        ("all", 5000.0, (4.0,) * 6, 32, ((0, 2), 300.0)),
        ("1,2,0", 5000.0, (4.0,) * 6, 32, ((1, 2), 300.0)),
    ],
)
def test_layers_of_gemma_3_have_the_rotary_embedding_of_their_kind(
    layers, base, factors, window, local, gemma3, tmp_path
):
    config = convert(gemma3, layers, tmp_path / "block").config
    assert (config.rope_base, config.rope_factors, config.window) == (base, factors, window)
    assert (config.local_layers, config.local_rope_base) == local


def test_layers_of_a_larger_block_are_those_of_a_block_of_their_own(gemma3, tmp_path):
    convert(gemma3, "all", tmp_path / "all")
    for layers in ((2,), (0, 2), (3,), (1, 2, 0)):
        of_all = load_block(tmp_path / "all", layers, final_norm=True)
        convert(gemma3, layers, tmp_path / f"{len(layers)}{layers[0]}")
        alone = load_block(tmp_path / f"{len(layers)}{layers[0]}", None, final_norm=True)
        assert of_all.config == alone.config
        assert of_all.fingerprint == alone.fingerprint
    reordered = load_block(tmp_path / "all", (2, 1, 0), final_norm=True)
    assert reordered.config.local_layers == (0, 2)


def test_two_scaled_rotary_embeddings_in_a_block(gemma3, tmp_path):
    path = llm_models.Path(gemma3) / "config.json"
    fields = json.loads(path.read_text())
    fields["rope_parameters"]["sliding_attention"] |= {"rope_type": "linear", "factor": 2.0}
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(fields))
    (tmp_path / "source" / "model.safetensors").symlink_to(path.with_name("model.safetensors"))
    both = convert(str(tmp_path / "source"), "0,1", tmp_path / "both").config
    assert (both.rope_factors, both.local_rope_factors, both.rope_unsupported) == ((4.0,) * 6, (2.0,) * 6, None)
    one = convert(str(tmp_path / "source"), "0", tmp_path / "one").config
    assert (one.rope_factors, one.local_rope_factors) == ((2.0,) * 6, None)
    assert both.chosen([0]) == one
    for local, frequencies in ((True, 300.0), (False, 5000.0)):
        expected = frequencies ** (-np.arange(0, 12, 2) / 12) / (2 if local else 4)
        np.testing.assert_allclose(rotary.inverse_frequencies(both, local=local), expected, rtol=1e-6)


def test_a_rotary_embedding_of_some_layers_that_is_not_supported(gemma3, tmp_path):
    path = llm_models.Path(gemma3) / "config.json"
    fields = json.loads(path.read_text())
    fields["rope_parameters"]["sliding_attention"] |= {"rope_type": "yarn", "factor": 2.0}
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(fields))
    (tmp_path / "source" / "model.safetensors").symlink_to(path.with_name("model.safetensors"))
    config = convert(str(tmp_path / "source"), "0,1", tmp_path / "both").config
    assert config.rope_unsupported == "the rotary scaling 'yarn' of some of the layers (convert the others alone)"
    assert convert(str(tmp_path / "source"), "1", tmp_path / "one").config.rope_unsupported is None


@pytest.mark.parametrize(("depth", "scale"), [(46, 8**-0.5), (42, None)])
def test_query_scale_of_a_gguf_file(depth, scale, tmp_path):
    """No file says it: Gemma 2 with 46 layers has 1 / sqrt(width / heads)."""
    model = llm_models.tiny("gemma2")
    model.config.num_hidden_layers = depth
    config = open_source(llm_models.write_gguf(model, tmp_path / "model.gguf")).config
    assert (config.query_scale, config.score_cap) == (scale, 2.0)


def test_config_of_gemma_3_before_transformers_5(gemma3, tmp_path):
    """One base for all layers but the sliding ones, which have their own and no scaling."""
    older, source = tmp_path / "older", llm_models.Path(gemma3)
    older.mkdir()
    (older / "model.safetensors").symlink_to(source / "model.safetensors")
    fields = json.loads((source / "config.json").read_text())
    del fields["rope_parameters"], fields["layer_types"]
    fields |= {
        "rope_theta": 5000.0,
        "rope_local_base_freq": 300.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    (older / "config.json").write_text(json.dumps(fields | {"sliding_window_pattern": 2}))
    for layers in ("0,2", "1,3", "all"):
        manifests = [convert(each, layers, tmp_path / f"{layers}{each == gemma3}") for each in (gemma3, str(older))]
        assert manifests[0].config == manifests[1].config


@pytest.mark.parametrize("base", ["language_model.model.", "model.language_model."])
def test_gemma_3_with_a_vision_encoder(base, gemma3, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = llm_models.Path(gemma3)
    weights = load_file(source / "model.safetensors")
    (tmp_path / "both").mkdir()
    save_file(
        {name.replace("model.", base, 1): array for name, array in weights.items()} | {"vision.a": np.zeros(2, "f")},
        tmp_path / "both" / "model.safetensors",
    )
    fields = json.loads((source / "config.json").read_text())
    (tmp_path / "both" / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": fields}))
    manifests = [convert(each, "3", tmp_path / f"{each == gemma3}") for each in (gemma3, str(tmp_path / "both"))]
    assert manifests[0].sha256 == manifests[1].sha256
    assert manifests[0].config == manifests[1].config


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", "transformer."), ("opt", "model."), ("qwen2", "model.")])
def test_weights_without_the_language_model_head(family, prefix, tmp_path):
    """As the authors publish GPT-2 and OPT: the beginning of the names is missing, and old buffers are there."""
    model = llm_models.tiny(family)
    whole = convert(llm_models.save(model, tmp_path / "whole"), "2", tmp_path / "a")
    (tmp_path / "body").mkdir()
    model.config.save_pretrained(tmp_path / "body")
    state = {name.removeprefix(prefix): value.clone() for name, value in model.state_dict().items()}
    if family == "gpt2":
        state |= {"h.2.attn.bias": torch.ones(1, 1, 4, 4), "h.2.attn.masked_bias": torch.tensor(-1e4)}
    torch.save(state, tmp_path / "body" / "pytorch_model.bin")
    assert convert(str(tmp_path / "body"), "2", tmp_path / "b").sha256 == whole.sha256


def test_biases_of_llama(tmp_path):
    from tests.reference import llama_checkpoints

    model = llama_checkpoints.tiny_llama(seed=3, attention_bias=True, mlp_bias=True)
    convert(llama_checkpoints.write_safetensors(model, tmp_path / "source"), "1", tmp_path / "block")
    weights, state = load_block(tmp_path / "block", None, final_norm=False).weights, model.state_dict()
    for name, theirs in (("o_bias", "self_attn.o_proj.bias"), ("gate_bias", "mlp.gate_proj.bias")):
        np.testing.assert_array_equal(weights[name][0], state[f"model.layers.1.{theirs}"])


def test_tensors_of_another_form_are_named(tmp_path):
    """Fused tensors too: the message has the names of the checkpoint."""
    source = llm_models.save(llm_models.tiny("phi3"), tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": 3}))
    with pytest.raises(
        UserError, match=r"layers\.1\.self_attn\.qkv_proj\.weight has the shape \(80, 48\) instead of \(96, 48\)"
    ):
        convert(source, "1", tmp_path / "block")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mistral"}))
    with pytest.raises(UserError, match=r"not part of a decoder layer: model\.layers\.1\.mlp\.gate_up_proj\.weight"):
        convert(source, "1", tmp_path / "block")


def test_an_adapter_that_is_not_merged_is_refused(tmp_path):
    source = llm_models.save(llm_models.tiny("qwen2"), tmp_path / "source", safetensors=False)
    state = torch.load(tmp_path / "source" / "pytorch_model.bin")
    state["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 48)
    torch.save(state, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds an adapter that is not merged.*q_proj\.lora_A.*merge_and_unload"):
        open_source(source)


def test_the_window_is_no_part_of_the_fingerprint(tmp_path):
    source = llm_models.save(llm_models.tiny("mistral"), tmp_path / "source")
    convert(source, "1", tmp_path / "block")
    manifest = read_manifest(tmp_path / "block")
    assert manifest.config.window == 32
    expected = fingerprint_of(manifest, None, True)
    for changes, same in (({"window": None}, True), ({"window": 8}, True), ({"score_cap": 2.0}, False)):
        changed = dataclasses.replace(manifest, config=dataclasses.replace(manifest.config, **changes))
        assert (fingerprint_of(changed, None, True) == expected) == same


def test_the_final_layer_norm_is_loaded_or_plain(tmp_path):
    model = llm_models.tiny("gpt2")
    convert(llm_models.save(model, tmp_path / "source"), "1", tmp_path / "block")
    loaded, plain = (load_block(tmp_path / "block", None, final_norm=norm).tree() for norm in (True, False))
    np.testing.assert_array_equal(loaded["final_norm"], model.transformer.ln_f.weight.detach())
    np.testing.assert_array_equal(loaded["final_norm_bias"], model.transformer.ln_f.bias.detach())
    np.testing.assert_array_equal(plain["final_norm"], np.ones(llm_models.WIDTH))
    np.testing.assert_array_equal(plain["final_norm_bias"], np.zeros(llm_models.WIDTH))


def test_norms_of_gemma_are_stored_as_they_are(tmp_path):
    """In bfloat16 1 + w would lose most digits of w."""
    model = llm_models.tiny("gemma2").bfloat16().float()
    convert(llm_models.save(model, tmp_path / "source"), "1", tmp_path / "block", dtype="bfloat16")
    block, state = load_block(tmp_path / "block", None, final_norm=True), model.state_dict()
    names = {"attention_norm": "input_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
    for ours, theirs in names.items():
        np.testing.assert_array_equal(block.weights[ours][0], state[f"model.layers.1.{theirs}.weight"])
    np.testing.assert_array_equal(block.final_norm, state["model.norm.weight"])
    plain = load_block(tmp_path / "block", None, final_norm=False).tree()["final_norm"]
    np.testing.assert_array_equal(plain, np.zeros(llm_models.WIDTH))


def test_fused_tensors_are_read_once(tmp_path):
    source = open_source(llm_models.save(llm_models.tiny("phi3"), tmp_path / "source"))
    read, reads = source.tensors.read, []
    source.tensors.read = lambda name: reads.append(name) or read(name)
    for part in source.select("3,1", final_norm=False).parts:
        for name in sorted(part.shapes):
            part.read(name, np.dtype(np.float32))
    assert len(reads) == len(set(reads)) == 2 * 6
