"""ViTs in timm's names: the encoder that transformers has, in every kind of file, and what is assumed."""

import logging

import pytest
import torch
from safetensors.numpy import load_file

from jaxboost.convert import Hints, convert, encoders
from jaxboost.models.backbones import BACKBONES
from tests.convert import vision_checkpoints as vision
from tests.convert.timm_files import refused, vit_state, write, write_folder

# Class of an activation in timm -> its name here.
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


@pytest.fixture(scope="module")
def state():
    return vit_state()


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def published(request, tmp_path_factory):
    """A model's weights in timm's names, and the manifest of the encoder made from transformers' folder of it."""
    folder = tmp_path_factory.mktemp(request.param)
    state = vision.timm_state(vision.tiny(request.param, **vision.TIMM_SHAPE), folder / "source")
    return state, convert(str(folder / "source"), "all", folder / "encoder")


@pytest.mark.parametrize(
    "form",
    [
        "folder",
        "folder of a pickle",
        "transformers' wrapper",
        "safetensors",
        "pth",
        "pth in model",
        "pt in state_dict",
        "bin of data parallel",
    ],
)
def test_every_form_gives_the_same_encoder(form, published, tmp_path):
    weights, expected = published
    source, source_format = write(form, weights, tmp_path)
    manifest = convert(source, "all", tmp_path / "encoder")
    for field in ("arguments", "image_size", "sha256"):
        assert getattr(manifest, field) == getattr(expected, field), field
    assert manifest.source_format == source_format
    assert str(tmp_path) not in manifest.source
    assert encoders.fingerprint_at(tmp_path / "encoder")


def test_what_is_assumed_is_said(state, tmp_path, caplog):
    source, _ = write("safetensors", state, tmp_path)
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        convert(source, "all", tmp_path / "encoder")
        assumed = (
            "assumed, because the weights do not say it: 3 heads of 64, as timm's ViTs of width 192 have (--heads); "
            "eps 1e-06 (--eps); GELU by erf (--activation); bicubic resizing of positions (--resizing); "
            "square images of 20 pixels in patches of 4 without overlap\n"
        )
        assert assumed in caplog.text
        caplog.clear()
        hints = Hints(heads=6, eps=1e-5, activation="quick_gelu", resizing="antialiased")
        manifest = convert(source, "all", tmp_path / "hinted", hints=hints)
        assert "assumed, because the weights do not say it: square images of 20 pixels" in caplog.text
        caplog.clear()
        folder = convert(write_folder(state, tmp_path / "timm"), "all", tmp_path / "folder")
        assert "assumed, for" not in caplog.text
    found = {name: manifest.arguments[name] for name in ("heads", "eps", "activation")}
    assert found == {"heads": 6, "eps": 1e-5, "activation": "quick_gelu"}
    assert (manifest.resizing, folder.resizing) == ("antialiased", "antialiased")
    # They are constants of the function, so that another is another encoder.
    assert len({encoders.fingerprint_at(tmp_path / name) for name in ("encoder", "hinted", "folder")}) == 3


def test_a_width_of_its_own_needs_its_heads(state, tmp_path):
    model = vision.tiny("vit", **vision.TIMM_SHAPE | {"hidden_size": 48, "num_attention_heads": 4})
    weights = vision.timm_state(model, tmp_path / "source")
    weights = {name: array for name, array in weights.items() if not name.startswith("head")}
    source, _ = write("safetensors", weights, tmp_path)
    refused(source, "heads is not known for a width of 48, .*: give it with --heads", tmp_path)
    expected = convert(str(tmp_path / "source"), "all", tmp_path / "expected")
    manifest = convert(source, "all", tmp_path / "encoder", hints=Hints(heads=4))
    assert (manifest.arguments, manifest.sha256) == (expected.arguments, expected.sha256)


def test_registers_of_dinov2s_own_checkpoint(tmp_path):
    """Under their own name, with a position for CLS and none for them."""
    model = vision.tiny("dinov2_registers", **vision.TIMM_SHAPE)
    weights = vision.timm_state(model, tmp_path / "source")
    published = load_file(tmp_path / "source" / "model.safetensors")
    weights["register_tokens"] = published["embeddings.register_tokens"]
    expected = convert(str(tmp_path / "source"), "all", tmp_path / "expected")
    manifest = convert(write("safetensors", weights, tmp_path)[0], "all", tmp_path / "encoder")
    assert manifest.arguments == expected.arguments
    assert manifest.arguments["registers"] == 3
    assert (manifest.sha256, manifest.resizing) == (expected.sha256, expected.resizing)


@pytest.fixture(scope="module")
def clip_state():
    pytest.importorskip("timm")
    model = vision.tiny_timm(pre_norm=True, num_classes=0)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


NOTE = "natively QuickGELU, use quickgelu model variant for original results"


@pytest.mark.parametrize(
    ("tag", "notes", "activation", "refusal"),
    [
        ("openai", [NOTE], "gelu", "'openai'"),
        ("metaclip_400m", [], "gelu", "'metaclip_400m'"),
        ("dfn2b", None, "gelu", "'dfn2b'"),
        # Of the models of LAION-400M one has QuickGELU.
        ("laion400m_e32", [NOTE], "gelu", "'laion400m_e32'"),
        ("openai_ft_in12k_in1k", None, "gelu", None),
        ("laion2b", None, "gelu", None),
        (None, None, "gelu", None),
        ("openai", [NOTE], "quick_gelu", None),
    ],
)
def test_quick_gelu_of_timms_clips(tag, notes, activation, refusal, clip_state, tmp_path, caplog):
    """timm has one set of weights under two architectures, and computes the activation of the name."""
    variant = "quickgelu_" * (activation == "quick_gelu")
    pixels = {"mean": [0.25] * 3, "std": [0.5] * 3}
    config = {"architecture": f"vit_base_patch32_clip_{variant}224"}
    config["pretrained_cfg"] = {"tag": tag, "notes": notes} | pixels
    source = write_folder(clip_state, tmp_path / "timm", **config)
    if refusal is None:
        with caplog.at_level(logging.INFO, logger="jaxboost"):
            manifest = convert(source, "all", tmp_path / "encoder")
        assert manifest.arguments["activation"] == activation
        assert (manifest.pixel_mean, manifest.pixel_std) == ((0.25,) * 3, (0.5,) * 3)
        assert ("its config.json has neither tag nor notes" in caplog.text) == (tag is None)
        return
    message = refused(source, "were trained with QuickGELU, or may have been, but timm's vit_base_patch32", tmp_path)
    assert f"the weights {refusal} were" in message
    for stated in ("gelu", "quick_gelu"):
        manifest = convert(source, "all", tmp_path / stated, hints=Hints(activation=stated))
        assert manifest.arguments["activation"] == stated


def test_only_with_a_pooling_are_both_forms_of_gelu_one_backbone():
    vit, siglip = (BACKBONES[name].recorded_arguments for name in ("vit_b16", "siglip_b16"))
    assert BACKBONES["vit_b16"].differing(vit | {"activation": "gelu_tanh"}) == ["activation gelu_tanh, not gelu"]
    row = BACKBONES["siglip_b16"]
    assert row.differing(siglip | {"activation": "gelu"}) == []
    assert row.differing(siglip | {"activation": "quick_gelu"}) == ["activation quick_gelu, not gelu_tanh"]


def test_pool_of_siglip(tmp_path, caplog):
    """A file alone has the GELU of SigLIP's authors; a folder that of timm's model."""
    pytest.importorskip("timm")
    model = vision.tiny_timm(class_token=False, global_pool="map", num_classes=0)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        file = convert(write("safetensors", weights, tmp_path)[0], "all", tmp_path / "file")
        assert "GELU by tanh (--activation); bicubic resizing" in caplog.text
        caplog.clear()
        source = write_folder(weights, tmp_path / "timm", architecture="vit_base_patch16_siglip_224", global_pool="map")
        folder = convert(source, "all", tmp_path / "folder")
        assert "assumed" not in caplog.text
        assert "pooling of its tokens" not in caplog.text
    assert (file.arguments["activation"], folder.arguments["activation"]) == ("gelu_tanh", "gelu")
    assert (file.arguments["pooling"], file.sha256) == ("map", folder.sha256)
    assert (tmp_path / "file" / "pool.safetensors").exists()
    assert file.image_size == vision.IMAGE_SIZE


def test_heads_that_the_configuration_says(state, tmp_path):
    source = write_folder(state, tmp_path / "timm", model_args={"num_heads": 4, "img_size": 20})
    assert convert(source, "all", tmp_path / "encoder").arguments["heads"] == 4


def test_real_architectures_are_read_as_they_are(tmp_path):
    """The shapes, heads, eps and activation of timm's own models of these names; no weight is computed."""
    timm = pytest.importorskip("timm")
    from jaxboost.convert.formats.settings import Settings
    from jaxboost.convert.formats.tensors import TensorInfo
    from jaxboost.convert.tables import vit_timm

    class Shapes:
        source, source_format = "model", "safetensors"

        def __init__(self, model):
            self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            self.names = self.shapes.keys()

        def info(self, name):
            return TensorInfo(self.shapes[name])

    named = {
        "vit_tiny_patch16_224": "vit_ti16",
        "vit_small_patch16_224": "vit_s",
        "deit_small_patch16_224": "vit_s",
        "vit_base_patch16_224": "vit_b16",
        "vit_base_patch32_384": "vit_b32",
        "vit_large_patch16_224": "vit_l16",
        "vit_small_patch14_dinov2": "dinov2_s14",
        "vit_small_patch14_reg4_dinov2": "dinov2_s14_reg4",
        "vit_base_patch14_dinov2": "dinov2_b14",
        "vit_base_patch14_reg4_dinov2": "dinov2_b14_reg4",
        "vit_large_patch14_dinov2": "dinov2_l14",
        "vit_large_patch14_reg4_dinov2": "dinov2_l14_reg4",
        "vit_huge_patch14_224": "vit_h14",
        "vit_base_patch32_clip_224": "openclip_vit_b32",
        "vit_base_patch16_clip_224": "openclip_vit_b16",
        "vit_large_patch14_clip_224": "openclip_vit_l14",
        "vit_base_patch16_clip_quickgelu_224": "clip_vit_b16",
        "vit_base_patch16_siglip_224": "siglip_b16",
        "vit_large_patch16_siglip_512": "siglip_l16",
        "vit_so400m_patch14_siglip_378": "siglip_so400m14",
    }
    for architecture, backbone in named.items():
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0)
        found = vit_timm.encoder_of(Shapes(model), Settings({"architecture": architecture}, "config.json"), "model")
        block = model.blocks[0]
        assert found.arguments["heads"] == block.attn.num_heads, architecture
        assert found.arguments["eps"] == block.norm1.eps == model.norm.eps, architecture
        activation = ACTIVATIONS[type(block.mlp.act).__name__]
        assert found.arguments["activation"] == activation, architecture
        assert getattr(block.mlp.act, "approximate", "none") == "none", architecture
        assert found.image_size == model.patch_embed.img_size[0], architecture
        assert found.names("0").keys() >= {"attention.qkv.bias"}
        # Most of timm's SigLIPs have GELU by erf in the place of tanh.
        assert not BACKBONES[backbone].differing(found.arguments), architecture
