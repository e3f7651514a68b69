"""Runs that count patients (`eval.unit`), baselines and trained ones, and their predictions of new patients."""

import csv
import json
import shutil

import numpy as np
import pytest

from jaxboost import data
from jaxboost.config import load_config
from jaxboost.data.sources.folder import input_patients
from jaxboost.errors import UserError
from jaxboost.evaluation import metrics
from jaxboost.inference.export import export_run
from jaxboost.inference.predict import predict
from jaxboost.runs import datasets, train, workdir
from jaxboost.tasks import BINARY
from tests import finished_runs
from tests.baselines.small import SIDE, small_config, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("two") / "images", classes=2)


def baseline_config(images, **changes):
    return small_config(images, "trivial", eval__specificity=0.6, **changes)


def trained_config(images, **changes):
    fields = {
        "data.source": "folder",
        "data.name": "small",
        "data.root": str(images),
        "data.size": SIDE,
        "model.backbone": "vit_tiny",
        "model.image_size": SIDE,
        "boost.kind": "none",
        "optim.lr": 1e-3,
        "optim.warmup_epochs": 0.0,
        "train.epochs": 3,
        "train.batch_size": 12,
        "eval.specificity": 0.6,
        "eval.bootstrap": 10,
    }
    return load_config("quickstart", **fields, **{name.replace("__", "."): value for name, value in changes.items()})


CONFIGS = {"baseline": baseline_config, "trained": trained_config}


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Kind -> folder of a finished run over patients."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, make in CONFIGS.items():
        train.train_and_evaluate(make(images, eval__unit="patient"), folder / kind)
    return {kind: folder / kind for kind in CONFIGS}


def pooled_by_hand(run, split):
    """Patient -> (class, mean probability of class 1), from the run's table of images."""
    rows = finished_runs.read_table(run / "predictions" / f"{split}.csv")
    found = {}
    for row in rows:
        found.setdefault(row["patient_id"], (row["label"], []))[1].append(float(row["grey"]))
    return {name: (int(label == "grey"), np.mean(values)) for name, (label, values) in found.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_figures_are_over_patients(runs, kind):
    result = workdir.result_in(runs[kind])
    assert result.splits == {"train": 36, "val": 12, "test": 12}
    for split in ("val", "test"):
        figures, by_hand = getattr(result, split), pooled_by_hand(runs[kind], split)
        labels = np.array([[label] for label, _ in by_hand.values()])
        positive = np.array([value for _, value in by_hand.values()])
        assert figures.n == len(by_hand) == 6
        expected = metrics.score(labels, np.stack([1 - positive, positive], axis=1), BINARY)
        assert (figures.auc, figures.acc) == pytest.approx((expected["auc"], expected["acc"]))
        if split == "val":
            assert result.selection.value == pytest.approx(expected["auc"], abs=1e-6)
        above = positive >= result.threshold.value - 1e-7
        assert getattr(result.threshold, split)["acc"] == pytest.approx((above == labels[:, 0]).mean())
        assert result.threshold.val["specificity"] >= 0.6


@pytest.mark.parametrize("kind", CONFIGS)
def test_files_of_predictions_stay_per_image(runs, kind):
    assert len(finished_runs.own_predictions(runs[kind])) == 12
    assert len(finished_runs.read_table(runs[kind] / "predictions" / "test.csv")) == 12


def test_the_log_counts_patients(runs):
    """Validation picks the epoch over patients."""
    lines = [json.loads(line) for line in (runs["trained"] / "metrics.jsonl").read_text().splitlines()]
    found = [line["val_auc"] for line in lines if "val_auc" in line]
    assert len(found) == 3
    selection = workdir.result_in(runs["trained"]).selection
    assert selection.value == max(found)
    # Six patients, three of each class: nine pairs.
    assert all(round(value * 9 * 2, 6).is_integer() for value in found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_another_unit_is_another_run(runs, images, kind):
    with pytest.raises(UserError, match=r"differs in eval\.unit \('patient' there, 'image' now\)"):
        train.train_and_evaluate(CONFIGS[kind](images), runs[kind])


@pytest.mark.parametrize("kind", CONFIGS)
def test_patients_with_two_classes_are_refused_before_anything_is_written(images, kind, tmp_path):
    mixed = shutil.copytree(images, tmp_path / "mixed")
    table = (mixed / "labels.csv").read_text()
    assert "00.png,dark," in table
    (mixed / "labels.csv").write_text(table.replace("00.png,dark,", "00.png,grey,"))
    config = CONFIGS[kind](mixed, eval__unit="patient", data__allow_mixed_patients=True)
    with pytest.raises(UserError, match=r"eval\.unit: patient 'p0' has items of the classes 1 and 0, so"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def new_patients(images, runs, tmp_path_factory):
    """The test images in a folder for each patient, one of them loose."""
    folder = tmp_path_factory.mktemp("new")
    rows = finished_runs.read_table(runs["baseline"] / "predictions" / "test.csv")
    for number, row in enumerate(rows):
        target = folder / row["patient_id"] if number else folder
        target.mkdir(exist_ok=True)
        shutil.copyfile(images / row["file"], target / row["file"])
    return folder, rows[0]["file"], rows[0]["patient_id"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_predictions_of_patients(runs, kind, new_patients, tmp_path, package_warnings):
    folder, loose, first = new_patients
    out = tmp_path / "out.csv"
    predict(runs[kind], files=[str(folder)], out=out)
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out_patients.csv"}
    by_image = {row["file"]: float(row["grey"]) for row in finished_runs.read_table(out)}
    rows = finished_runs.read_table(tmp_path / "out_patients.csv")
    assert list(rows[0]) == ["patient_id", "images", "dark", "grey", "prediction", "threshold"]
    by_hand = pooled_by_hand(runs[kind], "test")
    threshold = workdir.result_in(runs[kind]).threshold.value
    assert len(rows) == 7
    for row in rows:
        positive = float(row["grey"])
        if row["patient_id"] in by_hand and row["patient_id"] != first:
            assert row["images"] == "2"
            assert positive == pytest.approx(by_hand[row["patient_id"]][1], abs=1e-6)
        else:
            assert row["images"] == "1"
        assert row["prediction"] == ("grey" if positive >= threshold else "dark")
    alone = {row["patient_id"]: float(row["grey"]) for row in rows}[str(folder / loose)]
    assert alone == pytest.approx(by_image[str(folder / loose)])
    assert [text for text in package_warnings if "the patient is unknown" in text and loose in text]
    # Both tables may be written again; another file is not replaced.
    predict(runs[kind], files=[str(folder)], out=out)
    (tmp_path / "out_patients.csv").write_text("mine\n")
    with pytest.raises(UserError, match=r"out_patients\.csv already exists and is not a table of predictions"):
        predict(runs[kind], files=[str(folder)], out=out)


def test_an_export_predicts_patients_as_its_run_does(runs, new_patients, tmp_path):
    export_run(runs["trained"], tmp_path / "MODEL")
    for source in (runs["trained"], tmp_path / "MODEL"):
        predict(source, files=[str(new_patients[0])], out=tmp_path / f"{source.name}.csv")
    ours, theirs = (finished_runs.read_table(tmp_path / f"{name}_patients.csv") for name in ("MODEL", "trained"))
    numbers = ("dark", "grey")
    assert len(ours) == 7
    for one, other in zip(ours, theirs, strict=True):
        assert [float(one.pop(name)) for name in numbers] == pytest.approx([float(other.pop(name)) for name in numbers])
        assert one == other


def test_a_name_in_several_folders(tmp_path, package_warnings):
    files = [tmp_path / name for name in ("2019/p1/a.png", "2019/p2/b.png", "2020/p1/c.png", "2020/p3/d.png")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    found = input_patients.find([str(tmp_path / "2019"), str(tmp_path / "2020")], files, [])
    assert found == ["p1", "p2", "p1", "p3"]
    assert len(package_warnings) == 1
    assert (
        "count as one each: p1; if they are different people, predict the folders one at a time" in package_warnings[0]
    )


def test_patients_of_inputs(tmp_path):
    names = ["a.png", "p1/b.png", "images/c.png", "benign/p2/d.png", "train/benign/IMG/p3/x/e.png", "p1/f.png"]
    files = [tmp_path / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = input_patients.find([str(tmp_path)], files, ["benign", "malignant"])
    assert found == [str(files[0]), "p1", str(files[2]), "p2", "p3", "p1"]
    # A file alone has no folder that names its patient; a folder of one patient names none either.
    assert input_patients.find([str(files[1])], files[1:2], []) == [str(files[1])]
    both = f"{files[0]},{tmp_path / 'p1'}"
    assert input_patients.find([both], [files[1]], []) == [str(files[1])]


def test_patients_of_a_table(tmp_path):
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / name for name in ("a.png", "b.png", "c.png")]
    for file in files:
        file.touch()
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "patient_id"), ("a.png", "one"), ("b.png", "one")])
    assert input_patients.find([str(tmp_path)], files, []) == ["one", "one", str(files[2])]
    (tmp_path / "labels.csv").write_text("file,patient_id\na.png,\n")
    with pytest.raises(UserError, match="patient_id is empty"):
        input_patients.find([str(tmp_path)], files, [])
    # A table without patients leaves them to the folders.
    (tmp_path / "labels.csv").write_text("file,label\na.png,x\n")
    assert input_patients.find([str(tmp_path)], files[:1], []) == [str(files[0])]


@pytest.fixture(scope="module")
def grouped(official_root, tmp_path_factory):
    """BreastMNIST with two images of the same class for each patient: a config, and its table."""
    table = tmp_path_factory.mktemp("table") / "patients.csv"
    rows = ["file,patient_id"]
    with np.load(official_root / "breastmnist.npz") as arrays:
        for split in ("train", "val", "test"):
            labels = arrays[f"{split}_labels"][:, 0]
            for label in (0, 1):
                members = np.flatnonzero(labels == label)
                rows += [f"{split}/{row},{split}-{label}-{number // 2}" for number, row in enumerate(members)]
    table.write_text("\n".join(rows) + "\n")
    config = load_config(
        "baseline:trivial+2d",
        **{
            "data.name": "breastmnist",
            "data.root": str(official_root),
            "data.groups": str(table),
            "eval.unit": "patient",
            "eval.bootstrap": 10,
        },
    )
    return config, table


def test_patients_of_a_published_set(grouped, tmp_path):
    config, table = grouped
    train.train_and_evaluate(config, tmp_path / "run")
    result = workdir.result_in(tmp_path / "run")
    assert (result.splits["test"], result.test.n) == (156, 78)
    # They make it a data set of the user's own: another table is other data, and the same table may move.
    assert result.data_sha256
    assert result.splits_sha256
    moved = shutil.copyfile(table, tmp_path / "moved.csv")
    config.data.groups = str(moved)
    train.train_and_evaluate(config, tmp_path / "run")
    other = moved.read_text().replace("test-0-0\n", "test-0-1\n")
    assert other != moved.read_text()
    (tmp_path / "other.csv").write_text(other)
    config.data.groups = str(tmp_path / "other.csv")
    with pytest.raises(UserError, match="is a finished run with other data than"):
        train.train_and_evaluate(config, tmp_path / "run")
    config.data.groups = str(table)


def test_folds_go_by_the_given_patients(grouped):
    config, table = grouped
    whole = datasets.load(config.copy_and_resolve_references())
    fold = data.fold_of(whole, count=3, fold=0, seed=0, val_share=0.2, file=None)
    groups = {name: set(split.groups) for name, split in fold.splits.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["val"]
    assert sum(map(len, groups.values())) == len({line.split(",")[1] for line in table.read_text().splitlines()[1:]})
