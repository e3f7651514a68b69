"""Files and folders that are not what their names say, or not what is read: each has a message that says what to do."""

import io
import json
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxboost.convert import convert
from jaxboost.convert.sources import open_source
from jaxboost.errors import UserError
from tests.reference import llama_checkpoints as reference


@pytest.fixture(scope="module")
def model():
    return reference.tiny_llama(seed=5, num_hidden_layers=1)


def refused(source, message):
    with pytest.raises(UserError, match=message) as caught:
        # Names of folders are looked up when they are asked for.
        list(open_source(str(source)).tensors.names)
    assert "\n" not in str(caught.value)


def tar():
    return b"model.safetensors".ljust(257, b"\0") + b"ustar\x0000" + bytes(300)


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x" * 100)
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("vit.pth", POINTER, "vit.pth is a Git LFS pointer, not the file: run `git lfs pull` there"),
        ("vit.safetensors", POINTER, "is a Git LFS pointer"),
        ("vit.onnx", POINTER, "is a Git LFS pointer"),
        ("tiny.gguf", POINTER, "is a Git LFS pointer"),
        ("vit.bin", b"/annex/objects/SHA256E-s9--0\n", "is a git-annex pointer, not the file: run `git annex get`"),
        ("pytorch_model.bin", PAGE, "is a web page, not weights: download the file itself"),
        ("vit.pth", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an XML text"),
        ("vit.h5", b"\x89HDF\r\n\x1a\n" + bytes(9), r"is an HDF5 file \(Keras, TensorFlow\): pass the PyTorch or"),
        ("vit.pth", b"\x89HDF\r\n\x1a\n" + bytes(9), "is an HDF5 file"),
        ("flax_model.msgpack", b"\x81\xa6params", r"is Flax weights \(msgpack\), which is not read: pass the PyTorch"),
        ("vit.tflite", b"\x1c\0\0\0TFL3" + bytes(9), "is a TensorFlow Lite model"),
        ("model.ckpt.index", b"abc", "is a part of a TensorFlow checkpoint"),
        ("model.ckpt.data-00000-of-00001", b"abc", "is a part of a TensorFlow checkpoint"),
        ("saved_model.pb", b"\x08\x01", "is a TensorFlow graph"),
        ("weights.npy", b"\x93NUMPY\x01\x00", "is a single NumPy array"),
        ("weights.npz", archive("a.npy", "b.npy"), "is a NumPy archive"),
        ("model.zip", archive("model.safetensors", "config.json"), "is a zip archive, .*: unpack it and pass"),
        ("vit.pth", archive("model/model.safetensors"), "is a zip archive, not a PyTorch checkpoint: unpack it"),
        ("model.keras", archive("config.json", "model.weights.h5"), "is a Keras model"),
        ("model.tar.gz", b"\x1f\x8b\x08\0" + bytes(9), "is a gzip archive: unpack it and pass what is inside"),
        ("model.tar", tar(), "is a tar archive"),
        ("vit.pth", b"", "vit.pth is empty: download it again"),
        ("vit.pth", bytes(2000), "begins with only zeros, as an incomplete download does"),
        ("ggml-model.bin", b"tjgg" + bytes(9), "is a model in llama.cpp's old format: take its GGUF file"),
        ("vit.pth", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is truncated or damaged: download it again"),
        ("sha256-8daa", b'{"stop": ["<|end|>"]}', "is a blob of Ollama that holds no model.*`ollama show --modelfile"),
        ("model.ckpt", b"plain text", "is not a PyTorch checkpoint, or its download is incomplete"),
        ("notes.txt", b"plain text", "is a file: pass the folder that holds it"),
    ],
)
def test_files_by_their_contents(name, contents, message, tmp_path):
    (tmp_path / name).write_bytes(contents)
    refused(tmp_path / name, message)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(("contents", "message"), [(POINTER, "is a Git LFS pointer"), (PAGE, "is a web page")])
def test_files_of_a_folder_by_their_contents(file, contents, message, model, tmp_path):
    source = reference.write_safetensors(model, tmp_path / "tiny")
    (tmp_path / "tiny" / file).write_bytes(contents)
    refused(source, f"{re.escape(file)} {message}")


def test_torchscript(tmp_path):
    (tmp_path / "vit.pt").write_bytes(archive("vit/data.pkl", "vit/constants.pkl", "vit/code/__torch__.py"))
    refused(tmp_path / "vit.pt", r"is a TorchScript program.*torch\.jit\.load\(.*\)\.state_dict\(\)")


def test_a_checkpoint_that_was_packed_again(tmp_path):
    """torch.load would map the packed bytes and take them for weights."""
    torch.save({"a": torch.zeros(5000)}, tmp_path / "vit.pth")
    with zipfile.ZipFile(tmp_path / "vit.pth") as before:
        entries = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(tmp_path / "vit.pth", "w", zipfile.ZIP_DEFLATED) as after:
        for name, contents in entries.items():
            after.writestr(name, contents)
    refused(tmp_path / "vit.pth", "was compressed again after torch.save wrote it")


def test_the_contents_decide_not_the_name(model, tmp_path):
    """A blob of Ollama, and a GGUF file under the ending of a pickle."""
    expected = convert(reference.write_gguf(model, tmp_path / "gguf"), "0", tmp_path / "expected")
    for name in ("sha256-8daa9615cce30c259a9555b1cc250d461d1bc69980a274b44d7eda0be78076d8", "model.bin"):
        (tmp_path / name).write_bytes((tmp_path / "gguf" / "tiny.gguf").read_bytes())
        manifest = convert(str(tmp_path / name), "0", tmp_path / f"block-{name[:6]}")
        assert (manifest.sha256, manifest.config) == (expected.sha256, expected.config)
        assert (manifest.source, manifest.source_format) == (name, "gguf")


def header(tensors=1, fields=1, key_length=3, text_length=1, kind=8, axes=1):
    """A GGUF header: one text field, one tensor."""
    start = b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)
    field = struct.pack("<Q", key_length) + b"key" + struct.pack("<IQ", kind, text_length) + b"a"
    return start + field + struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", axes, 8, 0, 0) + bytes(64)


@pytest.mark.parametrize(
    "numbers",
    [
        {"tensors": 2**60},
        {"fields": 2**60},
        {"key_length": 2**60},
        {"text_length": 2**63},
        {"kind": 9, "text_length": 8},
        {"kind": 77},
        {"axes": 2**31},
    ],
)
def test_counts_of_gguf(numbers, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(header(**numbers))
    refused(tmp_path / "tiny.gguf", "is truncated or damaged, or of an unknown GGUF version: download it again")


def test_long_arrays_of_gguf(tmp_path):
    """An array of 2**60 bytes, in a file that is large without any space on the disk: nothing loops over it."""
    path = tmp_path / "tiny.gguf"
    array = struct.pack("<Q", 3) + b"key" + struct.pack("<IIQ", 9, 0, 2**33)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array)
    with path.open("r+b") as file:
        file.truncate(2**34)
    refused(path, "is truncated or damaged")


def test_adapters(model, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "owner/model", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.q.lora_A.weight": np.zeros((2, 2), "f")}, folder / "adapter_model.safetensors")
    command = (
        "holds an adapter of 'owner/model', not a model: merge first, with `python -c \"from peft import "
        f"AutoPeftModelForCausalLM as M; model = M.from_pretrained('{folder}'); "
        "model.merge_and_unload().save_pretrained('merged')\"`, then pass the folder merged"
    )
    refused(folder, re.escape(command))
    refused(folder / "adapter_model.safetensors", re.escape(command))
    # An encoder's, and one whose settings are broken.
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": None}))
    refused(folder, re.escape("AutoModel.from_pretrained('owner/model')"))
    (folder / "adapter_config.json").write_text("[[")
    refused(folder, re.escape("AutoModel.from_pretrained('BASE')"))
    # Beside the weights of a whole model they are not in the way.
    reference.write_safetensors(model, folder)
    open_source(str(folder))


def test_adapters_that_were_not_merged(model, tmp_path):
    source = reference.write_bin(model, tmp_path / "tiny")
    path = tmp_path / "tiny" / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    state["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 64)
    torch.save(state, path)
    refused(source, r"holds an adapter that is not merged into its weights \(model\.layers\.0.*merge_and_unload")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["config.json", "model-00001-of-00002.safetensors"],
            "none of model.safetensors.index.json, .*download it too",
        ),
        (
            ["config.json", "model.fp16.safetensors"],
            "if it is a checkpoint in Hugging Face's layout, rename it to one of these; if",
        ),
        (["vit.pth"], "holds vit.pth but none of model.safetensors"),
        (["config.json", "flax_model.msgpack"], "flax_model.msgpack is Flax weights"),
        (["config.json", "tf_model.h5"], "tf_model.h5 is HDF5 weights"),
        (["checkpoint", "model.ckpt.index"], "is a part of a TensorFlow checkpoint"),
        (["manifest.json", "layer_00000"], "is converted already: name it in the config"),
        (["notes.txt"], "holds no checkpoint"),
    ],
)
def test_folders(names, message, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    refused(folder, message)


def test_broken_link(tmp_path):
    (tmp_path / "vit.pth").symlink_to("nowhere")
    refused(tmp_path / "vit.pth", "is a link to a file that is not there: fetch it")


def test_shards_outside_of_the_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "tiny", max_shard_size="50KB")
    index = tmp_path / "tiny" / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    for file in ("../model.safetensors", "/etc/passwd", "a/../../b", 3, None, ["x"]):
        index.write_text(json.dumps(contents | {"weight_map": contents["weight_map"] | {name: file}}))
        refused(tmp_path / "tiny", f"says that {re.escape(name)} is in .*, which is not a file of the same folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["a"].update(data_offsets=[8, 24]), "its tensors overlap"),
        (lambda header: header["a"].update(data_offsets=[-8, 16]), "has a broken safetensors header"),
        (lambda header: header["a"].update(data_offsets=[16, 0]), "has a broken safetensors header"),
        (lambda header: header["a"].update(data_offsets=[0, 2**60]), "is truncated: its header promises"),
        (lambda header: header["a"].update(shape=[2.0, 2]), "has a broken safetensors header"),
        (lambda header: header["a"].update(shape=[-2, -2]), "has a broken safetensors header"),
        (lambda header: header["a"].update(dtype=["F32"]), "has a broken safetensors header"),
        (lambda header: header.update(a=None), "has a broken safetensors header"),
    ],
)
def test_headers_of_safetensors(change, message, tmp_path):
    entry = {"dtype": "F32", "shape": [2, 2]}
    header = {"a": entry | {"data_offsets": [0, 16]}, "b": entry | {"data_offsets": [16, 32]}}
    change(header)
    text = json.dumps(header).encode()
    (tmp_path / "vit.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    refused(tmp_path / "vit.safetensors", message)


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 2}', b"{" + b'"a":{' * 100_000, b"[" * 100_000])
def test_other_headers_of_safetensors(text, tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(tmp_path / "vit.safetensors", "has a broken safetensors header")


def test_tensors_that_repeat_their_values(tmp_path):
    """A file of a kilobyte with a weight of 4 TB."""
    torch.save({"blocks.0.mlp.fc1.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "vit.pth")
    from jaxboost.convert.formats.torch_file import TorchFile

    info = TorchFile(tmp_path / "vit.pth").info("blocks.0.mlp.fc1.weight")
    assert info.obstacle == "repeats its values, so that its file does not hold them all"


@pytest.mark.parametrize(("is_zip", "most", "maps"), [(True, 1 << 20, 1), (True, 30, 2), (False, 0, 1)])
def test_a_torch_file_is_mapped_again_only_after_many_bytes(is_zip, most, maps, tmp_path, monkeypatch):
    from jaxboost.convert.formats import torch_file

    arrays = {name: np.arange(6, dtype=np.float32).reshape(3, 2) + number for number, name in enumerate("abcd")}
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(state, tmp_path / "vit.pth", _use_new_zipfile_serialization=is_zip)
    monkeypatch.setattr(torch_file, "_MAX_MAPPED_BYTES", most)
    loads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    file = torch_file.TorchFile(tmp_path / "vit.pth")
    for name in "abc":
        np.testing.assert_array_equal(file.read(name), arrays[name])
    np.testing.assert_array_equal(file.read_rows("d", [2, 0]), arrays["d"][[2, 0]])
    assert len(loads) == maps
