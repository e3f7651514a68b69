"""Runs on a user's own files: splits that are made once and kept, official ones, and folds, in 2-D and 3-D."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from configs import pneumollm
from jaxboost.analysis.describe import describe
from jaxboost.config import table
from jaxboost.errors import UserError
from jaxboost.runs import cross_validation, datasets
from jaxboost.training import step
from tests.training.own_folders import COUNT, make_config, write_pictures, write_volumes

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A small run on class folders: its folder and its result."""
    folder = tmp_path_factory.mktemp("runs") / "seed0"
    return folder, cross_validation.train_and_evaluate(make_config(pictures), folder)


def read_splits(folder):
    with (folder / "splits.csv").open(newline="") as file:
        return {row["file"]: row["split"] for row in csv.DictReader(file)}


def test_class_folders_end_to_end(finished):
    folder, result = finished
    assert (result["dataset"], result["classes"], result["model"]) == ("mine", ["bright", "dark"], "vit_tiny")
    assert result["splits"] == {"train": 16, "val": 8, "test": 8}
    assert result["test"]["auc"] > 0.8
    assert len(result["data_sha256"]) == 64
    splits = read_splits(folder)
    assert len(splits) == 2 * COUNT
    with (folder / "predictions" / "test.csv").open(newline="") as file:
        tested = {row["file"] for row in csv.DictReader(file)}
    assert tested == {name for name, split in splits.items() if split == "test"}


def test_the_splits_of_a_run_are_read_again(finished, pictures, tmp_path):
    """They are those of the file, not of the seed; a run without its result goes on with them."""
    folder, result = finished
    splits = read_splits(folder)
    text = (folder / "splits.csv").read_text()
    one, other = (next(name for name, split in splits.items() if split == wanted) for wanted in ("train", "test"))
    label = {name: name.partition("/")[0] for name in (one, other)}
    text = text.replace(f"{one},{label[one]},train", f"{one},{label[one]},test")
    text = text.replace(f"{other},{label[other]},test", f"{other},{label[other]},train")
    (tmp_path / "splits.csv").write_text(text)
    swapped = cross_validation.train_and_evaluate(make_config(pictures), tmp_path)
    assert (tmp_path / "splits.csv").read_text() == text
    # The files are the same ones.
    assert swapped["data_sha256"] == result["data_sha256"]
    with (tmp_path / "predictions" / "test.csv").open(newline="") as file:
        tested = {row["file"] for row in csv.DictReader(file)}
    assert one in tested
    assert other not in tested


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(finished, pictures, tmp_path, monkeypatch):
    _, result = finished
    put, calls = step.put, []

    def put_or_die(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "put", put_or_die)
        with pytest.raises(KeyboardInterrupt):
            cross_validation.train_and_evaluate(make_config(pictures), tmp_path)
    assert (tmp_path / "splits.csv").exists()
    again = cross_validation.train_and_evaluate(make_config(pictures), tmp_path)
    assert (again["test"], again["data_sha256"]) == (result["test"], result["data_sha256"])


def test_a_folder_that_changed_is_told(tmp_path):
    folder, run = write_pictures(tmp_path / "data"), tmp_path / "run"
    config = make_config(folder)
    splits = datasets.own_splits(config, run)
    before = datasets.fingerprint(splits.load(), config)
    assert not run.exists()
    splits.prepare()
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "splits.csv"]
    assert datasets.fingerprint(datasets.own_splits(config, run).load(), config) == before
    first = folder / "dark" / "00.png"
    first.rename(folder / "dark" / "new.png")
    with pytest.raises(UserError, match=r"splits\.csv row [0-9]+: 'dark/00.png' is not in the data set: undo what"):
        datasets.own_splits(config, run).load()
    # Another image of the same name is another data set, which a checkpoint is not resumed with.
    Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(first)
    (folder / "dark" / "new.png").unlink()
    assert datasets.fingerprint(datasets.own_splits(config, run).load(), config) != before


def test_val_is_cut_out_of_train(tmp_path):
    write_pictures(tmp_path / "data" / "train")
    for label in ("bright", "dark"):
        (tmp_path / "data" / "test" / label).mkdir(parents=True)
        for number in range(4):
            file = tmp_path / "data" / "train" / label / f"{number:02}.png"
            file.rename(tmp_path / "data" / "test" / label / file.name)
    config = make_config(tmp_path / "data")
    splits = datasets.own_splits(config, tmp_path / "run")
    assert {name: len(split) for name, split in splits.load().splits.items()} == {"train": 16, "val": 8, "test": 8}
    assert {name.partition("/")[0] for name in splits.load().splits["test"].names} == {"test"}
    assert not (tmp_path / "run").exists()
    splits.prepare()
    again = datasets.own_splits(make_config(tmp_path / "data", data__fold_seed=5), tmp_path / "run").load()
    for name, split in splits.load().splits.items():
        np.testing.assert_array_equal(again.splits[name].names, split.names)
    # The reference's protocol needs no val.
    config.eval.protocol = "reference"
    assert set(datasets.own_splits(config, tmp_path / "other").load().splits) == {"train", "test"}


def test_volumes_end_to_end(tmp_path):
    folder = write_volumes(tmp_path / "data")
    config = make_config(
        folder, data__size=14, model__backbone="vit3d_tiny", model__image_size=14, data__window=(-1000.0, 1000.0)
    )
    result = cross_validation.train_and_evaluate(config, tmp_path / "run")
    assert (result["dataset"], result["classes"], result["model"]) == ("mine", ["healthy", "sick"], "vit3d_tiny")
    assert result["splits"] == {"train": 24, "val": 12, "test": 12}
    assert 0 <= result["test"]["auc"] <= 1
    with (tmp_path / "run" / "splits.csv").open(newline="") as file:
        split_of = {}
        for row in csv.DictReader(file):
            assert split_of.setdefault(row["patient_id"], row["split"]) == row["split"]
    assert len(split_of) == 24


def test_folds_of_a_folder(pictures, tmp_path, monkeypatch, caplog):
    """R-LLM has folds too; nothing is written of shares."""
    caplog.set_level("INFO", "jaxboost")
    fold_of, with_images = datasets.fold_of, []

    def counted(dataset, *arguments):
        with_images.append(any(split.images.size for split in dataset.splits.values()))
        return fold_of(dataset, *arguments)

    monkeypatch.setattr(datasets, "fold_of", counted)
    config = make_config(pictures, data__folds=2, data__val_share=0.25, train__epochs=1)
    first = make_config(pictures, data__folds=2, data__val_share=0.25, train__epochs=1, data__fold=0)
    assert cross_validation.train_and_evaluate(first, tmp_path) is None
    assert "fold 0 (folds are 0 to 1)" in caplog.text
    assert "fold(s) 1 not finished yet: run them for the result of all folds" in caplog.text
    result = cross_validation.train_and_evaluate(config, tmp_path)
    # A fold copies its images, so each is made with them once.
    assert sum(with_images) == 2
    assert [fold["splits"]["test"] for fold in result["folds"]] == [16, 16]
    assert (tmp_path / "folds.csv").exists()
    assert not list(tmp_path.rglob("splits.csv"))


def test_official_splits_of_a_folder(pictures, tmp_path):
    root = tmp_path / "data"
    for label in ("bright", "dark"):
        for number, path in enumerate(sorted((pictures / label).iterdir())):
            new = root / ("train", "train", "val", "test")[number % 4] / label / path.name
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(path.read_bytes())
    run = tmp_path / "run"
    result = cross_validation.train_and_evaluate(make_config(root, train__epochs=1), run)
    assert result["splits"] == {"train": 16, "val": 8, "test": 8}
    assert not (run / "splits.csv").exists()
    # With folds they are pooled.
    whole = datasets.load(make_config(root))
    fold = datasets.fold_of(whole, make_config(root, data__folds=2, data__val_share=0.25), 0, None)
    assert sum(map(len, fold.splits.values())) == 2 * COUNT
    (root / "val" / "dark" / "02.png").write_bytes((root / "train" / "dark" / "00.png").read_bytes())
    with pytest.raises(UserError, match=r"val/dark/02.png: has the same pixels as train/dark/00.png: their splits"):
        cross_validation.train_and_evaluate(make_config(root), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__shares": (0.5, 0.5, 0.5)}, ["data.shares", "add up to 1"]),
        ({"data__shares": (0.8, 0.0, 0.2)}, ["data.shares", "val"]),
        ({"data__fold": 1}, ["data.fold", "data.folds"]),
        ({"data__name": ""}, ["data.name"]),
        ({"data__root": ""}, ["data.root is empty"]),
        ({"data__source": "fodler"}, ["data.source", "folder"]),
        ({"data__spacing": 1.0}, ["data.spacing", "volumes"]),
        ({"model__backbone": "vit_tny"}, ["model.backbone", "vit_tiny"]),
        ({"model__backbone": "vivit_tiny"}, ["2-D image, and model.backbone takes volumes"]),
        # Found once the data are there.
        ({"train__batch_size": 1000}, ["train.batch_size"]),
        ({"optim__name": "sgd"}, ["optim.name"]),
    ],
)
def test_mistakes_leave_nothing_behind(pictures, tmp_path, changes, words):
    with pytest.raises(UserError) as mistake:
        cross_validation.train_and_evaluate(make_config(pictures, **changes), tmp_path / "run")
    for word in words:
        assert word in str(mistake.value)
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()


def test_describe_needs_no_folder_where_the_classes_are_named():
    for backbone, ndim in (("vit_tiny", 2), ("vivit_tiny", 3)):
        config = make_config("/nowhere", data__classes=("a", "b", "c"), model__backbone=backbone)
        assert datasets.describe(config).ndim == ndim
        result = describe(config)
        assert (result["dataset"], result["classes"]) == ("mine", 3)
    with pytest.raises(UserError, match=r"data.root: there is no folder /nowhere"):
        describe(make_config("/nowhere"))


def test_both_systems_have_the_same_data_fields():
    assert table.get_config().data.keys() == table.get_pneumollm_config().data.keys()
    assert (table.get_config().data.source, table.get_config().data.folds) == ("", 0)
    data = json.loads(pneumollm.get_config().to_json())["data"]
    assert (data["source"], data["name"], data["folds"]) == ("folder", "radiographs", 5)
