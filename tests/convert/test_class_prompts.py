"""CLIP's text encoder and class prompts: what is stored, and what is refused in one line."""

import json
import shutil

import pytest
import transformers
from safetensors.numpy import load_file, save_file

from jaxboost.convert import class_prompts, convert, text_encoders
from jaxboost.convert.store import read_manifest as read_block
from jaxboost.errors import UserError
from tests.convert import clip_checkpoints as clip
from tests.convert import vision_checkpoints as vision
from tests.convert.changed_manifests import rewrite
from tests.scripts import run_inside


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a source, its text encoder and its vision encoder in both precisions."""
    folder = tmp_path_factory.mktemp("clip")
    source = clip.write(folder / "source")
    (folder / "prompts.json").write_text(json.dumps(clip.PROMPTS))
    class_prompts.convert_text(source, folder / "prompts.json", folder / "text")
    for dtype in ("float32", "bfloat16"):
        convert(source, "all", folder / dtype, dtype=dtype)
    return folder


@pytest.fixture
def source(folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(folder / "source", tmp_path / "source")


def fingerprint(folder, *, prompts=True):
    return text_encoders.fingerprint_at(folder, prompts=prompts)


def refused(source, message, tmp_path, prompts=None):
    with pytest.raises(UserError, match=message) as caught:
        class_prompts.convert_text(str(source), prompts or clip.PROMPTS, tmp_path / "out" / "text")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_manifest(folder):
    manifest = text_encoders.read_manifest(folder / "text")
    assert (manifest.kind, manifest.source, manifest.source_format) == ("text", "source", "safetensors")
    assert manifest.names == ("dark", "grey", "light")
    assert [each.called for each in manifest.classes] == ["dark", "half light", "light"]
    assert manifest.classes[0].prompts == ("a dark image", "an image without light")
    assert manifest.vision_width == vision.WIDTH
    parts = ("classes", "prompts", "text", *(f"layer_{layer:05d}" for layer in range(clip.DEPTH)))
    assert {path.name for path in (folder / "text").iterdir()} == {
        "manifest.json",
        *(f"{part}.safetensors" for part in parts),
    }
    for path in (folder / "text").iterdir():
        assert str(folder).encode() not in path.read_bytes(), path


def test_fingerprint_knows_the_prompts(folder, tmp_path):
    found = fingerprint(folder / "text")
    source = str(folder / "source")
    class_prompts.convert_text(source, clip.PROMPTS, tmp_path / "again")
    assert fingerprint(tmp_path / "again") == found
    class_prompts.convert_text(source, clip.PROMPTS | {"light": ["light"]}, tmp_path / "other")
    assert fingerprint(tmp_path / "other") != found
    # CoOp reads the class names, and no embedding that torch computed.
    found = fingerprint(folder / "text", prompts=False)
    assert fingerprint(tmp_path / "other", prompts=False) == found
    called = {"light": {"prompts": ["a light image"], "called": "bright"}}
    class_prompts.convert_text(source, clip.PROMPTS | called, tmp_path / "called")
    assert fingerprint(tmp_path / "called", prompts=False) != found


def test_command(folder, tmp_path):
    arguments = ("--source", folder / "source", "--out", tmp_path / "text")
    done = run_inside("convert_weights.py", *arguments, "--prompts", folder / "prompts.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "source   source (safetensors)",
        "classes  dark (2), grey (1), light (1): the number of prompts",
    ]
    text = tmp_path / "text"
    assert f"use it   --config.baseline.text={text}, or --config.clip.text={text}" in done.stdout
    assert fingerprint(tmp_path / "text") == fingerprint(folder / "text")

    both = ("--prompts", folder / "prompts.json", "--adapter", "owner/name")
    done = run_inside("convert_weights.py", *arguments, *both, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --adapter is not for the text encoder")
    assert len(done.stderr.splitlines()) == 1


def test_overwrite(folder, tmp_path):
    source, out = str(folder / "source"), tmp_path / "text"
    class_prompts.convert_text(source, clip.PROMPTS, out)
    with pytest.raises(UserError, match="is a text encoder already: choose another folder, or replace it with --over"):
        class_prompts.convert_text(source, clip.PROMPTS, out)
    class_prompts.convert_text(source, {"one": ["a light"]}, out, overwrite=True)
    assert text_encoders.read_manifest(out).names == ("one",)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"dark": []}, "class 'dark' has no prompt: give at least one"),
        ({"dark": {"called": "dark"}}, "class 'dark' has no prompt"),
        ({"dark": "a dark image"}, "prompts of class 'dark' are 'a dark image': give a list"),
        ({"dark": 5}, "prompts of class 'dark' are 5: give a list, even of one"),
        ({"dark": True}, "prompts of class 'dark' are True: give a list, even of one"),
        (
            {"dark": {"prompts": {"a dark image": 0.7}}},
            "class 'dark' are {'a dark image': 0.7}: give a list",
        ),
        ({"dark": ["a"] * 1001}, "class 'dark' has more than 1000 prompts: give fewer"),
        ({"dark": ["a dark image", " "]}, "class 'dark' has a text that is empty, too long or no text: ' '"),
        ({"dark": [1]}, "class 'dark' has a text that is empty, too long or no text: 1"),
        ({"dark": {"prompts": ["a"], "prompt": "b"}}, "class 'dark' has the entry 'prompt', not prompts or called"),
        ({"dark": ["a " * 40]}, "has 42 tokens, more than the text encoder's 32: make it shorter"),
        ({"dark": {"prompts": ["a"], "called": "a " * 40}}, "has 43 tokens, more than"),
        ({"dark": [f"a {clip.END} b"]}, "has a special or unknown token among its words"),
        ({"dark": [f"a {clip.START} b"]}, "has a special or unknown token among its words"),
        ({"dark": ["übel"]}, "has a special or unknown token among its words"),
    ],
)
def test_prompts_that_are_refused(folder, prompts, message, tmp_path):
    refused(folder / "source", message, tmp_path, prompts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "there are no classes"),
        ("{}", "there are no classes"),
        ('{"a": ["x"], "a": ["y"]}', "names 'a' twice: give all prompts of a class in one list"),
        (None, "there is no file"),
    ],
)
def test_files_of_prompts_that_are_refused(folder, content, message, tmp_path):
    if content is not None:
        (tmp_path / "prompts.json").write_text(content)
    refused(folder / "source", message, tmp_path, tmp_path / "prompts.json")


def test_one_tower_alone_is_refused(source, tmp_path):
    model = clip.tiny()
    text = transformers.CLIPTextModelWithProjection(model.config.text_config)
    image = transformers.CLIPVisionModelWithProjection(model.config.vision_config)
    for half, message in (
        (text, "source is a text encoder without its vision encoder.*pass a CLIP that has both"),
        (image, "source is a vision encoder without its text encoder.*pass a CLIP that has both"),
    ):
        half.save_pretrained(source)
        refused(source, message, tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    refused(source, r"source is no CLIP \(model_type 'vit'\)", tmp_path)
    (source / "config.json").rename(source / "open_clip_config.json")
    refused(source, r"source is a CLIP in OpenCLIP's layout, of which the tower of images alone is read", tmp_path)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"projection_dim": 16}, {}, r"visual_projection.weight has the shape \(48, 24\) instead of \(16, 24\)"),
        ({}, {"visual_projection.weight": None}, "missing: visual_projection.weight"),
        ({}, {"text_model.final_layer_norm.bias": None}, "missing: text_model.final_layer_norm.bias"),
        ({"text_config": {"hidden_act": "relu"}}, {}, "the activation is 'relu', not one of gelu, quick_gelu"),
        ({"text_config": {"num_attention_heads": 3}}, {}, "the width 20 is not a multiple of 3 heads"),
        ({"text_config": {"eos_token_id": 5}}, {}, "the tokenizer's 64 tokens, with the end 63, are not those of"),
        ({"text_config": {"vocab_size": 63}}, {}, "token_embedding.weight has the shape"),
    ],
)
def test_checkpoints_that_do_not_fit(source, config, tensors, message, tmp_path):
    values = json.loads((source / "config.json").read_text())
    for name, value in config.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    (source / "config.json").write_text(json.dumps(values))
    state = load_file(source / "model.safetensors") | tensors
    save_file({name: array for name, array in state.items() if array is not None}, source / "model.safetensors")
    refused(source, message, tmp_path)


def test_early_files_have_another_end(source, folder, tmp_path):
    """config.json of CLIP's published checkpoints says that the end has the number 2."""
    values = json.loads((source / "config.json").read_text())
    values["text_config"]["eos_token_id"] = 2
    (source / "config.json").write_text(json.dumps(values))
    class_prompts.convert_text(str(source), clip.PROMPTS, tmp_path / "text")
    assert fingerprint(tmp_path / "text") == fingerprint(folder / "text")


def test_early_files_have_a_second_section_that_wins(source, folder, tmp_path):
    values = json.loads((source / "config.json").read_text())
    values["text_config_dict"] = values["text_config"]
    values["text_config"] = values["text_config"] | {"num_attention_heads": 4, "layer_norm_eps": 1.0}
    (source / "config.json").write_text(json.dumps(values))
    theirs = transformers.CLIPConfig.from_pretrained(source).text_config
    class_prompts.convert_text(str(source), clip.PROMPTS, tmp_path / "text")
    arguments = text_encoders.read_manifest(tmp_path / "text").arguments
    assert (arguments["heads"], arguments["eps"]) == (theirs.num_attention_heads, theirs.layer_norm_eps)
    assert fingerprint(tmp_path / "text") == fingerprint(folder / "text")


def test_tokenizers_that_are_missing_or_of_another_model(source, tmp_path):
    numbers = clip.vocabulary()
    (source / "vocab.json").write_text(json.dumps({name: 2 * number for name, number in numbers.items()}))
    refused(source, "the tokenizer's 64 tokens, with the end 126, are not those of the text encoder, 64", tmp_path)
    # As many tokens with the end in another place, where config.json does not say where it is.
    swapped = numbers | {clip.END: numbers["a"], "a": numbers[clip.END]}
    (source / "vocab.json").write_text(json.dumps(swapped))
    values = json.loads((source / "config.json").read_text())
    for end in (2, None):
        values["text_config"]["eos_token_id"] = end
        (source / "config.json").write_text(json.dumps(values))
        refused(source, "tokens, with the end 0, are not those of the text encoder, 64 with the end 63", tmp_path)
    (source / "vocab.json").unlink()
    (source / "merges.txt").unlink()
    refused(source, "has no tokenizer", tmp_path)


def test_sources_that_are_no_folder(tmp_path):
    refused(tmp_path / "nowhere", "there is no file or folder .*nowhere: check the path", tmp_path)
    for given in ("word", "a b/c"):
        refused(given, "is neither an existing file or folder, nor a hub repository like owner/name", tmp_path)


def test_classes_of_another_data_set(folder):
    with pytest.raises(UserError, match="has no prompt for the class 'blue': the data set's classes are") as caught:
        text_encoders.load_classes(folder / "text", ("dark", "grey", "light", "blue"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has prompts for the unknown class 'light': the data set's classes are"):
        text_encoders.load_classes(folder / "text", ("dark", "grey"))
    with pytest.raises(UserError, match="no prompt for the class 'Dark', and it has prompts for the unknown class 'da"):
        text_encoders.load_classes(folder / "text", ("Dark", "grey", "light"))


def test_vision_encoder_of_another_checkpoint(folder, tmp_path):
    for dtype, computed in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")):
        text_encoders.check_vision(folder / "text", folder / dtype, dtype=computed)
    with pytest.raises(UserError, match=r"was rounded to bfloat16, and model\.dtype=float32 asks for more: convert it"):
        text_encoders.check_vision(folder / "text", folder / "bfloat16", dtype="float32")
    vision.tiny("clip_gelu").save_pretrained(tmp_path / "other")
    state = load_file(tmp_path / "other" / "model.safetensors")
    name = next(name for name in state if name.endswith("post_layernorm.bias"))
    save_file(state | {name: state[name] + 1}, tmp_path / "other" / "model.safetensors")
    convert(str(tmp_path / "other"), "all", tmp_path / "encoder")
    with pytest.raises(UserError, match="which has other weights than that of its checkpoint: convert both from"):
        text_encoders.check_vision(folder / "text", tmp_path / "encoder", dtype="float32")
    wide = {"hidden_size": 30, "intermediate_size": 16}
    vision.tiny("clip_gelu", **wide).save_pretrained(tmp_path / "wide")
    convert(str(tmp_path / "wide"), "all", tmp_path / "wide-encoder")
    with pytest.raises(UserError, match="which is of width 30, not 24: convert both from the same checkpoint"):
        text_encoders.check_vision(folder / "text", tmp_path / "wide-encoder", dtype="float32")


def test_damaged_folders(folder, tmp_path):
    classes = ("dark", "grey", "light")
    copy = shutil.copytree(folder / "text", tmp_path / "text")
    part = copy / "classes.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"classes\.safetensors is altered or truncated: convert again"):
        text_encoders.load_classes(copy, classes)
    rewrite(copy, lambda fields: fields["classes"][0].update(end=99))
    with pytest.raises(UserError, match="a class name has more than 32 tokens"):
        text_encoders.load_classes(copy, classes)
    rewrite(copy, lambda fields: fields["classes"][0].update(end=5, name="grey"))
    with pytest.raises(UserError, match="a class is named twice"):
        text_encoders.load_classes(copy, classes)


def test_other_kinds_of_folders(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds a vision encoder, not a text encoder.*--prompts FILE --out DIR"):
        text_encoders.read_manifest(folder / "float32")
    with pytest.raises(UserError, match=r"holds a text encoder, not a block.*--layers LAYERS --out DIR"):
        read_block(folder / "text")
    with pytest.raises(UserError, match=r"there is no text encoder at .*--source SOURCE --prompts FILE --out"):
        text_encoders.read_manifest(tmp_path / "nowhere")
