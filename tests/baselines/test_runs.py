"""Runs of baselines: the folder, prediction with it, what validation and the test split may change, what is refused."""

import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxboost.baselines import embeddings
from jaxboost.baselines.boosting import Boosting
from jaxboost.baselines.linear import Logistic
from jaxboost.errors import UserError
from jaxboost.inference import open_run
from jaxboost.inference.export import export
from jaxboost.inference.predict import predict
from jaxboost.models.frozen import count
from jaxboost.runs import cross_validation, report, train, workdir
from jaxboost.systems import start
from tests import finished_runs
from tests.baselines.small import small_config, write_images

RUNGS = ("prevalence", "trivial", "knn", "logistic", "boosting")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("small") / "images")


@pytest.fixture(scope="module", autouse=True)
def few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Boosting, "ROUNDS", 10)
        patch.setattr(Boosting, "LEAVES", (4,))
        yield


@pytest.fixture(scope="module", autouse=True)
def one_encoder():
    """The tiny random encoder is drawn and compiled once for all runs of this file."""

    def once(make):
        made = {}

        def get(system, *arguments, **options):
            key = (system.boost, count(system.frozen), options.get("seed"))
            if key not in made:
                made[key] = make(system, *arguments, **options)
            return made[key]

        return get

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "initialise", once(start.initialise))
        patch.setattr(embeddings, "make_encode", once(embeddings.make_encode))
        yield


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Rung -> folder of its finished run."""
    folder = tmp_path_factory.mktemp("runs")
    for rung in RUNGS:
        train.train_and_evaluate(small_config(images, rung), folder / rung)
    return {rung: folder / rung for rung in RUNGS}


def images_of(root, run):
    names = finished_runs.named_predictions(run)
    return np.stack([np.asarray(Image.open(root / name)) for name in names])


@pytest.mark.parametrize("rung", RUNGS)
def test_folder_of_a_run(runs, rung):
    run = runs[rung]
    result = workdir.result_in(run)
    assert (result.boost, result.protocol, result.steps) == ("baseline", "validation", None)
    assert result.splits == {"train": 36, "val": 12, "test": 12}
    assert result.selection.epoch is None
    names = {"prevalence": [], "trivial": ["C"], "knn": ["k"], "logistic": ["C"], "boosting": ["leaves", "rate"]}
    assert list(result.selection.chosen) == names[rung]
    assert result.selection.value == pytest.approx(result.val.auc)
    content = json.loads((run / "result.json").read_text())
    assert "epoch" not in content["selection"]
    assert "scikit-learn" in content["versions"]
    embeds = rung in ("knn", "logistic", "boosting")
    assert content["encoder"] is None if not embeds else content["encoder"]["source"] == "random"
    assert (result.parameters.frozen > 0) == embeds
    files = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    expected = {"config.json", "result.json", "classifier.npz", "predictions"}
    assert {name for name in files if not name.startswith("source-tokens-")} == expected
    assert (run / "predictions" / "test.csv").exists()


def test_fitted_numbers(runs):
    found = {rung: workdir.result_in(run).parameters.trainable for rung, run in runs.items()}
    # Three classes; 25 - 1 trivial features of a grey image; embeddings of twice 128 numbers.
    assert (found["prevalence"], found["trivial"], found["knn"]) == (3, 3 * (24 + 1), 0)
    assert found["logistic"] == 3 * (256 + 1)
    assert found["boosting"] > 0


@pytest.mark.parametrize("rung", RUNGS)
def test_prediction_repeats_the_runs_own(runs, images, rung, tmp_path):
    run = open_run.open_run(runs[rung])
    own = finished_runs.own_predictions(runs[rung])
    np.testing.assert_allclose(run.predict(images_of(images, runs[rung])), own, rtol=0, atol=1e-6)
    width = {"prevalence": 0, "trivial": 24}.get(rung, 256)
    assert run.features(images_of(images, runs[rung])).shape == (12, width)


def test_prediction_of_files(runs, images, tmp_path):
    run = runs["logistic"]
    files = [str(images / name) for name in finished_runs.named_predictions(run)]
    predict(run, files=files, out=tmp_path / "table.csv")
    table = finished_runs.read_table(tmp_path / "table.csv")
    found = [[float(row[name]) for name in ("dark", "grey", "light")] for row in table]
    np.testing.assert_allclose(found, finished_runs.own_predictions(run), rtol=0, atol=1e-6)


def test_export_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="is the run of a baseline, which cannot be exported"):
        export(open_run.open_run(runs["trivial"]), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_run_again(runs, images):
    before = {path: path.stat().st_mtime_ns for path in runs["knn"].rglob("*")}
    content = train.train_and_evaluate(small_config(images, "knn"), runs["knn"])
    assert content["test"] == json.loads((runs["knn"] / "result.json").read_text())["test"]
    assert {path: path.stat().st_mtime_ns for path in runs["knn"].rglob("*")} == before


def test_another_config_is_refused(runs, images):
    with pytest.raises(UserError, match=r"another config, which differs in baseline\.classifier"):
        train.train_and_evaluate(small_config(images, "logistic"), runs["knn"])


def test_other_weights_and_data_are_refused(runs, images, tmp_path):
    with pytest.raises(UserError, match="with the encoder from random"):
        train.train_and_evaluate(small_config(images, "knn", model__weights=str(tmp_path)), runs["knn"])
    other = write_images(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="is a finished run with other data"):
        train.train_and_evaluate(small_config(other, "knn"), runs["knn"])


def test_the_same_command_completes_a_run(runs, images, tmp_path):
    """Without its result a run counts as interrupted; the embeddings are kept."""
    run = shutil.copytree(runs["logistic"], tmp_path / "run")
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    (cache,) = run.glob("source-tokens-*/*.npy")
    written = cache.stat().st_mtime_ns
    train.train_and_evaluate(small_config(images, "logistic"), run)
    after = json.loads((run / "result.json").read_text())
    assert after["sha256"] == before["sha256"]
    assert cache.stat().st_mtime_ns == written


def test_a_full_disk_leaves_no_result(images, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write_predictions", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left"):
            train.train_and_evaluate(small_config(images, "trivial"), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(UserError, match="is not finished"):
        open_run.open_run(tmp_path / "run")
    assert train.train_and_evaluate(small_config(images, "trivial"), tmp_path / "run")["boost"] == "baseline"


def test_runs_share_a_folder_of_embeddings(images, runs, tmp_path):
    for rung in ("knn", "logistic"):
        config = small_config(images, rung, baseline__cache=str(tmp_path / "cache"))
        train.train_and_evaluate(config, tmp_path / rung)
        assert list((tmp_path / rung).glob("source-tokens-*")) == []
    assert len(list((tmp_path / "cache").iterdir())) == 1
    np.testing.assert_array_equal(
        finished_runs.own_predictions(tmp_path / "knn"), finished_runs.own_predictions(runs["knn"])
    )


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_damaged_classifier(runs, tmp_path, damage):
    run = shutil.copytree(runs["trivial"], tmp_path / "run")
    if damage == "missing":
        (run / "classifier.npz").unlink()
    else:
        (run / "classifier.npz").write_bytes((run / "classifier.npz").read_bytes() + b"x")
    with pytest.raises(UserError, match=r"classifier\.npz.*" + damage):
        open_run.open_run(run)


def test_boosting_that_cannot_be_repeated_is_refused(runs, monkeypatch):
    monkeypatch.setattr(Boosting, "ROUNDS", 3)
    with pytest.raises(UserError, match="are not those of the run"):
        open_run.open_run(runs["boosting"])


@pytest.mark.parametrize("rung", ["trivial", "boosting"])
def test_test_labels_and_images_change_no_other_prediction(images, runs, rung, tmp_path):
    changed = shutil.copytree(images, tmp_path / "images")
    table = (changed / "labels.csv").read_text().splitlines()
    # The classes of the test split in another order, and one of its images another one.
    turn = {"dark": "grey", "grey": "light", "light": "dark"}
    for number, line in enumerate(table):
        file, label, patient, split = line.split(",")
        if split == "test":
            table[number] = ",".join((file, turn[label], patient, split))
    (changed / "labels.csv").write_text("\n".join(table) + "\n")
    first = finished_runs.named_predictions(runs[rung])[0]
    pixels = 255 - np.asarray(Image.open(changed / first))
    Image.fromarray(pixels).save(changed / first)
    run = tmp_path / "run"
    train.train_and_evaluate(small_config(changed, rung), run)
    names = finished_runs.named_predictions(run)
    own, before = finished_runs.own_predictions(run), finished_runs.own_predictions(runs[rung])
    kept = [number for number, name in enumerate(names) if name != first]
    np.testing.assert_array_equal(own[kept], before[kept])
    val = [np.loadtxt(next((folder / "predictions").glob("*_val_*")), delimiter=",") for folder in (run, runs[rung])]
    np.testing.assert_array_equal(*val)


def test_val_labels_change_the_choice_alone(images, runs, tmp_path):
    """Any run with other labels of validation is one of the grid's, fitted to the same train split."""
    changed = shutil.copytree(images, tmp_path / "images")
    table = (changed / "labels.csv").read_text().splitlines()
    turn = {"dark": "light", "light": "grey", "grey": "dark"}
    for number, line in enumerate(table):
        file, label, patient, split = line.split(",")
        if split == "val":
            table[number] = ",".join((file, turn[label], patient, split))
    (changed / "labels.csv").write_text("\n".join(table) + "\n")
    config = small_config(changed, "trivial")
    train.train_and_evaluate(config, tmp_path / "run")
    chosen = workdir.result_in(tmp_path / "run").selection.chosen
    assert chosen != workdir.result_in(runs["trivial"]).selection.chosen
    # The run on the right labels, with the same C, predicts the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logistic, "C", (chosen["C"],))
        train.train_and_evaluate(small_config(images, "trivial"), tmp_path / "same")
    np.testing.assert_array_equal(
        finished_runs.own_predictions(tmp_path / "run"), finished_runs.own_predictions(tmp_path / "same")
    )


def test_folds(images, tmp_path):
    config = small_config(images, "knn", data__folds=3, data__val_share=0.25)
    result = cross_validation.train_and_evaluate(config, tmp_path / "run")
    assert result["boost"] == "baseline"
    assert [fold["selection"]["chosen"].keys() for fold in result["folds"]] == [{"k"}] * 3
    assert "epoch" not in result["folds"][0]["selection"]
    # One encoder's embeddings for all folds, in the common folder.
    assert len(list((tmp_path / "run").glob("source-tokens-*/*.npy"))) == 1
    tested = [finished_runs.named_predictions(tmp_path / "run" / f"fold{number}") for number in range(3)]
    assert sorted(name for names in tested for name in names) == sorted(path.name for path in images.glob("*.png"))


def test_a_result_of_another_classifier(runs, tmp_path):
    """Results of earlier versions have no checksums; this one's are taken away."""
    run = shutil.copytree(runs["knn"], tmp_path / "run")
    content = json.loads((run / "result.json").read_text())
    del content["sha256"], content["costs_sha256"]
    content["selection"]["chosen"] = {"C": 1.0}
    (run / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"classifier\.npz does not fit knn with {'C': 1\.0}"):
        open_run.open_run(run)
