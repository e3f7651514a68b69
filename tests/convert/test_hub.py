"""The script against a local stand-in for the hub: which bytes are fetched, and what goes wrong."""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jaxboost.convert import convert
from jaxboost.convert.formats import torch_ranges
from jaxboost.convert.formats.torch_ranges import TorchRanges
from jaxboost.convert.store import read_manifest
from jaxboost.errors import UserError
from tests.convert import vision_checkpoints as vision
from tests.convert.hub_server import COMMIT, serving
from tests.reference import llama_checkpoints as reference

ROOT = Path(__file__).parents[2]
LAYER = 2
GATED = {"owner/licence": 403, "owner/login": 401}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    # Embeddings as large as in a real model, relative to the layers, must not be fetched.
    model = reference.tiny_llama(seed=9, vocab_size=4000)
    reference.write_sharded_safetensors(model, folder / "sharded")
    reference.write_safetensors(model, folder / "single")
    reference.write_bin(model, folder / "pickled")
    reference.write_sharded_bin(model, folder / "pickles")
    for name, value, zipped in (("old", {}, False), ("code", {"args": argparse.Namespace()}, True)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((folder / "single" / "config.json").read_bytes())
        torch.save(value, folder / name / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    vision.tiny("clip").save_pretrained(folder / "clip")
    (folder / "open_clip").mkdir()
    (folder / "open_clip" / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {"width": 64}}}')
    (folder / "open_clip" / "open_clip_pytorch_model.bin").write_bytes(b"weights")
    names = ("sharded", "single", "pickled", "pickles", "old", "code", "clip", "open_clip")
    return {f"owner/{name}": folder / name for name in names} | dict.fromkeys(GATED, folder / "single")


@pytest.fixture(scope="module")
def server(repositories):
    with serving(repositories) as server:
        yield server


@pytest.fixture
def hub(server, repositories):
    """The server of the module, as it was at its start."""
    server.repositories, server.busy = repositories, 0
    server.gated, server.hidden = dict(GATED), {"owner/hidden"}
    server.served.clear()
    server.requests.clear()
    return server


def environment(address, home):
    """Without a proxy. huggingface_hub reads the address once in a process."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return inherited | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(address, source, out, *flags, **more):
    """Runs the script."""
    command = [sys.executable, str(ROOT / "convert_weights.py"), "--source", source, "--out", str(out), *flags]
    inherited = environment(address, out.parent / "home") | more
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent, env=inherited)


# Runs the script inside for each line of its stdin.
INSIDE = """
import json, pathlib, sys
from huggingface_hub import HfFileSystem
from jaxboost.convert.formats import hub
from tests.scripts import run_inside
whole = hub._PIECE_BYTES
for line in sys.stdin:
    folder, piece, arguments = json.loads(line)
    # A process of its own would know no files.
    HfFileSystem.clear_instance_cache()
    hub._PIECE_BYTES = piece or whole
    result = run_inside("convert_weights.py", *arguments, folder=pathlib.Path(folder))
    print(json.dumps([result.returncode, result.stdout, result.stderr]), flush=True)
"""


@pytest.fixture(scope="module")
def run_again(server, tmp_path_factory):
    """run_again(source, out, *flags, piece=0): as `run` with the server, in one process for the whole module.

    It reads large tensors in pieces of `piece` bytes.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", INSIDE],
        cwd=ROOT,
        env=environment(server.address, tmp_path_factory.mktemp("home")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def again(source, out, *flags, piece=0):
        arguments = ["--source", source, "--out", str(out), *flags]
        process.stdin.write(json.dumps([str(out.parent), piece, arguments]) + "\n")
        process.stdin.flush()
        return subprocess.CompletedProcess(arguments, *json.loads(process.stdout.readline()))

    yield again
    process.stdin.close()
    process.stdout.close()
    process.wait(60)


def wanted_bytes(folder):
    """Bytes of the wanted tensors, and of the headers of the files that hold them, with the configuration and index."""
    tensors, headers = 0, 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            mine = [name for name in file.keys() if f".layers.{LAYER}." in name or name == "model.norm.weight"]  # noqa: SIM118
            tensors += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in mine)
        if mine:
            headers += 8 + int.from_bytes(path.read_bytes()[:8], "little")
    headers += (folder / "config.json").stat().st_size
    index = folder / "model.safetensors.index.json"
    return tensors, headers + (index.stat().st_size if index.exists() else 0)


@pytest.mark.parametrize("name", ["sharded", "single"])
def test_only_the_wanted_bytes_are_fetched(name, hub, run_again, repositories, tmp_path):
    """One of them with the script itself."""
    folder = repositories[f"owner/{name}"]
    hub.busy = 1
    given = f"owner/{name}", tmp_path / "block", "--layers", str(LAYER)
    result = run(hub.address, *given) if name == "sharded" else run_again(*given)
    assert result.returncode == 0, result.stderr
    assert f"source  owner/{name}@{COMMIT} (hub)" in result.stdout

    tensors, headers = wanted_bytes(folder)
    served = sum(hub.served.values())
    assert served == tensors + headers
    assert served < 0.1 * sum(path.stat().st_size for path in folder.iterdir())
    assert all(wanted for _, wanted in hub.requests)

    manifest = read_manifest(tmp_path / "block")
    assert (manifest.source, manifest.source_format) == (f"owner/{name}@{COMMIT}", "hub")
    local = convert(str(folder), str(LAYER), tmp_path / "local")
    assert manifest.sha256 == local.sha256
    assert manifest.config == local.config


@pytest.mark.parametrize("name", ["pickled", "pickles"])
def test_only_the_wanted_bytes_of_a_bin_file_are_fetched(name, hub, run_again, repositories, tmp_path):
    folder = repositories[f"owner/{name}"]
    result = run_again(f"owner/{name}", tmp_path / "block", "--layers", str(LAYER))
    assert result.returncode == 0, result.stderr
    assert f"source  owner/{name}@{COMMIT} (hub)" in result.stdout
    local = convert(str(folder), str(LAYER), tmp_path / "local")
    assert read_manifest(tmp_path / "block").sha256 == local.sha256
    tensors, _ = wanted_bytes(repositories["owner/single"])
    assert tensors < sum(hub.served.values()) < tensors + 80_000 < 0.2 * sum(p.stat().st_size for p in folder.iterdir())


def test_the_tensors_of_a_bin_file(tmp_path):
    """Views, shared storages, precisions and parameters; what is not read has an obstacle."""
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "half": base.half(),
        "brain": base.bfloat16() / 7,
        "parameter": torch.nn.Parameter(base + 1),
        "scalar": torch.tensor(3.0),
        "nothing": torch.zeros(0, 3),
    }
    others = {"ids": torch.arange(3), "repeated": torch.ones(1).expand(5)}
    torch.save(torch.nn.modules.module.OrderedDict(state | others), path := tmp_path / "file.bin")
    whole = np.fromfile(path, np.uint8)
    opened = TorchRanges("file.bin", whole.size, lambda start, stop: whole[start:stop].copy())
    assert set(opened.names) == {*state, *others}
    for name, tensor in state.items():
        found = opened.read(name)
        assert opened.info(name).obstacle is None
        assert opened.info(name).shape == found.shape == tuple(tensor.shape)
        assert found.dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.astype(np.float32), tensor.detach().float().numpy())
    assert opened.info("ids").obstacle.startswith("is stored as long")
    assert opened.info("repeated").obstacle.startswith("repeats its values")


def test_bin_files_that_are_no_state_dict(tmp_path):
    """Damage is not called unsafe, and a name that is no text is not taken for one."""

    def refused(value, message):
        path = tmp_path / "file.bin"
        if isinstance(value, bytes):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("file/data.pkl", value)
        else:
            torch.save(value, path)
        data = np.fromfile(path, np.uint8)
        with pytest.raises(UserError, match=message) as caught:
            TorchRanges("file.bin", data.size, lambda start, stop: data[start:stop].copy())
        assert "\n" not in str(caught.value)

    refused({"1": torch.ones(1), 1: torch.zeros(1)}, "is not a plain mapping of names to tensors")
    refused({"a": argparse.Namespace()}, r"holds more than tensors \(argparse.Namespace\)")
    refused(b"\x80\x02damaged", "is truncated or damaged: download it again")
    # What a pickle sets in a function stays in this file.
    refused(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\1\0\0\0aK\1sb.", "is not a plain mapping")
    assert not hasattr(torch_ranges._tensor, "a")


def test_the_text_encoder_is_not_fetched(hub, run_again, repositories, tmp_path):
    result = run_again("owner/clip", tmp_path / "encoder", "--layers", "all")
    assert result.returncode == 0, result.stderr
    assert f"source  owner/clip@{COMMIT} (hub)" in result.stdout
    out = tmp_path / "encoder"
    assert f"use it  --config.model.weights={out}, for PneumoLLM --config.pneumollm.vision={out}" in result.stdout
    file = repositories["owner/clip"] / "model.safetensors"
    with safe_open(file, framework="np") as tensors:
        mine = [name for name in tensors.keys() if name.startswith("vision_model.")]  # noqa: SIM118
        wanted = sum(4 * math.prod(tensors.get_slice(name).get_shape()) for name in mine)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert hub.served[file.name] == wanted + header < file.stat().st_size


def test_large_tensors_come_in_pieces(hub, run_again, repositories, tmp_path):
    result = run_again(f"owner/single@{COMMIT}", tmp_path / "block", "--layers", str(LAYER), piece=5000)
    assert result.returncode == 0, result.stderr
    assert sum(hub.served.values()) == sum(wanted_bytes(repositories["owner/single"]))
    local = convert(str(repositories["owner/single"]), str(LAYER), tmp_path / "local")
    assert read_manifest(tmp_path / "block").sha256 == local.sha256


REFUSED = {
    "owner/licence": "is gated: accept its licence at {address}/owner/licence, then log in with `hf auth login`",
    "owner/login": "is gated: accept its licence at {address}/owner/login, then log in with `hf auth login`",
    "owner/hidden": "there is no repository owner/hidden at {address}: check the id; if it is private, log in with",
    "owner/none": "there is no repository owner/none at {address}: check the id; if it is private, log in with",
    f"owner/single@{COMMIT[::-1]}": "owner/single has no such revision: see {address}/owner/single",
    "owner/old": "has PyTorch's old format, which cannot be read in parts: download the repository and pass its folder",
    "owner/code": "owner/code/pytorch_model.bin holds more than tensors (argparse.Namespace): download it",
    "owner/open_clip": "open_clip_pytorch_model.bin is not a PyTorch checkpoint, or its download is incomplete",
}


@pytest.mark.parametrize(("source", "message"), REFUSED.items())
def test_refused(source, message, hub, run_again, tmp_path):
    assert_one_line(run_again(source, tmp_path / "block", "--layers", "0"), message.format(address=hub.address))
    assert list(tmp_path.iterdir()) == []


def test_out_of_reach(tmp_path):
    # A port that is taken, but where nobody listens.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = run(address, "owner/single", tmp_path / "block", "--layers", "0")
    assert_one_line(result, f"{address}/owner/single is out of reach")
    assert "check the network, or download the repository elsewhere and pass its folder" in result.stderr


def test_offline_mode(hub, tmp_path):
    result = run(hub.address, "owner/single", tmp_path / "block", "--layers", "0", HF_HUB_OFFLINE="1")
    assert_one_line(result, "owner/single cannot be fetched in offline mode: unset HF_HUB_OFFLINE")
    assert hub.requests == []


def test_a_file_that_ends_early(hub, run_again, repositories, tmp_path):
    # The repository's list of sizes is right, the file's header promises more.
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((repositories["owner/single"] / "config.json").read_bytes())
    whole = (repositories["owner/single"] / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[:-1000])
    hub.repositories = hub.repositories | {"owner/cut": cut}
    (tmp_path / "work").mkdir()
    result = run_again("owner/cut", tmp_path / "work" / "block", "--layers", "0")
    assert_one_line(result, "owner/cut/model.safetensors is truncated")
    assert sum(hub.served.values()) < 20_000


def test_a_model_of_another_family(hub, run_again, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    hub.repositories = hub.repositories | {"owner/other": other}
    result = run_again("owner/other", tmp_path / "block", "--layers", "0")
    assert_one_line(result, "owner/other/config.json: this is a 'bloom' checkpoint, not of a known family")
    assert_one_line(result, "owner/other/config.json: this is a 'bloom' checkpoint, not of a known family")


def assert_one_line(result, message):
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
