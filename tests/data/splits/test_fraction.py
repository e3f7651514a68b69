"""A part of the training split: by patient, stratified, nested."""

import itertools

import numpy as np
import pytest

from jaxboost.config import load_config
from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.splits import fraction
from jaxboost.runs import datasets


def labels_and_patients(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """400 samples of 100 patients, a fifth of them ill."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 100, 400)
    return (patients % 5 == 0).astype(np.int64)[:, np.newaxis], np.array([f"p{number}" for number in patients])


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_part_lies_inside_a_larger_one(seed):
    labels, patients = labels_and_patients()
    parts = [fraction.kept(labels, patients, share, seed) for share in (0.1, 0.3, 0.55, 1.0)]
    for small, large in itertools.pairwise(parts):
        assert (small <= large).all()
        assert small.sum() < large.sum()
    assert parts[-1].all()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_patients_are_whole_and_classes_keep_their_share(share):
    labels, patients = labels_and_patients()
    chosen = fraction.kept(labels, patients, share, 0)
    assert not {*patients[chosen]} & {*patients[~chosen]}
    for label, count in ((0, 80), (1, 20)):
        assert len({*patients[chosen & (labels[:, 0] == label)]}) == round(share * count)


def test_each_class_keeps_a_patient():
    labels = np.array([[0]] * 97 + [[1]] * 3)
    chosen = fraction.kept(labels, None, 0.01, 0)
    assert labels[chosen, 0].tolist() == [0, 1]


def test_the_seed_draws():
    labels, patients = labels_and_patients()
    parts = [fraction.kept(labels, patients, 0.1, seed) for seed in (0, 0, 1)]
    assert (parts[0] == parts[1]).all()
    assert (parts[0] != parts[2]).any()


def test_several_labels_are_nested_too():
    labels = np.random.default_rng(0).integers(0, 2, (200, 4))
    small, large = (fraction.kept(labels, None, share, 0) for share in (0.1, 0.3))
    assert (small <= large).all()
    assert 20 <= small.sum() < large.sum()


def _dataset() -> Dataset:
    labels, patients = labels_and_patients()
    split = Split(images=np.arange(400, dtype=np.uint8)[:, np.newaxis], labels=labels, groups=patients)
    info = DatasetInfo("x", "binary-class", ("a", "b"), 1, 2, 28)
    return Dataset(info=info, splits={"train": split, "val": split}, baselines={"size": {"train": np.arange(400)}})


def test_the_other_splits_stay_whole():
    whole, part = _dataset(), fraction.take(_dataset(), 0.1, 0)
    assert fraction.take(whole, 1.0, 0) is whole
    assert part.splits["val"] is not None
    assert len(part.splits["val"]) == 400
    rows = np.flatnonzero(fraction.kept(*labels_and_patients(), 0.1, 0))
    np.testing.assert_array_equal(part.splits["train"].images[:, 0], rows.astype(np.uint8))
    np.testing.assert_array_equal(part.baselines["size"]["train"], rows)
    assert part.info.n_samples == {"train": len(rows), "val": 400}


def test_a_run_trains_on_the_part(few_lidc_root, tmp_path):
    sizes = {}
    for share in (1.0, 0.5):
        config = load_config("quickstart", **{"data.root": str(few_lidc_root), "data.train_fraction": share})
        dataset = datasets.own_splits(config, tmp_path).load()
        sizes[share] = [len(dataset.splits[name]) for name in ("train", "val", "test")]
    assert sizes[1.0] == [48, 24, 24]
    assert 12 < sizes[0.5][0] < 40
    assert sizes[0.5][1:] == [24, 24]
