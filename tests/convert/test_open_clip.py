"""OpenCLIP's image towers: the encoder that transformers or timm has, in every layout, and what is refused.

The package open_clip is not installed for the tests, so nothing is compared with it: the weights here are those of
transformers' and timm's models, renamed. tests/models/test_vision_encoders.py compares forward passes with timm's.
"""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxboost.convert import Hints, convert, encoders
from jaxboost.convert.formats.huggingface import LocalFolder
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables import vit_open_clip
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.vit import PLAIN
from tests.convert import vision_checkpoints as vision

TOWER = {
    "image_size": vision.IMAGE_SIZE,
    "patch_size": vision.PATCH,
    "width": vision.WIDTH,
    "layers": vision.DEPTH,
    "head_width": vision.WIDTH // vision.HEADS,
    "mlp_ratio": vision.MLP_WIDTH / vision.WIDTH,
    "norm_kwargs": {"eps": vision.EPS},
}
HINTS = Hints(heads=vision.HEADS, eps=vision.EPS, activation="gelu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A model's weights in OpenCLIP's names, and the manifest of the encoder made from transformers' folder of it."""
    folder = tmp_path_factory.mktemp("clip")
    state = vision.open_clip_state(vision.tiny("clip_gelu"), folder / "source")
    return state, convert(str(folder / "source"), "all", folder / "encoder")


def tensors(state):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}


def write_folder(state, folder, *, torch_file=False, quick_gelu=None, tower=TOWER):
    """OpenCLIP's layout."""
    folder.mkdir()
    model = {"embed_dim": 8, "vision_cfg": tower, "text_cfg": {"width": 8, "layers": 1}}
    if quick_gelu is not None:
        model["quick_gelu"] = quick_gelu
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if torch_file:
        torch.save(tensors(state), folder / "open_clip_pytorch_model.bin")
    else:
        save_file({name: np.asarray(array) for name, array in state.items()}, folder / "open_clip_model.safetensors")
    return str(folder)


def refused(source, message, tmp_path, hints=None):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, "all", tmp_path / "out" / "encoder", hints=hints)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def same(manifest, expected, **changes):
    for field in ("image_size", "sha256"):
        assert getattr(manifest, field) == getattr(expected, field), field
    assert manifest.arguments == expected.arguments | changes
    # As OpenCLIP resizes positions.
    assert (manifest.resizing, expected.resizing) == ("antialiased", "bicubic")


@pytest.mark.parametrize(
    ("torch_file", "quick_gelu", "activation"),
    [(False, None, "gelu"), (True, False, "gelu"), (False, True, "quick_gelu")],
)
def test_folder_gives_the_encoder_of_transformers(torch_file, quick_gelu, activation, clip, tmp_path, caplog):
    state, expected = clip
    source = write_folder(state, tmp_path / "source", torch_file=torch_file, quick_gelu=quick_gelu)
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        manifest = convert(source, "all", tmp_path / "encoder")
    same(manifest, expected, activation=activation)
    assert manifest.source_format == ("torch" if torch_file else "safetensors")
    assert (manifest.pixel_mean, manifest.pixel_std) == ((0.5,) * 3, (0.5,) * 3)
    assert "the weights are those under 'visual'\n" in caplog.text
    assert "not read: logit_scale, positional_embedding, transformer, visual.proj\n" in caplog.text
    assert "assumed" not in caplog.text


@pytest.mark.parametrize(
    ("form", "prefix"), [("pt", "visual."), ("pth", "module.visual."), ("safetensors", "visual."), ("pt", "")]
)
def test_file_gives_the_encoder_of_transformers(form, prefix, clip, tmp_path, caplog):
    state, expected = clip
    weights = {name.replace("visual.", prefix): array for name, array in state.items() if name.startswith("visual.")}
    path = tmp_path / f"clip.{form}"
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": tensors(weights), "epoch": 3}, path)
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        same(convert(str(path), "all", tmp_path / "encoder", hints=HINTS), expected)
    assert "assumed, because the weights do not say it: square images of 20 pixels in patches of 4" in caplog.text


def test_a_file_needs_its_activation(clip, tmp_path):
    torch.save(tensors(clip[0]), tmp_path / "clip.pt")
    message = refused(str(tmp_path / "clip.pt"), "the weights do not say the activation, and CLIP models", tmp_path)
    assert "--activation quick_gelu (OpenAI, MetaCLIP, DFN, PubMedCLIP) or --activation gelu (LAION" in message
    hints = Hints(activation="gelu")
    refused(
        str(tmp_path / "clip.pt"), "heads is not known for a width of 24, .*: give it with --heads", tmp_path, hints
    )
    refused(
        str(tmp_path / "clip.pt"), "a width of 24 is not a multiple of 5", tmp_path, Hints(activation="gelu", heads=5)
    )
    refused(str(tmp_path / "clip.pt"), "--activation 'relu' is not one of", tmp_path, Hints(activation="relu"))


def test_layer_scale_and_no_norm_before_the_blocks(clip, tmp_path):
    state = {name: array for name, array in clip[0].items() if ".ln_pre." not in name}
    scales = {
        f"visual.transformer.resblocks.{layer}.ls_{number}.gamma": np.full(vision.WIDTH, layer + number, "f")
        for layer in range(vision.DEPTH)
        for number in (1, 2)
    }
    tower = TOWER | {"ls_init_value": 0.1, "no_ln_pre": True}
    folder = convert(write_folder(state | scales, tmp_path / "source", tower=tower), "all", tmp_path / "encoder")
    torch.save(tensors(state | scales), tmp_path / "clip.pt")
    file = convert(str(tmp_path / "clip.pt"), "all", tmp_path / "file", hints=HINTS)
    assert (file.arguments, file.sha256) == (folder.arguments, folder.sha256)
    assert (folder.arguments["layer_scale"], folder.arguments["pre_norm"]) == (True, False)
    block = dict(encoders.arrays(tmp_path / "encoder", folder, "1"))
    assert (block["attention_scale"] == 2).all()
    assert (block["mlp_scale"] == 3).all()


def test_tower_of_timm(tmp_path, caplog):
    """As BiomedCLIP's: a ViT of timm, with its projection and a BERT beside it."""
    trunk = vision.timm_state(vision.tiny("vit", **vision.TIMM_SHAPE), tmp_path / "source")
    trunk = {name: array for name, array in trunk.items() if not name.startswith("head.")}
    expected = convert(str(tmp_path / "source"), "all", tmp_path / "expected")
    state = {f"visual.trunk.{name}": array for name, array in trunk.items()}
    state |= {"visual.head.proj.weight": np.ones((8, 192), "f"), "logit_scale": np.float32(1)}
    state |= {"text.transformer.embeddings.word_embeddings.weight": np.ones((3, 8), "f")}
    tower = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 20}
    for torch_file in (False, True):
        source = write_folder(state, tmp_path / f"clip-{torch_file}", tower=tower, torch_file=torch_file)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="jaxboost"):
            same(convert(source, "all", tmp_path / f"encoder-{torch_file}"), expected)
        assert "the weights are those under 'visual.trunk'\n" in caplog.text
        assert "not read: logit_scale, text, visual.head\n" in caplog.text
        assert "pooling" not in caplog.text
    # The file alone, as timm's.
    file = convert(str(tmp_path / "clip-True" / "open_clip_pytorch_model.bin"), "all", tmp_path / "file")
    assert (file.arguments, file.sha256) == (expected.arguments, expected.sha256)
    # What timm's configuration would not say either can be stated.
    hinted = convert(source, "all", tmp_path / "hinted", hints=Hints(heads=6))
    assert hinted.arguments == expected.arguments | {"heads": 6}
    refused(
        write_folder(state, tmp_path / "eva", tower=tower | {"timm_model_name": "eva02_base_patch16_clip_224"}),
        "the image tower is timm's eva02_base_patch16_clip_224, which is read only as a ViT",
        tmp_path,
    )


def test_a_convnext_tower_is_refused_with_what_would_work(clip, tmp_path):
    source = write_folder(clip[0], tmp_path / "source", tower={"timm_model_name": "convnext_base", "image_size": 256})
    refused(
        source, "convnext_base, .*: choose an OpenCLIP ViT, such as laion/.*, or a ConvNeXt in timm's names", tmp_path
    )


def test_a_copy_of_transformers_beside_it_is_read(clip, tmp_path):
    write_folder({"other": np.ones(3, "f")}, tmp_path / "source")
    vision.tiny("clip_gelu").save_pretrained(tmp_path / "source")
    assert convert(str(tmp_path / "source"), "all", tmp_path / "encoder") == clip[1]
    # Without its configuration the copy says nothing.
    (tmp_path / "source" / "config.json").unlink()
    refused(
        str(tmp_path / "source"),
        r"missing: all \d+ tensors, such as class_embedding; there are others, such as other;",
        tmp_path,
    )


def timms_copy(folder, weights):
    """Of another model, so that it shows which copy is read."""
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    torch.save({"other": torch.ones(3)}, folder / weights)


def test_it_is_read_where_timms_copy_is_beside_it(clip, tmp_path):
    """OpenCLIP's configuration says the activation."""
    source = write_folder(clip[0], tmp_path / "source", quick_gelu=True)
    timms_copy(tmp_path / "source", "pytorch_model.bin")
    same(convert(source, "all", tmp_path / "encoder"), clip[1], activation="quick_gelu")
    # Without OpenCLIP's weights timm's are read.
    (tmp_path / "source" / "open_clip_model.safetensors").unlink()
    refused(source, "holds no ViT in timm's names", tmp_path)


def test_the_copy_that_is_read_from_the_hub(clip, tmp_path, monkeypatch):
    """Safetensors before `.bin` files, then Hugging Face's; `.bin` files are read by ranges."""

    class Remote(LocalFolder):
        def __init__(self, source):
            super().__init__(tmp_path / source)
            self.path, self.local_path = self.local_path, None

        def where(self, name):
            return name

        def size(self, name):
            return (self.path / name).stat().st_size

        def read_range(self, name, start, stop):
            return np.fromfile(self.path / name, np.uint8, count=stop - start, offset=start)

    monkeypatch.setattr("jaxboost.convert.formats.hub.HubFolder", Remote)
    (tmp_path / "owner").mkdir()
    write_folder(clip[0], tmp_path / "owner" / "first", torch_file=True)
    same(convert("owner/first", "all", tmp_path / "encoder"), clip[1])
    vision.tiny("clip_gelu").save_pretrained(tmp_path / "owner" / "first")
    assert convert("owner/first", "all", tmp_path / "second").resizing == "bicubic"
    write_folder(clip[0], tmp_path / "owner" / "other")
    vision.tiny("clip_gelu").config.save_pretrained(tmp_path / "owner" / "other")
    torch.save({"other": torch.ones(3)}, tmp_path / "owner" / "other" / "pytorch_model.bin")
    same(convert("owner/other", "all", tmp_path / "third"), clip[1])


def test_flags_for_what_the_configuration_says(clip, tmp_path):
    source = write_folder(clip[0], tmp_path / "source")
    refused(
        source,
        "source does not take --heads, --activation: .* leave them out",
        tmp_path,
        Hints(heads=3, activation="gelu"),
    )
    refused(source, "--resizing 'nearest' is not one of", tmp_path, Hints(resizing="nearest"))
    manifest = convert(source, "all", tmp_path / "encoder", hints=Hints(resizing="bicubic", entry="visual"))
    assert (manifest.resizing, manifest.sha256) == ("bicubic", clip[1].sha256)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"open_clip_config\.json, model_cfg has no 'vision_cfg': .*, download it again"),
        ({"model_cfg": {"embed_dim": 8}}, "model_cfg has no 'vision_cfg'"),
        ({"model_cfg": {"vision_cfg": {"timm_model_name": 5}}}, "'timm_model_name' is 5 instead of a name of timm's"),
    ],
)
def test_configurations_that_describe_no_tower(config, message, clip, tmp_path):
    source = write_folder(clip[0], tmp_path / "source")
    (tmp_path / "source" / "open_clip_config.json").write_text(json.dumps(config))
    refused(source, message, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [3, 4, 6, 3]}, "the image tower is a ResNet: choose an OpenCLIP model whose name begins with ViT"),
        (
            {"attentional_pool": True},
            "attentional_pool is True, which is not supported: choose an OpenCLIP",
        ),
        ({"pool_type": "avg"}, "pool_type is 'avg', which is not supported"),
        ({"global_average_pool": True}, "global_average_pool is True"),
        ({"act_kwargs": {"approximate": "tanh"}}, "act_kwargs is {'approximate': 'tanh'}, which is not supported"),
        ({"head_width": 7}, "the width 24 is not a multiple of the heads' 7"),
        ({"image_size": 3}, "images of 3 pixels are smaller than the patch of 4"),
        ({"layers": 2}, r"not part of a ViT's embedding, blocks and norm: visual\.transformer\.resblocks\.2\."),
        ({"layers": 4}, r"missing: visual\.transformer\.resblocks\.3\.ln_1\.weight"),
        ({"width": 32, "head_width": 8}, r"visual\.class_embedding has the shape \(24,\) instead of \(32,\)"),
        ({"image_size": 24}, r"positional_embedding has the shape \(26, 24\) instead of \(37, 24\)"),
        ({"no_ln_pre": True}, r"not part of a ViT's embedding, blocks and norm: visual\.ln_pre\.bias"),
        ({"ls_init_value": 0.1}, r"missing: visual\.transformer\.resblocks\.0\.ls_1\.gamma"),
    ],
)
def test_other_towers_are_refused(changes, message, clip, tmp_path):
    refused(write_folder(clip[0], tmp_path / "source", tower=TOWER | changes), message, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.positional_embedding": (25, 24)}, "positions for 25 tokens, which are not a CLS token and a square"),
        ({"visual.positional_embedding": (1, 26, 24)}, r"has the shape \(1, 26, 24\) instead of 2 axes"),
        ({"visual.conv1.weight": (24, 1, 4, 4)}, r"\(24, 1, 4, 4\) instead of \(24, 3, 4, 4\)"),
        ({"visual.ln_post.bias": None}, r"missing: visual\.ln_post\.bias"),
        ({"visual.attn_pool.query": (3, 24)}, r"not part of a ViT's embedding, blocks and norm: visual\.attn_pool"),
    ],
)
def test_other_files_are_refused(changes, message, clip, tmp_path):
    state = dict(clip[0])
    for name, shape in changes.items():
        if shape is None:
            del state[name]
        else:
            state[name] = np.zeros(shape, np.float32)
    save_file({name: np.asarray(array) for name, array in state.items()}, tmp_path / "clip.safetensors")
    refused(str(tmp_path / "clip.safetensors"), message, tmp_path, HINTS)


def test_an_entry_without_blocks(clip, tmp_path):
    state = {name: array for name, array in clip[0].items() if name.startswith("visual.")}
    aux = {name.replace("visual", "aux"): array for name, array in state.items() if "resblocks" not in name}
    save_file(state | aux, tmp_path / "clip.safetensors")
    hints = Hints(activation="gelu", heads=vision.HEADS, entry="aux")
    message = r"holds no block, no tensor's name begins with aux\.transformer\.resblocks\.0\.: check --entry"
    refused(str(tmp_path / "clip.safetensors"), message, tmp_path, hints)


def test_folders_that_are_not_whole(clip, tmp_path):
    source = write_folder(clip[0], tmp_path / "source")
    weights = tmp_path / "source" / "open_clip_model.safetensors"
    assert load_file(weights).keys() == clip[0].keys()
    weights.rename(tmp_path / "source" / "weights")
    refused(source, r"has no weights: none of open_clip_model\.safetensors, .*bin", tmp_path)
    (tmp_path / "source" / "weights").rename(weights)
    (tmp_path / "source" / "open_clip_config.json").unlink()
    message = refused(source, r"holds open_clip_model\.safetensors but no open_clip_config\.json", tmp_path)
    assert message.endswith(f": download it too, or pass {weights} with --activation")


@pytest.mark.parametrize(
    ("backbone", "model", "values"),
    [
        ("openclip_vit_b32", {}, {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}),
        ("openclip_vit_b16", {}, {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}),
        ("openclip_vit_l14", {}, {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}),
        ("clip_vit_b16", {"quick_gelu": True}, {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}),
        ("clip_vit_l14", {"quick_gelu": True}, {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14}),
    ],
)
def test_the_published_models_are_the_backbones_of_their_names(backbone, model, values):
    """From the configurations in OpenCLIP's repository."""
    arguments, image_size = vit_open_clip.parse_tower(Settings({"vision_cfg": values} | model, "open_clip_config.json"))
    assert arguments == PLAIN | BACKBONES[backbone].arguments
    assert image_size == values["image_size"]
