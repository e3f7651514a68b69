"""Exports: the same figures as the run's without the code that made it, for all platforms, and whole or not at all."""

import json
import os
import re
import shutil

import jax
import jax.export
import numpy as np
import pytest
import safetensors

import jaxboost
from jaxboost.data.sources.folder import inputs
from jaxboost.errors import UserError
from jaxboost.inference import export, exported, open_run
from jaxboost.inference.predict import predict
from jaxboost.io import json_sha256
from jaxboost.models import attention, transformer
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.resnet import ResNet
from jaxboost.models.vit import ViT
from tests import finished_runs
from tests.scripts import devices, run_inside, run_script

SMALL_RESNET = Backbone(
    encoder=ResNet, ndim=2, arguments=dict(block="basic", depths=(1, 1), convolution="2d"), head_eps=None
)
SMALL_VIT = Backbone(
    encoder=ViT, ndim=2, arguments=dict(width=16, depth=2, heads=2, mlp_width=24, patch=14), head_eps=1e-6
)


def make_pneumollm(folder, **changes):
    run = finished_runs.radiographs(folder / "data", folder / "run", **changes)
    return run, [folder / "data" / "images" / name for name in finished_runs.named_predictions(run)]


def make_colours(folder, **changes):
    run = finished_runs.colours(folder / "data", folder / "run", **changes)
    return run, [folder / "data" / "images" / name for name in finished_runs.named_predictions(run)]


def names_of(folder):
    with safetensors.safe_open(folder / "weights.safetensors", framework="numpy") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def same_as_run(run, files, folder, model=None):
    """Exports the run to `folder`; all three give the same probabilities, the last two bit by bit."""
    model = model or open_run.open_run(run)
    _, images = inputs.read(files, model.preprocessing)
    found = model.predict(images)
    np.testing.assert_allclose(found, finished_runs.own_predictions(run), rtol=0, atol=1e-6)
    assert np.ptp(found[:, 0]) > 1e-4
    export.export(model, folder)
    loaded = exported.load(folder)
    assert loaded.labels == model.labels
    assert loaded.preprocessing == model.preprocessing
    np.testing.assert_array_equal(loaded.predict(images), found)
    assert not list(folder.parent.glob(".*"))
    return loaded


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of PneumoLLM, its test images, and the run opened."""
    run, files = make_pneumollm(tmp_path_factory.mktemp("pneumollm"))
    return run, files, open_run.open_run(run)


@pytest.fixture(scope="module")
def pneumollm(finished):
    """A run of PneumoLLM, its test images, and its export."""
    run, files, model = finished
    same_as_run(run, files, run.parents[1] / "export", model)
    return run, files, run.parents[1] / "export"


@pytest.fixture(scope="module")
def opened(finished):
    """The same run, opened and its functions compiled once for all tests; none changes it."""
    return finished[-1]


def test_adapters_are_merged(pneumollm, opened):
    _, files, folder = pneumollm
    names = names_of(folder)
    for part in ("llama.q", "llama.k", "llama.v", "vision"):
        assert {f"merged.{part}.kernel", f"merged.{part}.bias"} <= names.keys()
    assert not [name for name in names if "adapters" in name or name.endswith((".qkv.kernel", "llama.layers.q"))]
    _, images = inputs.read(files, opened.preprocessing)
    merged = opened.weights[0]["llama_adapters"]
    assert float(np.abs(merged["up"]).max()) > 0
    loaded = exported.load(folder)
    before = loaded.predict(images)
    loaded.weights["merged.llama.v.bias"] = loaded.weights["merged.llama.v.bias"] + 1
    assert np.abs(loaded.predict(images) - before).max() > 1e-4


def test_features_are_what_the_head_reads(pneumollm, opened):
    _, images = inputs.read(pneumollm[1], opened.preprocessing)
    logits = opened.features(images) @ np.asarray(opened.weights[0]["head"]["kernel"])
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(opened.predict(images), expected, rtol=0, atol=1e-5)


def test_a_batch_of_any_size(pneumollm):
    _, files, folder = pneumollm
    loaded = exported.load(folder)
    _, images = inputs.read(files, loaded.preprocessing)
    assert not loaded.fixed_batch
    expected = loaded.predict(images)
    np.testing.assert_allclose(loaded.predict(images, batch_size=3), expected, rtol=0, atol=1e-6)


def test_files_have_the_same_permissions(pneumollm):
    _, _, folder = pneumollm
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_description(pneumollm):
    run, _, folder = pneumollm
    described = json.loads((folder / "export.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert described["classes"] == ["healthy", "sick"]
    assert described["images"] == {"batch": None, "shape": [28, 28, 3], "dtype": "uint8"}
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert described["unit"] == "image"
    assert described["provenance"]["config"] == result["config"]
    assert described["provenance"]["pretrained"] == {name: result[name] for name in ("vision", "llama")}
    assert described["provenance"]["versions"] == result["versions"]
    assert sorted(described["files"]) == ["program.bin", "weights.safetensors"]
    # The weights are beside the program, not in it.
    assert (folder / "program.bin").stat().st_size < 100_000 < (folder / "weights.safetensors").stat().st_size


def test_held_in_fewer_bits(tmp_path):
    """In bfloat16 adapters stay apart, as in evaluation."""
    run, files = make_pneumollm(tmp_path, model__dtype="bfloat16", llama__weights="int8")
    same_as_run(run, files, tmp_path / "export")
    names = names_of(tmp_path / "export")
    assert names["frozen.llama.layers.up.parts.qvalue"] == "I8"
    assert names["frozen.encoder.transformer.last.attention.qkv.kernel"] == "BF16"
    assert not [name for name in names if name.startswith("merged")]
    assert [name for name in names if name.startswith("trained.llama_adapters")]


def test_statistics_of_a_resnet(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", SMALL_RESNET)
    run, files = make_colours(tmp_path, **{"model.backbone": "resnet18", "optim.lr": 1e-2})
    same_as_run(run, files, tmp_path / "export")
    assert [name for name in names_of(tmp_path / "export") if name.startswith("statistics")]


@pytest.mark.parametrize(
    ("trained", "matrices"),
    [
        ({"model.lora_rank": 2}, {"merged.{}.blocks.attention.qkv", "merged.{}.last.attention.qkv"}),
        ({"model.last_block": True}, {"frozen.{}.blocks.attention.qkv.kernel", "trained.{}.last.attention.qkv.kernel"}),
    ],
)
def test_a_frozen_encoder_that_is_trained_in_part(tmp_path, trained, matrices, monkeypatch):
    """The file has the matrices of a plain encoder, with LoRA merged into them."""
    monkeypatch.setitem(BACKBONES, "vit_tiny", SMALL_VIT)
    frozen = {"model.frozen": True, "model.weights": "random", "model.dtype": "float32", "optim.lr": 1e-2}
    run, files = make_colours(tmp_path, **frozen, **trained)
    same_as_run(run, files, tmp_path / "export")
    found = {name for name in names_of(tmp_path / "export") if "qkv" in name and not name.endswith("bias")}
    assert found == {name.format("encoder.transformer") for name in matrices}


def test_a_way_that_depends_on_the_batch(tmp_path, monkeypatch):
    """The tiny LLaMA is narrower than the encoder: no maps to absorb, and what is cheapest follows from the batch."""
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 200_000)
    boost = {"boost.kind": "rllm", "boost.family": "llama-tiny", "boost.block": "random", "boost.layers": (0,)}
    run, files = make_colours(tmp_path, **boost)
    loaded = same_as_run(run, files, tmp_path / "export")
    described = json.loads((tmp_path / "export" / "export.json").read_text())
    assert described["images"]["batch"] == 8
    assert len([name for name in described["files"] if name.endswith("safetensors")]) > 2
    assert "weights-00001-of-" in " ".join(described["files"])
    _, images = inputs.read(files, loaded.preprocessing)
    with pytest.raises(UserError, match="takes only 8"):
        loaded.predict(images, batch_size=4)


WITHOUT_THE_CODE = """
import importlib.abc, pathlib, sys
OURS = ("jaxboost.training", "jaxboost.models", "jaxboost.convert")
BLOCKED = ("flax", "optax", "orbax", "grain", "ml_collections", *OURS)
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in BLOCKED):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
from jaxboost import exported
from jaxboost.data.sources.folder import inputs
from jaxboost import io
folder, images, out = sys.argv[1:]
model = exported.load(pathlib.Path(folder))
files, pixels = inputs.read(inputs.find([images], model.preprocessing.ndim), model.preprocessing)
io.write_text(pathlib.Path(out), model.labels.table(files, model.predict(pixels)))
import jax
assert len(jax.local_devices()) == 2 and not set(BLOCKED) & set(sys.modules)
"""


def test_without_the_code_of_models_and_training(pneumollm, tmp_path):
    run, files, folder = pneumollm
    given = ",".join(map(str, files))
    process = run_script("-c", WITHOUT_THE_CODE, folder, given, tmp_path / "a.csv", env=devices(2))
    assert process.returncode == 0, process.stderr
    found = finished_runs.read_table(tmp_path / "a.csv")
    assert [row["file"] for row in found] == list(map(str, files))
    scores = np.array([[float(row["healthy"]), float(row["sick"])] for row in found])
    np.testing.assert_allclose(scores, finished_runs.own_predictions(run), rtol=0, atol=1e-6)


def test_an_export_in_python(pneumollm, monkeypatch):
    _, files, folder = pneumollm
    monkeypatch.setenv("HOME", str(folder.parent))
    home = f"~/{folder.name}"
    assert jaxboost.exported.is_export(home)
    assert not jaxboost.exported.is_export(f"{folder}/{'x' * 300}")
    model = jaxboost.exported.load(home)
    _, images = inputs.read(files, model.preprocessing)
    expected = model.predict(images)
    np.testing.assert_array_equal(jaxboost.open_run(home).predict(images), expected)
    np.testing.assert_array_equal(model.predict(list(images)), expected)
    with pytest.raises(UserError, match=r"is an export, .*: leave --set \(in Python: moved\) out"):
        jaxboost.open_run(home, ["llama.block=x"])
    for wrong in (-1, 1.5):
        with pytest.raises(UserError, match=f"batch_size {wrong}: give the number of images in a batch"):
            model.predict(images, batch_size=wrong)
    with pytest.raises(UserError, match=r"images are no array .*: give images of one size"):
        model.predict([images[0], images[0][:-1]])


def test_command_exports_and_predicts_from_the_export(pneumollm, tmp_path):
    run, files, _ = pneumollm
    images = f"--input={','.join(map(str, files))}"
    first = run_inside("-m", "jaxboost", "predict", f"--run={run}", f"--export={tmp_path / 'export'}")
    assert first.returncode == 0, first.stderr
    second = run_inside(
        "-m", "jaxboost", "predict", f"--run={tmp_path / 'export'}", images, f"--out={tmp_path / 'from_export.csv'}"
    )
    assert second.returncode == 0, second.stderr
    predict(run, files=list(map(str, files)), out=tmp_path / "from_run.csv")
    assert (tmp_path / "from_export.csv").read_text() == (tmp_path / "from_run.csv").read_text()


def test_program_is_for_every_platform(opened, monkeypatch):
    """Exported where there is cuDNN, it is the same, without cuDNN's kernel."""

    def without_places(program):
        """The program's text, but for the lines of the code that it was traced from."""
        return re.sub(r"(?m)^#loc.*\n| loc\(#loc\d*\)", "", program.mlir_module())

    here = export.lower(opened, *export.flat_weights(opened))[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "fused_problem", lambda *_: "")
    monkeypatch.setattr(attention, "_refusal", lambda *_: "")
    there = export.lower(opened, *export.flat_weights(opened))[0]
    assert here.platforms == there.platforms == ("cpu", "cuda", "tpu")
    assert "stablehlo.case" in here.mlir_module()
    assert "cudnn" not in there.mlir_module()
    assert without_places(there) == without_places(here)


def test_portable_ends_with_its_block():
    q = np.ones((1, 2, 1, 8), np.float32)
    with attention.portable():
        inside = jax.make_jaxpr(lambda q: transformer.attend(q, q, q))(q)
    assert "platform_index" in str(inside)
    assert "platform_index" not in str(jax.make_jaxpr(lambda q: transformer.attend(q, q, q))(q))


def test_what_is_altered_is_refused(pneumollm, tmp_path):
    run, files, folder = pneumollm

    def attempt(change, match, **arguments):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        copy = shutil.copytree(folder, tmp_path / "copy")
        change(copy)
        with pytest.raises(UserError, match=match):
            predict(copy, **{"files": [str(files[0])], "out": tmp_path / "table.csv", **arguments})

    def alter(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    described = json.loads((folder / "export.json").read_text())

    def describe(path, **changes):
        path = path / "export.json"
        described = json.loads(path.read_text()) | changes
        del described["sha256"]
        path.write_text(json.dumps(described | {"sha256": json_sha256(described)}))

    attempt(lambda copy: alter(copy / "weights.safetensors"), r"weights\.safetensors was altered")
    attempt(lambda copy: alter(copy / "program.bin"), r"program\.bin was altered")
    attempt(lambda copy: os.remove(copy / "weights.safetensors"), r"weights\.safetensors is missing")
    attempt(lambda copy: (copy / "export.json").write_text("{"), "cannot be read.*export the run again")
    attempt(lambda copy: describe(copy, format=4), "has the format 4, this jaxboost reads up to 3")
    attempt(lambda copy: describe(copy, files={"../run/config.json": "0" * 64}), r"export\.json is damaged .*files")
    attempt(lambda copy: describe(copy, classes=["one"]), "is not the program that export.json describes")
    attempt(lambda copy: describe(copy, batch_size=10**12), r"export\.json is damaged .*batch_size")
    attempt(
        lambda copy: describe(copy, preprocessing=described["preprocessing"] | {"image_size": 56}), "not the program"
    )
    attempt(lambda copy: describe(copy, preprocessing=described["preprocessing"] | {"image_size": 1e9}), "is damaged")
    attempt(
        lambda copy: _swap(copy / "export.json", '"masked": false', '"masked": true'), "its checksum does not match"
    )
    attempt(lambda copy: _link(copy / "weights.safetensors", folder), "is a link to a file outside")
    attempt(lambda copy: describe(copy, platforms=["tpu"]), "was exported for tpu, not for cpu")
    attempt(lambda copy: None, r"leave --set \(in Python: moved\) out", moved=["llama.block=x"])
    assert not (tmp_path / "table.csv").exists()
    with pytest.raises(UserError, match="is not an export"):
        exported.load(run)
    with pytest.raises(UserError, match="is an export already: give the folder of a run to export"):
        export.export_run(folder, tmp_path / "again")


def _swap(path, before, after):
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def _link(path, folder):
    path.unlink()
    path.symlink_to(folder / path.name)


def test_where_no_export_can_be_written(pneumollm, opened, tmp_path, monkeypatch):
    run, _, folder = pneumollm
    with pytest.raises(UserError, match="already exists"):
        export.export_run(run, folder)
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        export.export_run(run, tmp_path / "nowhere" / "export")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    monkeypatch.setattr(open_run, "open_run", lambda *_: opened)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): make room"):
        export.export_run(run, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
