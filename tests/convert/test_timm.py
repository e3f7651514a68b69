"""ViTs in timm's names: the encoder that transformers has, in every kind of file, and what is refused in one line."""

import argparse
import collections
import json
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxboost.convert import Hints, convert, encoders
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from tests.convert import vision_checkpoints as vision

# Class of an activation in timm -> its name here.
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def published(request, tmp_path_factory):
    """A model's weights in timm's names, and the manifest of the encoder made from transformers' folder of it."""
    folder = tmp_path_factory.mktemp(request.param)
    state = vision.timm_state(vision.tiny(request.param, **vision.TIMM_SHAPE), folder / "source")
    return state, convert(str(folder / "source"), "all", folder / "encoder")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    return vision.timm_state(vision.tiny("vit", **vision.TIMM_SHAPE), folder / "source")


def tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}


def write_folder(state, folder, weights="model.safetensors", **config):
    """timm's layout."""
    folder.mkdir()
    values = {"architecture": "vit_small_patch16_224", "num_classes": 5, "pretrained_cfg": {"num_classes": 5}} | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    if weights.endswith(".bin"):
        torch.save(tensors(state), folder / weights)
    else:
        save_file(state, folder / weights)
    return str(folder)


def write(form, state, folder):
    """Writes the weights in one of the forms that are read; returns the source and its format."""
    if form == "folder":
        return write_folder(state, folder / "timm"), "safetensors"
    if form == "folder of a pickle":
        return write_folder(state, folder / "timm", "pytorch_model.bin"), "torch"
    if form == "transformers' wrapper":
        wrapped = {f"timm_model.{name}": array for name, array in state.items()}
        return write_folder(wrapped, folder / "timm", model_type="timm_wrapper"), "safetensors"
    path = folder / f"vit.{form.split()[0]}"
    if form == "safetensors":
        save_file(state, path)
        return str(path), "safetensors"
    contents = {
        "pth": lambda: tensors(state),
        "pth in model": lambda: {"model": tensors(state), "epoch": 3},
        "pt in state_dict": lambda: {"state_dict": tensors(state), "optimizer": {"lr": 0.1}},
        "bin of data parallel": lambda: {f"module.{name}": tensor for name, tensor in tensors(state).items()},
    }
    torch.save(contents[form](), path)
    return str(path), "torch"


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


def test_what_is_not_read_is_said(state, tmp_path, caplog):
    weights = state | {
        "pre_logits.fc.weight": np.ones((192, 192), np.float32),
        "mask_token": np.ones((1, 192), np.float32),
    }
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        convert(write("safetensors", weights, tmp_path)[0], "all", tmp_path / "encoder")
    assert "not part of the encoder and not read: head, mask_token, pre_logits" in caplog.text


def test_what_transformers_checkpoints_hold_beside_the_encoder_is_said(tmp_path, caplog):
    kinds = {
        "clip": "logit_scale, text_model, text_projection, visual_projection",
        "vit_classifier": "classifier",
        "dinov2": "embeddings.mask_token",
    }
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        for kind, expected in kinds.items():
            caplog.clear()
            vision.tiny(kind).save_pretrained(tmp_path / kind)
            convert(str(tmp_path / kind), "all", tmp_path / f"{kind}-encoder")
            assert f"not part of the encoder and not read: {expected}\n" in caplog.text


def decoder(state):
    """What MAE has beside its encoder: narrower blocks of the same kind, and the masked patches' token."""
    small = {name: np.full((8,), 3, np.float32) for name in ("decoder_norm.weight", "decoder_embed.bias")}
    blocks = {f"decoder_{name}": array for name, array in state.items() if name.startswith("blocks.0.")}
    tokens = {"mask_token": np.ones((1, 1, 8), "f"), "decoder_pos_embed": np.ones((1, 26, 8), "f")}
    return small | blocks | tokens | {"decoder_pred.weight": np.ones((48, 8), "f")}


def test_mae(state, tmp_path, caplog):
    """As RETFound's and MAE's own: the encoder and its decoder, beside the optimizer's state and a Namespace."""
    encoder = {name: array for name, array in state.items() if not name.startswith("head")}
    expected = convert(write("safetensors", encoder, tmp_path)[0], "all", tmp_path / "expected").sha256
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    contents = {
        "model": tensors(encoder | decoder(state)),
        "optimizer": optimizer,
        "epoch": 399,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=1e-3, output_dir=pathlib.PurePosixPath("out"), seed=np.float64(1)),
    }
    torch.save(contents, tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        manifest = convert(str(tmp_path / "mae.pth"), "all", tmp_path / "encoder")
    assert manifest.sha256 == expected
    assert "the weights are those under 'model'\n" in caplog.text
    assert "not read, because these are no tensors: args, epoch, scaler\n" in caplog.text
    for name in ("decoder_blocks", "decoder_embed", "decoder_norm", "decoder_pos_embed", "decoder_pred", "mask_token"):
        assert f"model.{name}" in caplog.text
    assert ", optimizer\n" in caplog.text


def test_mae_of_transformers(tmp_path):
    """Its encoder is a ViT's, and its decoder is left out."""
    import transformers

    shape = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 48}
    shape |= {"image_size": 20, "patch_size": 4}
    small = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**shape, **small))
    model.save_pretrained(tmp_path / "mae")
    state = {
        name.removeprefix("vit."): array
        for name, array in load_file(tmp_path / "mae" / "model.safetensors").items()
        if name.startswith("vit.")
    }
    (tmp_path / "vit").mkdir()
    save_file(state, tmp_path / "vit" / "model.safetensors")
    transformers.ViTConfig(**shape).save_pretrained(tmp_path / "vit")
    expected = convert(str(tmp_path / "vit"), "all", tmp_path / "vit-encoder")
    manifest = convert(str(tmp_path / "mae"), "all", tmp_path / "mae-encoder")
    assert (manifest.sha256, manifest.arguments) == (expected.sha256, expected.arguments)


def nested(first, second):
    """How training frameworks save one encoder, or two: name -> contents, and what --entry takes for the second."""

    def prefixed(prefix, state):
        return {f"{prefix}{name}": tensor for name, tensor in state.items()}

    return {
        "lightning": ({"state_dict": prefixed("model.net.", second), "hparams": collections.deque()}, None),
        "compiled": ({"model_state_dict": prefixed("_orig_mod.", second)}, None),
        "compiled blocks": (
            {name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in second.items()},
            None,
        ),
        "data parallel": ({"net": {"backbone": prefixed("module.", second)}}, None),
        "two": ({"model": first, "model_ema": second}, "model_ema"),
        "timm": ({"state_dict": first, "state_dict_ema": prefixed("module.", second)}, "state_dict_ema"),
        "dino": (
            {"student": prefixed("module.backbone.", first), "teacher": prefixed("backbone.", second)},
            "teacher",
        ),
        "moco": (
            {"state_dict": prefixed("module.momentum_encoder.", first) | prefixed("module.base_encoder.", second)},
            "state_dict.module.base_encoder",
        ),
        "beside": (first | {"ema": second}, "ema"),
        "at the top": (second | {"ema": first}, "."),
    }


@pytest.mark.parametrize("form", nested({}, {}))
def test_encoders_of_training_checkpoints(form, state, tmp_path, caplog):
    encoder = {name: array for name, array in state.items() if not name.startswith("head")}
    other = {name: array + 1 for name, array in encoder.items()}
    contents, entry = nested(tensors(other), tensors(encoder))[form]
    torch.save(contents, tmp_path / "last.ckpt")
    if entry is not None:
        message = refused(
            str(tmp_path / "last.ckpt"), r"holds 2 vision encoders \(.*\): choose one with --entry", tmp_path
        )
        assert entry in message
        refused(str(tmp_path / "last.ckpt"), "no vision encoder in --entry x: there are ", tmp_path, Hints(entry="x"))
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        manifest = convert(str(tmp_path / "last.ckpt"), "all", tmp_path / "encoder", hints=Hints(entry=entry))
    assert manifest.sha256 == convert(write("safetensors", encoder, tmp_path)[0], "all", tmp_path / "plain").sha256
    assert entry in (None, ".") or f"the weights are those under '{entry}" in caplog.text


def test_objects_of_a_checkpoint_run_no_code(state, tmp_path):
    class Harmful:
        def __reduce__(self):
            return shutil.copyfile, (str(tmp_path / "vit.pth"), str(tmp_path / "touched"))

    torch.save({"model": tensors(state), "callback": Harmful()}, tmp_path / "vit.pth")
    convert(str(tmp_path / "vit.pth"), "all", tmp_path / "encoder")
    assert not (tmp_path / "touched").exists()
    torch.save({"model": tensors(state), "callback": os.system}, tmp_path / "vit.pth")
    refused(str(tmp_path / "vit.pth"), "holds more than tensors, so that unpickling it could run code", tmp_path)


def test_a_whole_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "vit.pth")
    refused(
        str(tmp_path / "vit.pth"), r"holds a whole model as an object, .*torch\.save\(model\.state_dict\(\)", tmp_path
    )


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


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (Hints(heads=5), "a width of 192 is not a multiple of 5 heads: check --heads"),
        (Hints(eps=0.0), r"--eps 0\.0 is not above 0 and at most 1"),
        (Hints(eps=float("nan")), "--eps nan is not above 0"),
        (Hints(activation="relu"), "--activation 'relu' is not one of gelu, gelu_tanh, quick_gelu"),
        (Hints(resizing="nearest"), "--resizing 'nearest' is not one of bicubic, antialiased"),
    ],
)
def test_hints_are_checked(hints, message, state, tmp_path):
    refused(write("safetensors", state, tmp_path)[0], message, tmp_path, hints)


def test_no_hints_for_what_a_source_says_itself(state, tmp_path):
    source = write_folder(state, tmp_path / "timm", model_args={"num_heads": 6})
    refused(source, "says 6 heads, not 3: leave --heads out", tmp_path, Hints(heads=3))
    vision.tiny("vit").save_pretrained(tmp_path / "vit")
    refused(
        str(tmp_path / "vit"),
        "vit does not take --heads, --eps: they are only for vision encoders in timm.s or OpenCLIP.s names: leave",
        tmp_path,
        Hints(heads=3, eps=1),
    )


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


def test_nothing_is_said_where_all_is_read(state, tmp_path, caplog):
    encoder = {name: array for name, array in state.items() if not name.startswith("head")}
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        convert(write("safetensors", encoder, tmp_path)[0], "all", tmp_path / "encoder")
    assert "not read" not in caplog.text


def refused(source, message, tmp_path, hints=None):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, "all", tmp_path / "out" / "encoder", hints=hints)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_all_faults_are_in_one_message(state, tmp_path):
    weights = state | {
        "blocks.1.mlp.fc1.bias": np.zeros(3, np.float32),
        "blocks.2.extra.weight": np.zeros(3, np.float32),
        "patch_embed.norm.weight": np.zeros(192, np.float32),
        "blocks.0.norm1.weight": np.zeros(192, np.int8),
        "blocks.0.ls1.gamma": np.ones(192, np.float32),
    }
    del weights["blocks.1.attn.qkv.bias"], weights["norm.bias"]
    message = refused(write("safetensors", weights, tmp_path)[0], r"^vit\.safetensors does not hold a vision", tmp_path)
    for problem in (
        "missing: blocks.1.attn.qkv.bias;",
        "missing: norm.bias;",
        # LayerScale is in all blocks or in none.
        "missing: blocks.2.ls1.gamma;",
        "blocks.1.mlp.fc1.bias has the shape (3,) instead of (48,)",
        "not part of a ViT's embedding, blocks and norm: blocks.2.extra.weight;",
        ": patch_embed.norm.weight;",
        "blocks.0.norm1.weight is stored as I8",
    ):
        assert problem in message
    assert "head" not in message


def test_a_whole_block_is_missing(state, tmp_path):
    weights = {name: array for name, array in state.items() if not name.startswith("blocks.1.")}
    refused(write("safetensors", weights, tmp_path)[0], r"missing: blocks\.1\.norm1\.weight;", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dist_token": (1, 1, 192)},
            r"has CLS and a distillation token \(DeiT, distilled\).* without distillation",
        ),
        (
            {"fc_norm.weight": (192,), "norm.weight": None},
            r"mean of its patches as its result \(fc_norm.* pretrained c",
        ),
        (
            {"norm_pre.weight": (192,)},
            r"the weights do not say the activation, and CLIP models .* --activation quick_gelu \(OpenAI",
        ),
        (
            {"rope_embed.periods": (16,), "pos_embed": None},
            r"has rotary positions \(DINOv3\).*: choose Hugging Face's copy, such as facebook/dinov3-vits16",
        ),
        (
            {"reg_token": (1, 4, 192), "blocks.0.gamma_1": (192,), "blocks.0.attn.qkv.bias": None, "pos_embed": None},
            "has registers and no table of positions, as DINOv3 in timm's names, .* Hugging Face's copy, such as face",
        ),
        ({"blocks.0.attn.q_bias": (192,)}, r"has separate biases of queries and values \(BEiT, EVA\)"),
        ({"rel_pos_bias.relative_position_bias_table": (4, 3)}, r"has relative positions \(BEiT\)"),
        ({"blocks.0.gamma_1": (192,)}, "LayerScale under the names of BEiT"),
        ({"blocks.0.attn.q_norm.weight": (64,)}, r"norms of queries and keys \(qk_norm\)"),
        ({"blocks.0.attn.qkv.bias": None}, "queries, keys and values have no biases, which is not supported"),
        ({"pos_embed": (1, 24, 192)}, "positions for 24 tokens, which are not a CLS token and a square grid"),
        ({"reg_token": (1, 4, 192)}, "positions for 26 tokens, which are not CLS, 4 registers and a square grid"),
        ({"pos_embed": (26, 192)}, r"pos_embed has the shape \(26, 192\) instead of 3 axes"),
        ({"patch_embed.proj.weight": (192, 48)}, r"patch_embed.proj.weight has the shape \(192, 48\) instead of 4"),
        (
            {"patch_embed.proj.weight": (96, 3, 4, 4)},
            "heads is not known for a width of 96, which none of timm's ViTs has: give it with --heads",
        ),
        ({"patch_embed.proj.weight": (192, 1, 4, 4)}, r"\(192, 1, 4, 4\) instead of \(192, 3, 4, 4\)"),
        ({"patch_embed.proj.bias": None}, r"missing: patch_embed\.proj\.bias"),
        ({"patch_embed.proj.weight": None}, "holds no ViT in timm's names, .* 'patch_embed.proj.weight'.* the folder"),
        ({"blocks.0.mlp.fc1.weight": None}, "holds no ViT in timm's names, there is no 'blocks.0.mlp.fc1.weight'"),
        (
            {"cls_token": None},
            "neither a CLS token, cls_token, nor an attention pool: choose .*patch16_siglip",
        ),
        (
            {"cls_token": None, "attn_pool.latent": (1, 1, 192)},
            "positions for 26 tokens, which are not a square grid: choose another model",
        ),
        (
            {"cls_token": None, "attn_pool.latent": (1, 1, 192), "pos_embed": (1, 25, 192)},
            r"missing: attn_pool\.q\.weight; missing: attn_pool\.kv\.weight; ",
        ),
        (
            {"cls_token": None, "attn_pool.latent": (1, 1, 192), "pos_embed": (1, 25, 192), "reg_token": (1, 4, 192)},
            "an attention pool with registers, which is not supported: choose a SigLIP, such as vit_base",
        ),
        ({"attn_pool.latent": (1, 1, 192)}, r"not part of a ViT's embedding, blocks and norm: attn_pool\.latent"),
    ],
)
def test_other_models_are_refused(changes, message, state, tmp_path):
    weights = dict(state)
    for name, shape in changes.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = np.zeros(shape, np.float32)
    refused(write("safetensors", weights, tmp_path)[0], message, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "resnet50d"},
            "timm's 'resnet50d' is not read: choose a ViT, whose name begins with vit_ or deit, or one of resnet18,"
            " .*; the nearest is resnet50$",
        ),
        (
            {"architecture": "vit_small_patch16_dinov3"},
            "timm's vit_small_patch16_dinov3 has DINOv3's rotary positions: choose Hugging Face's copy, such",
        ),
        ({"model_args": {"act_layer": "quick_gelu"}}, "this vit_small_patch16_224 has another act_layer"),
        ({"model_args": {"num_heads": 5}}, "a width of 192 is not a multiple of 5 heads"),
        ({"model_args": "none"}, "'model_args' is 'none' instead of an object"),
        ({"architecture": None}, "this is a None checkpoint, not of a known family"),
    ],
)
def test_other_configurations_are_refused(config, message, state, tmp_path):
    refused(write_folder(state, tmp_path / "timm", **config), message, tmp_path)


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
    config = {"architecture": f"vit_base_patch32_clip_{variant}224", "pretrained_cfg": {"tag": tag, "notes": notes}}
    source = write_folder(clip_state, tmp_path / "timm", **config)
    if refusal is None:
        with caplog.at_level(logging.INFO, logger="jaxboost"):
            assert convert(source, "all", tmp_path / "encoder").arguments["activation"] == activation
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


def test_folder_with_other_weights(tmp_path):
    source = write_folder({"stem.weight": np.zeros(3, np.float32)}, tmp_path / "timm")
    message = r"^timm holds no ViT in timm's names, there is no 'patch_embed\.proj\.weight': choose another model$"
    refused(source, message, tmp_path)


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_that_are_none(value, dtype, state, tmp_path):
    name = "blocks.1.mlp.fc1.weight"
    array = state[name].copy()
    array[1, 2] = value
    source = write("pth", {**state, name: array}, tmp_path)[0]
    with pytest.raises(UserError, match=f"of layer_00001 holds NaN or infinity in {dtype}: the source is damaged"):
        convert(source, "all", tmp_path / "encoder", dtype=dtype)
    assert not (tmp_path / "encoder").exists()


def test_broken_files(state, tmp_path):
    for form in ("safetensors", "pth"):
        source, _ = write(form, state, tmp_path)
        contents = (tmp_path / f"vit.{form}").read_bytes()
        (tmp_path / f"vit.{form}").write_bytes(contents[: len(contents) // 2])
        refused(source, "download it again", tmp_path)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    refused(str(tmp_path / "list.pth"), "is not a plain mapping of names to tensors: save its weights alone", tmp_path)


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
