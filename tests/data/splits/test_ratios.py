"""Splits by given ratios: by patient, stratified, and kept in a file that is checked."""

import csv
import dataclasses
import os

import numpy as np
import pytest

from jaxboost.data import divide
from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.splits import patients
from jaxboost.data.splits.ratios import assign, write
from jaxboost.data.walk import printable
from jaxboost.errors import UserError

CLASSES = ("normal", "silicosis")
RATIOS = (0.7, 0.1, 0.2)
BY_SPLIT = dict(zip(("train", "val", "test"), RATIOS, strict=True))


def data_set(labels, groups=None, classes=CLASSES):
    n = len(labels)
    names = np.array([f"{index}, a.png" for index in range(n)])
    split = Split(images=np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), labels=labels, groups=groups, names=names)
    info = DatasetInfo("mine", "binary-class", classes, 1, 2, 1, {"all": n}, "")
    return Dataset(info=info, splits={"all": split}, baselines={})


def cohort(seed=0, patients=80):
    """Labels (n, 1) and patients (n,): 1 to 4 samples per patient with one label, shuffled."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    order = rng.permutation(len(groups))
    return (groups * 7 % 10 < 4).astype(np.int64)[order, None], np.array([f"P{group:03}" for group in groups[order]])


def divided(dataset, **options):
    return divide(dataset, **({"ratios": RATIOS, "seed": 0, "file": None} | options))


@pytest.mark.parametrize("seed", range(3))
def test_by_patient_and_stratified(seed):
    labels, groups = cohort(seed)
    found = divided(data_set(labels, groups), seed=seed)
    assert list(found.splits) == ["train", "val", "test"]
    assert found.info.n_samples == {name: len(part) for name, part in found.splits.items()}
    patients = [set(part.groups) for part in found.splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 80
    for (name, part), ratio in zip(found.splits.items(), RATIOS, strict=True):
        assert len(part) == pytest.approx(ratio * len(labels), abs=3), name
        assert part.labels.sum() == pytest.approx(ratio * labels.sum(), abs=3), name
        np.testing.assert_array_equal(part.labels, labels[part.images[:, 0, 0, 0]])


def test_single_samples_are_split_exactly():
    labels = np.repeat([0, 1], [70, 30])[:, None]
    splits = assign(labels, None, ratios=BY_SPLIT, seed=0)
    counts = {name: np.bincount(labels[splits == name, 0]).tolist() for name in BY_SPLIT}
    assert counts == {"train": [49, 21], "val": [7, 3], "test": [14, 6]}


def test_a_rare_class_is_in_every_split():
    labels = np.repeat([0, 1, 2], [200, 60, 3])[:, None]
    splits = assign(labels, None, ratios=BY_SPLIT, seed=0)
    assert [np.bincount(labels[splits == name, 0])[2] for name in BY_SPLIT] == [1, 1, 1]
    assert [int((splits == name).sum()) for name in BY_SPLIT] == pytest.approx([184, 26, 53], abs=2)


def test_large_patients_do_not_always_go_to_training():
    """One patient has 20 of 200 samples, which fit into the test split."""
    labels = (np.arange(200) % 2)[:, None]
    groups = np.array(["large"] * 20 + [f"P{index}" for index in range(180)])
    splits = [assign(labels, groups, ratios=BY_SPLIT, seed=seed)[0] for seed in range(40)]
    assert 1 <= splits.count("test") <= 39
    assert splits.count("val") < splits.count("train")


def test_several_labels():
    rng = np.random.default_rng(0)
    labels = np.stack([rng.random(300) < ratio for ratio in (0.5, 0.2, 0.03)], 1).astype(np.int64)
    splits = assign(labels, None, ratios=BY_SPLIT, seed=0)
    for column in labels.T:
        for name, ratio in BY_SPLIT.items():
            assert 1 <= column[splits == name].sum() == pytest.approx(ratio * column.sum(), abs=3)


def test_the_seed_is_the_only_source_of_randomness():
    labels, groups = cohort()
    first, again, other = (assign(labels, groups, ratios=BY_SPLIT, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_validation():
    found = divided(data_set(*cohort()), ratios=(0.8, 0.0, 0.2), without_val=True)
    assert list(found.splits) == ["train", "test"]
    with pytest.raises(UserError, match=r"^data.shares=\(0.8, 0.0, 0.2\): the ratio of val should be above 0"):
        divided(data_set(*cohort()), ratios=(0.8, 0.0, 0.2))


def with_test_split():
    """A data set with the splits train and test; test has the last 20 of 80 patients."""
    whole = data_set(*cohort())
    is_test = whole.splits["all"].groups >= "P060"
    splits = {
        name: whole.splits["all"].take(np.flatnonzero(rows)) for name, rows in (("train", ~is_test), ("test", is_test))
    }
    return dataclasses.replace(whole, splits=splits)


def test_an_existing_test_split_is_kept(tmp_path):
    dataset = with_test_split()
    found = divided(dataset)
    assert list(found.splits) == ["train", "val", "test"]
    np.testing.assert_array_equal(found.splits["test"].images, dataset.splits["test"].images)
    parts = [set(found.splits[name].groups) for name in ("train", "val")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(dataset.splits["train"].groups)
    assert len(found.splits["val"]) == pytest.approx(len(dataset.splits["train"]) / 8, abs=3)
    assert found.info.n_samples == {name: len(part) for name, part in found.splits.items()}

    path = tmp_path / "splits.csv"
    write(path, found)
    again = divided(dataset, seed=3, file=path)
    for name, part in found.splits.items():
        np.testing.assert_array_equal(again.splits[name].names, part.names)
    one = found.splits["test"].groups[0]
    lines = [
        line.replace(",test", ",train") if line.startswith(one) else line for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"splits\.csv: '.*' is moved out of or into the data set's own test split: undo"
    ):
        divided(dataset, file=path)


def check(dataset):
    groups, names = (
        {name: getattr(split, field) for name, split in dataset.splits.items()} for field in ("groups", "names")
    )
    patients.check(groups, dataset.info.name, names=names)


def test_a_patient_in_two_splits():
    dataset = with_test_split()
    check(dataset)
    moved = dataset.splits["test"].groups.copy()
    moved[1] = patient = dataset.splits["train"].groups[0]
    splits = dataset.splits | {"test": dataclasses.replace(dataset.splits["test"], groups=moved)}
    message = (
        rf"^mine: patient '{patient}' is in train \(\d+, a.png\) and in test \(\d+, a.png\): give every patient to"
    )
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(dataset, splits=splits))


@pytest.mark.parametrize("ratios", [(0.8, 0.2), (0.7, 0.2, 0.2), (1.2, -0.4, 0.2), (70.0, 10.0, 20.0)])
def test_invalid_ratios(ratios):
    with pytest.raises(
        UserError, match=r"^data.shares=.*: give the split ratios of train, val and test, which add up to 1"
    ):
        divided(data_set(*cohort()), ratios=ratios)


def test_too_few_patients():
    labels = np.repeat([0, 1], [9, 4])[:, None]
    groups = np.array([f"P{index}" for index in range(9)] + ["Q1", "Q1", "Q2", "Q2"])
    with pytest.raises(
        UserError, match=r"^every class needs 3 patients, one for each split, and class 'silicosis' has 2, 'tb' has 0: "
    ):
        divided(data_set(labels, groups, (*CLASSES, "tb")))


@pytest.fixture
def table(tmp_path):
    """A data set, its splits, and the file of the splits."""
    dataset = data_set(*cohort(patients=30))
    found = divided(dataset)
    write(tmp_path / "splits.csv", found)
    return dataset, found, tmp_path / "splits.csv"


def test_round_trip(table):
    dataset, found, path = table
    again = divided(dataset, seed=7, file=path)
    for name, part in found.splits.items():
        np.testing.assert_array_equal(again.splits[name].images, part.images)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["patient_id", "file", "label", "split"]
    first = found.splits["train"]
    assert list(rows[0].values()) == [first.groups[0], first.names[0], CLASSES[first.labels[0, 0]], "train"]
    assert len(rows) == len(dataset.splits["all"])


def test_without_patients(tmp_path):
    dataset = data_set(cohort()[0])
    found = divided(dataset)
    write(tmp_path / "splits.csv", found)
    name = found.splits["train"].names[0]
    assert (tmp_path / "splits.csv").read_text().splitlines()[1].startswith(f'"{name}","{name}",')
    assert divided(dataset, file=tmp_path / "splits.csv").splits["test"].groups is None


FIX = "undo what changed in the data or in this file"


def test_a_folder_that_changed(table):
    dataset, _, path = table
    whole = dataset.splits["all"]
    less = data_set(whole.labels[:-1], whole.groups[:-1])
    with pytest.raises(UserError, match=rf"row [0-9]+: '{len(whole) - 1}, a.png' is not in the data set: {FIX}"):
        divided(less, file=path)
    other = np.where(whole.groups == whole.groups[0], "new", whole.groups)
    with pytest.raises(UserError, match=rf"is of patient 'new' in the data set, not '{whole.groups[0]}': {FIX}"):
        divided(data_set(whole.labels, other), file=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=rf"no row for [0-9]+, a.png: {FIX}"):
        divided(dataset, file=path)
    path.write_text("\n".join(lines).replace(",val", ",valid"))
    with pytest.raises(UserError, match=rf"split 'valid' is not one of train, val, test: {FIX}"):
        divided(dataset, file=path)
    path.write_text("\n".join(lines).replace(",val", ",test"))
    with pytest.raises(UserError, match=rf"a class is missing from a split: 'val' has no 'normal', .*: {FIX}"):
        divided(dataset, file=path)


def test_a_file_that_cannot_be_written(table):
    _, found, path = table
    with pytest.raises(UserError, match=r"new\.csv: the splits cannot be written .*: give another --workdir"):
        write(path / "new.csv", found)


def test_a_named_pipe_instead_of_a_file(tmp_path):
    """It does not block."""
    os.mkfifo(tmp_path / "splits.csv")
    with pytest.raises(UserError, match=r"splits\.csv: cannot be read as a table of splits \(is a named pipe"):
        divided(data_set(*cohort()), file=tmp_path / "splits.csv")


def test_names_that_are_not_utf8(tmp_path):
    """Names from a folder were converted by `printable`."""
    dataset = data_set(*cohort())
    whole = dataset.splits["all"]
    odd = [b"caf\xe9", b"two\nlines", "\ud55c\u00e9".encode(), b' "a", b ']
    names = np.array([printable(os.fsdecode(odd[index % 4] + b"%d.png" % index)) for index in range(len(whole))])
    dataset = dataclasses.replace(dataset, splits={"all": dataclasses.replace(whole, names=names, groups=names)})
    found = divided(dataset)
    write(tmp_path / "splits.csv", found)
    again = divided(dataset, file=tmp_path / "splits.csv")
    for name, split in found.splits.items():
        assert set(split.names) == set(again.splits[name].names)
