"""Small ViTs in timm's names, in every kind of file, and a check of what is refused."""

import functools
import json
import pathlib
import tempfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxboost.convert import convert
from jaxboost.errors import UserError
from tests.convert import vision_checkpoints as vision


@functools.cache
def vit_state() -> dict[str, np.ndarray]:
    """The weights of one ViT with a head; not to be changed in place."""
    with tempfile.TemporaryDirectory() as folder:
        return vision.timm_state(vision.tiny("vit", **vision.TIMM_SHAPE), pathlib.Path(folder) / "source")


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


def refused(source, message, tmp_path, hints=None):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, "all", tmp_path / "out" / "encoder", hints=hints)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)
