"""`jaxboost explain` with finished runs: pictures, table, raw maps, and what is refused."""

import csv
import dataclasses
import errno
import io
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.explain import command, for_report, picture_set, samples
from jaxboost.explain.command import Request
from jaxboost.inference import open_run
from jaxboost.inference.baseline_run import BaselineRun
from jaxboost.inference.exported import ExportedModel
from jaxboost.runs import cross_validation, datasets
from tests import finished_runs
from tests.explain import untrained
from tests.scripts import run_script
from tests.training import radiographs

CHANGES = {
    "data.name": "radiographs",
    "data.size": 28,
    "data.multi_label": False,
    "augment.resize": 0,
    "model.mean": (0.5,),
    "model.std": (0.25,),
}
BLOCK = {"boost.kind": "rllm", "boost.family": "llama-tiny", "boost.block": "random", "boost.layers": (0,)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """R-LLM and the same without its block, on drawn radiographs of two classes."""
    folder = tmp_path_factory.mktemp("runs")
    data = radiographs.write_radiographs(folder / "data")
    boosted = finished_runs.colours(data, folder / "boosted", **CHANGES, **BLOCK)
    return boosted, finished_runs.colours(data, folder / "plain", **CHANGES), data


@pytest.fixture(scope="module")
def opened(runs):
    return {folder: open_run.open_run(folder) for folder in runs[:2]}


@pytest.fixture
def opened_once(opened, monkeypatch):
    """The two runs are opened, and their functions compiled, once for all tests."""
    monkeypatch.setattr(open_run, "open_run", lambda folder, moved=(): opened[folder])
    return opened


def table(folder):
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_errors_of_a_split_with_two_runs(runs, opened_once, tmp_path):
    boosted, plain, _ = runs
    out = tmp_path / "out"
    command.explain(Request(run=boosted, against=plain, split="test", worst=2, tsne=True, out=out))
    rows = table(out)
    own = finished_runs.read_table(boosted / "predictions" / "test.csv")
    wrong = {row["file"]: float(row[row["label"]]) for row in own if float(row[row["label"]]) < 0.5}
    worst = sorted(wrong, key=wrong.get)[:2]
    assert list(dict.fromkeys(row["file"] for row in rows)) == worst
    assert {(row["method"], row["run"]) for row in rows} == {
        *((method, run) for method in ("gradcam", "attention") for run in ("run", "against")),
        ("activation", "run"),
    }
    for row in rows:
        assert row["label"] != row["prediction"] or row["run"] == "against"
        assert row["class"] == row["prediction"]
        if row["run"] == "run":
            assert float(row["probability"]) == pytest.approx(1 - wrong[row["file"]], abs=1e-5)
        has_check = row["method"] != "activation"
        assert bool(row["rank_correlation"]) <= has_check
        assert -1 <= float(row["rank_correlation"] or 0) <= 1
        assert Image.open(out / row["picture"]).size[0] > 300
    assert {row["model"] for row in rows} == {"vit_tiny + rllm, random block", "vit_tiny + none"}
    with np.load(out / "maps.npz") as maps:
        assert list(maps["names"]) == worst
        grids = {name for name in maps.files if "tsne" not in name} - {"names"}
        assert {"run/gradcam", "against/gradcam", "run/attention", "run/activation_before_detail"} <= grids
        assert {maps[name].shape for name in grids} == {(2, 4, 4)}
        assert maps["run/tsne"].shape == maps["against/tsne"].shape == (len(own), 2)
        assert list(maps["tsne_names"]) == [row["file"] for row in own]
    assert Image.open(out / "tsne.png").size[0] > 2 * 300
    assert {path.name for path in out.iterdir()} == {
        "index.csv",
        "maps.npz",
        "tsne.png",
        "tsne.svg",
        *(row["picture"] for row in rows),
    }


def test_files_with_the_command_twice_are_the_same_bytes(runs, opened_once, tmp_path):
    _, plain, data = runs
    files = ",".join(str(data / "images" / name) for name in ("p01_0.png", "p02_1.png"))
    arguments = [f"--run={plain}", f"--input={files}", "--method=gradcam", "--class=sick"]
    process = run_script("-m", "jaxboost", "explain", *arguments, f"--out={tmp_path / 'first'}")
    assert process.returncode == 0, process.stderr
    assert "2 pictures of 2 images" in process.stdout
    request = Request(run=plain, files=[files], method="gradcam", class_name="sick", out=tmp_path / "second")
    command.explain(request)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert sorted(first) == ["0000_p01_0.png_gradcam.png", "0001_p02_1.png_gradcam.png", "index.csv", "maps.npz"]
    assert first == second
    rows = table(tmp_path / "second")
    assert [(row["label"], row["class"]) for row in rows] == [("", "sick")] * 2
    probabilities = opened_once[plain].predict(np.stack([np.asarray(Image.open(file)) for file in files.split(",")]))
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities[:, 1], atol=1e-6)


def test_pictures_for_a_report(runs, opened_once):
    boosted, plain, _ = runs
    for run, against in ((boosted, plain), (plain, None)):
        found = for_report.worst_errors(run, most=2, against=against)
        assert len(found) == 2
        for picture in found:
            assert len(picture.png) < 40_000
            width, height = Image.open(io.BytesIO(picture.png)).size
            # The image, and a map of each run beside it.
            assert round(width / height) == (3 if against else 2)
            assert picture.kind == "gradcam"
            first, *rest = picture.caption.splitlines()
            assert first.startswith(f"{picture.name}, label ")
            assert len(rest) == (2 if against else 1)
            assert all("predicted" in line and "rank correlation with random weights" in line for line in rest)
            assert f"predicted {opened_once[run].labels.classes[picture.target]} " in rest[0]


def test_large_pictures_are_made_small():
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="png")
    assert len(buffer.getvalue()) > 400_000
    small = for_report._small(buffer.getvalue())
    assert len(small) < for_report.MAX_BYTES
    assert Image.open(io.BytesIO(small)).size[0] > 100


def test_worst_errors_first():
    run = type("Run", (), {"labels": type("Labels", (), {"task": "multi-class", "threshold": None})})
    given = samples.Samples(names=list("abcd"), images=np.zeros((4, 2, 2, 1)), labels=np.array([[0], [1], [2], [1]]))
    probabilities = np.array([[0.3, 0.4, 0.3], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.3, 0.2, 0.5]])
    np.testing.assert_array_equal(samples.worst(run, given, probabilities, 12), [1, 3, 0])
    np.testing.assert_array_equal(samples.worst(run, given, probabilities, 1), [1])
    run.labels.task = "multi-label, binary-class"
    given = samples.Samples(names=list("ab"), images=np.zeros((2, 2, 2, 1)), labels=np.array([[1, 1], [0, 0]]))
    np.testing.assert_array_equal(samples.worst(run, given, np.array([[0.9, 0.4], [0.1, 0.2]]), 12), [0])


def test_a_fold_has_the_split_of_its_file(tmp_path):
    """The file beside the folds decides, whatever the seed says; the digest of the splits is that of the run."""
    config = radiographs.small(radiographs.write_radiographs(tmp_path / "data"), data__fold=1)
    whole, file = datasets.load(config), tmp_path / "run" / cross_validation.FOLDS
    file.parent.mkdir()
    written = config.copy_and_resolve_references()
    written.data.fold_seed = 7
    datasets.fold_of(whole, written, 1, file)
    expected = datasets.fold_of(whole, config, 1, file)
    digests = datasets.fingerprint(expected, config)
    result = types.SimpleNamespace(config=continuing.to_dict(config), digests=digests)
    run = types.SimpleNamespace(folder=file.parent / "fold1", result=result, columns=())
    given = samples.from_split(run, "test")
    assert given.names == list(expected.splits["test"].names)
    np.testing.assert_array_equal(given.images, expected.splits["test"].images)
    np.testing.assert_array_equal(given.labels, expected.splits["test"].labels)
    file.unlink()
    with pytest.raises(UserError, match="has other splits than"):
        samples.from_split(run, "test")


def test_mistakes_leave_nothing(runs, opened_once, tmp_path, monkeypatch):
    boosted, plain, data = runs
    image = str(data / "images" / "p01_0.png")

    def attempt(match, **changes):
        fields = {"run": boosted, "files": [image], "out": tmp_path / "out", "method": "gradcam", **changes}
        with pytest.raises(UserError, match=match):
            command.explain(Request(**fields))

    attempt("either --input .* or --split", files=[])
    attempt("either --input .* or --split", split="test")
    attempt("already exists", out=tmp_path)
    attempt("would lie in a run", out=boosted / "pictures")
    attempt("there is no folder", out=tmp_path / "a" / "b")
    attempt("--class: 'sik' is unknown, did you mean 'sick'", class_name="sik")
    attempt("--split: 'tst' is unknown", files=[], split="tst")
    attempt("too few to place", tsne=True)
    attempt("no LLM layers", run=plain, method="activation")
    attempt("there is no such file", files=[str(tmp_path / "nothing.png")])
    attempt("there is no folder .*nowhere", files=[], split="test", root=str(tmp_path / "nowhere"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture_set, "picture", full)
    attempt("--out .*cannot be written .*make room")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_read_images_differently():
    first = untrained.rllm("small_vit", "none")
    second = dataclasses.replace(first, preprocessing=dataclasses.replace(first.preprocessing, size=14))
    samples.check_alike(first, first)
    with pytest.raises(UserError, match=r"differ in size \(12 and 14\): compare runs on the same images"):
        samples.check_alike(first, second)


@pytest.mark.parametrize(
    ("kind", "words"), [(BaselineRun, "is the run of a baseline: it has no"), (ExportedModel, "is an export, whose")]
)
def test_what_has_no_network_to_look_into(monkeypatch, tmp_path, kind, words):
    """The pictures of a report say so too, instead of ending it."""
    monkeypatch.setattr(open_run, "open_run", lambda *_: object.__new__(kind))
    with pytest.raises(UserError, match=words):
        command.explain(Request(run=tmp_path / "run", files=["a.png"], out=tmp_path / "out"))
    with pytest.raises(UserError, match=words):
        for_report.worst_errors(tmp_path / "run")


def test_data_that_changed(runs, opened_once, tmp_path):
    boosted, _, data = runs
    changed = tmp_path / "changed"
    shutil.copytree(data, changed)
    assert samples.from_split(opened_once[boosted], "test", str(changed)).names
    file = changed / "images" / "p00_0.png"
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    with pytest.raises(
        UserError, match=r"has other data than .* was trained with: give the data of the run with --root"
    ):
        samples.from_split(opened_once[boosted], "test", str(changed))
