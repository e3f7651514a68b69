"""What training scripts save around a ViT in timm's names: the encoder is found, the rest is left out and said."""

import argparse
import collections
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxboost.convert import Hints, convert
from jaxboost.errors import UserError
from tests.convert import vision_checkpoints as vision
from tests.convert.timm_files import refused, tensors, vit_state, write


@pytest.fixture(scope="module")
def state():
    return vit_state()


@pytest.fixture(scope="module")
def plain(state, tmp_path_factory):
    """Fingerprints of the encoder alone, converted from a file of nothing else."""
    folder = tmp_path_factory.mktemp("plain")
    encoder = {name: array for name, array in state.items() if not name.startswith("head")}
    return convert(write("safetensors", encoder, folder)[0], "all", folder / "encoder").sha256


def decoder(state):
    """What MAE has beside its encoder: narrower blocks of the same kind, and the masked patches' token."""
    small = {name: np.full((8,), 3, np.float32) for name in ("decoder_norm.weight", "decoder_embed.bias")}
    blocks = {f"decoder_{name}": array for name, array in state.items() if name.startswith("blocks.0.")}
    tokens = {"mask_token": np.ones((1, 1, 8), "f"), "decoder_pos_embed": np.ones((1, 26, 8), "f")}
    return small | blocks | tokens | {"decoder_pred.weight": np.ones((48, 8), "f")}


def test_mae(state, plain, tmp_path, caplog):
    """As RETFound's and MAE's own: the encoder and its decoder, beside the optimizer's state and a Namespace."""
    encoder = {name: array for name, array in state.items() if not name.startswith("head")}
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
    assert manifest.sha256 == plain
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
def test_encoders_of_training_checkpoints(form, state, plain, tmp_path, caplog):
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
    assert manifest.sha256 == plain
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


def test_nothing_is_said_where_all_is_read(state, tmp_path, caplog):
    encoder = {name: array for name, array in state.items() if not name.startswith("head")}
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        convert(write("safetensors", encoder, tmp_path)[0], "all", tmp_path / "encoder")
    assert "not read" not in caplog.text


def test_broken_files(state, tmp_path):
    for form in ("safetensors", "pth"):
        source, _ = write(form, state, tmp_path)
        contents = (tmp_path / f"vit.{form}").read_bytes()
        (tmp_path / f"vit.{form}").write_bytes(contents[: len(contents) // 2])
        refused(source, "download it again", tmp_path)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    refused(str(tmp_path / "list.pth"), "is not a plain mapping of names to tensors: save its weights alone", tmp_path)


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
