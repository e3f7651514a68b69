"""LoRA adapters in peft's files, merged: against torch's own products, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxboost import load_config
from jaxboost.convert import convert
from jaxboost.convert.formats.huggingface import LocalFolder
from jaxboost.convert.store import load_block
from jaxboost.errors import UserError
from jaxboost.systems import blocks
from tests.reference import llama_checkpoints, llm_models

RANK, ALPHA = 3, 5.0
# Our matrices -> the model's linear maps that the adapter changes, and whether they are stored as (in, out).
TARGETS = {
    "qwen2": ({"q": "self_attn.q_proj", "down": "mlp.down_proj"}, "model.layers", False),
    "phi3": ({"k": "self_attn.qkv_proj", "up": "mlp.gate_up_proj"}, "model.layers", False),
    "gpt2": ({"v": "attn.c_attn", "o": "attn.c_proj"}, "transformer.h", True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for family in TARGETS:
        llm_models.save(llm_models.tiny(family), tmp_path_factory.getbasetemp() / "merging" / family)
    return tmp_path_factory.getbasetemp() / "merging"


def adapter(family, folder, **changes):
    """Writes an adapter of layers 1 and 2 in peft's form, and returns its folder and its tensors."""
    modules, base, in_out = TARGETS[family]
    state, tensors = llm_models.tiny(family).state_dict(), {}
    generator = torch.Generator().manual_seed(5)
    for layer in (1, 2):
        for module in modules.values():
            name = f"{base}.{layer}.{module}"
            rows, columns = state[f"{name}.weight"].shape[:: -1 if in_out else 1]
            for each, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                tensors[f"base_model.model.{name}.lora_{each}.weight"] = torch.randn(shape, generator=generator) / 4
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False} | changes
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder, tensors


@pytest.mark.parametrize(
    ("family", "rslora", "scale"),
    [
        ("qwen2", False, ALPHA / RANK),
        ("qwen2", True, ALPHA / 3**0.5),
        ("phi3", False, ALPHA / RANK),
        ("gpt2", True, ALPHA / 3**0.5),
    ],
)
def test_merged_weights_are_those_of_a_merged_checkpoint(family, rslora, scale, folder, tmp_path):
    path, tensors = adapter(family, tmp_path / "adapter", use_rslora=rslora)
    manifest = convert(folder / family, "2,0", tmp_path / "block", adapter=path)
    assert manifest.source == f"{family} + adapter"
    model = llm_models.tiny(family)
    state, (modules, base, in_out) = model.state_dict(), TARGETS[family]
    plain = convert(folder / family, "2,0", tmp_path / "plain")
    for module in modules.values():
        for layer in (1, 2):
            name = f"{base}.{layer}.{module}"
            a, b = (tensors[f"base_model.model.{name}.lora_{each}.weight"] for each in "AB")
            change = scale * torch.einsum("or,ri->oi", b, a)
            state[f"{name}.weight"] += change.T if in_out else change
    convert(llm_models.save(model, tmp_path / "merged"), "2,0", tmp_path / "expected")
    found, expected = (load_block(tmp_path / each, None, final_norm=True).weights for each in ("block", "expected"))
    for name, reference in expected.items():
        np.testing.assert_allclose(found[name], reference, rtol=1e-6, atol=1e-6, err_msg=name)
    unchanged = load_block(tmp_path / "plain", None, final_norm=True).weights
    for name in modules:
        assert np.abs(found[name][0] - unchanged[name][0]).max() > 0.1
        np.testing.assert_array_equal(found[name][1], unchanged[name][1])
    assert manifest.sha256["0"] == plain.sha256["0"]


def test_an_adapter_of_the_hub_in_a_bin_file(folder, tmp_path, monkeypatch):
    """The `.bin` file is read by ranges, or on this machine by torch, with the same result as safetensors."""
    path, tensors = adapter("qwen2", tmp_path / "adapter")
    expected = convert(folder / "qwen2", "1", tmp_path / "expected", adapter=path)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors and no adapter_model.bin"):
        convert(folder / "qwen2", "1", tmp_path / "none", adapter=path)
    torch.save(tensors, path / "adapter_model.bin")
    assert convert(folder / "qwen2", "1", tmp_path / "local", adapter=path).sha256 == expected.sha256

    class Remote(LocalFolder):
        def __init__(self, source):
            assert source == "owner/adapter"
            super().__init__(path)
            self.where, self.size = str, lambda name: (path / name).stat().st_size
            self.read_range = lambda name, *span: np.fromfile(path / name, np.uint8)[slice(*span)]
            self.local_path, self.source = None, f"{source}@abc"

    monkeypatch.setattr("jaxboost.convert.formats.hub.HubFolder", Remote)
    remote = convert(folder / "qwen2", "1", tmp_path / "remote", adapter="owner/adapter")
    assert remote.sha256 == expected.sha256
    assert (remote.source, remote.adapter) == ("qwen2 + owner/adapter@abc", "owner/adapter")
    torch.save({name: value.double() for name, value in tensors.items()}, path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"bin: .*\.lora_A\.weight is stored as double: only float32, "):
        convert(folder / "qwen2", "1", tmp_path / "none", adapter="owner/adapter")


def test_a_config_names_the_adapter(folder, tmp_path):
    path, _ = adapter("qwen2", tmp_path / "adapter")

    def found(**fields):
        values = {
            "boost.source": str(folder / "qwen2"),
            "boost.layers": (1,),
            "boost.convert": True,
            "model.dtype": "float32",
        }
        config = load_config("quickstart", **values | {f"boost.{name}": value for name, value in fields.items()})
        return blocks.find_layers("boost", config, used=True, default="-1", with_weights=True, recorded=None)

    merged = found(block=str(tmp_path / "merged"), adapter=str(path)).manifest
    assert merged.source == "qwen2 + adapter"
    assert found(block=str(tmp_path / "merged"), adapter=str(path)).manifest == merged
    assert found(block=str(tmp_path / "merged"), convert=False).manifest == merged
    assert found(block=str(tmp_path / "plain")).manifest.source == "qwen2"
    assert "adapter" not in (tmp_path / "plain" / "manifest.json").read_text()
    # Another adapter whose folder has the same name.
    other, _ = adapter("qwen2", tmp_path / "second" / "adapter", lora_alpha=ALPHA + 1)
    for block, given, message in (
        ("plain", path, r"no recorded adapter was merged into the block .*plain .*: leave .* `--adapter .*--overwrite"),
        ("merged", other, r"another adapter was merged into the block .*merged \(from qwen2 \+ adapter\): leave "),
        ("merged", "", "it is empty, but an adapter was merged into the block .*: name another boost.block"),
        ("merged", tmp_path / "gone", "there is no file or folder .*gone: check the path"),
    ):
        with pytest.raises(UserError, match=f"^config field boost.adapter: {message}") as caught:
            found(block=str(tmp_path / block), adapter=str(given))
        assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match=rf"--source {folder / 'qwen2'} --part block --layers 1 --adapter {path} --out "
    ):
        found(block=str(tmp_path / "other"), adapter=str(path), convert=False)


def test_names_without_the_beginning_of_the_language_model(folder, tmp_path):
    """As GPT-2 is published, while its adapters are of the model with a head."""
    path, _ = adapter("gpt2", tmp_path / "adapter")
    body = tmp_path / "body"
    body.mkdir()
    (body / "config.json").write_text((folder / "gpt2" / "config.json").read_text())
    state = load_file(folder / "gpt2" / "model.safetensors")
    save_file({name.removeprefix("transformer."): value for name, value in state.items()}, body / "model.safetensors")
    of_body, whole = (
        convert(each, "1", tmp_path / f"of-{each.name}", adapter=path) for each in (body, folder / "gpt2")
    )
    assert of_body.sha256 == whole.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"DoRA \('use_dora'\) is not supported, only a plain LoRA is: merge it with peft"),
        ({"modules_to_save": ["lm_head"]}, r"whole modules that were trained too \('modules_to_save'\)"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks that differ"),
        ({"bias": "all"}, "biases that were trained too"),
        ({"peft_type": "IA3"}, "the type 'IA3' is not supported"),
        ({"init_lora_weights": "pissa"}, "the start 'pissa'"),
        ({"init_lora_weights": ["a"]}, r"the start \['a'\]"),
        ({"lora_alpha": "5"}, "'lora_alpha' is '5' instead of a positive number"),
        ({"r": 4}, r"have the shapes \(3, 56\) and \(48, 3\) instead of \(4, 56\)"),
    ],
)
def test_other_adapters_are_refused(changes, message, folder, tmp_path):
    path, _ = adapter("qwen2", tmp_path / "adapter", **changes)
    with pytest.raises(UserError, match=message) as caught:
        convert(folder / "qwen2", "1", tmp_path / "block", adapter=path)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    def refused(message, source, path):
        with pytest.raises(UserError, match=message) as caught:
            convert(source, "1", tmp_path / "block", adapter=path)
        assert "\n" not in str(caught.value)

    path, tensors = adapter("qwen2", tmp_path / "adapter")
    wider = llm_models.save(llm_models.tiny("qwen2", num_attention_heads=12, head_dim=8), tmp_path / "wider")
    refused("have the shapes .*: give the model that the adapter was trained with as --source", wider, path)
    refused("it changes model.layers.1.self_attn.q_proj, which phi3 does not have", folder / "phi3", path)
    gguf = llama_checkpoints.write_gguf(llama_checkpoints.tiny_llama(seed=1), tmp_path / "gguf")
    refused("is not an LLM in Hugging Face's layout: leave --adapter out", gguf, path)
    refused("there is no file or folder .*nowhere: check the path", folder / "qwen2", tmp_path / "nowhere")
    refused("nor a hub repository like owner/name: check the adapter", folder / "qwen2", "word")
    refused("is a file: give the adapter's folder", folder / "qwen2", path / "adapter_config.json")
    refused("it has no adapter_config.json", folder / "qwen2", folder / "qwen2")
    more = {"base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector": torch.ones(48)}
    save_file(tensors | more, path / "adapter_model.safetensors")
    refused("is no part of a plain LoRA", folder / "qwen2", path)
    tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    save_file(tensors, path / "adapter_model.safetensors")
    refused("has no 'base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'", folder / "qwen2", path)
