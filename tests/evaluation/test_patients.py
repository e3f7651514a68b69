"""Metrics over patients: the mean of the probabilities of a patient's images, by hand."""

import numpy as np
import pytest

from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.errors import UserError
from jaxboost.evaluation import metrics, patients
from jaxboost.tasks import BINARY

PATIENTS = np.array(["b", "a", "b", "c", "a", "b"])
LABELS = np.array([[1], [0], [1], [0], [0], [1]])
POSITIVE = np.array([0.9, 0.6, 0.2, 0.3, 0.2, 0.7])
SCORES = np.stack([1 - POSITIVE, POSITIVE], axis=1).astype(np.float32)


def test_by_hand():
    found = patients.counted(make_dataset(PATIENTS).splits["test"], SCORES, BINARY, unit="patient")
    assert found.patients.tolist() == ["b", "a", "c"]
    np.testing.assert_array_equal(found.labels, [[1], [0], [0]])
    np.testing.assert_allclose(found.probabilities[:, 1], [(0.9 + 0.2 + 0.7) / 3, (0.6 + 0.2) / 2, 0.3], atol=1e-7)
    figures = metrics.score(found.labels, found.probabilities, BINARY)
    # Over images, .6 and .3 are above the .2 of a positive one.
    assert (figures["auc"], figures["acc"], figures["majority_acc"]) == (1.0, 1.0, pytest.approx(2 / 3))
    assert metrics.score(LABELS, SCORES, BINARY)["auc"] == pytest.approx((3 + 3 + 0.5) / 9)


def make_dataset(groups, labels=LABELS):
    split = Split(images=np.zeros((6, 2, 2, 1), np.uint8), labels=labels, groups=groups)
    info = DatasetInfo(name="x", task=BINARY, classes=("no", "yes"), channels=1, ndim=2, size=2)
    return Dataset(info=info, splits={"train": split, "test": split}, baselines={"size": {"test": POSITIVE * 100}})


def test_a_patient_with_two_classes_is_refused():
    labels = np.array([[1], [0], [0], [0], [1], [1]])
    patients.check(make_dataset(PATIENTS, labels), unit="image")
    with pytest.raises(UserError) as error:
        patients.check(make_dataset(PATIENTS, labels), unit="patient")
    assert str(error.value) == (
        "config field eval.unit: patient 'b' has items of the classes 1 and 0, so it has no single label to pool:"
        ' correct its labels, or score each item by itself, or set it to "image"'
    )


def test_images_stay_as_they_are():
    dataset, scores = make_dataset(PATIENTS), {"test": SCORES}
    found = patients.pooled(dataset, scores, unit="image")
    assert found[0] is dataset
    assert found[1] is scores
    counted = patients.counted(dataset.splits["test"], SCORES, BINARY, unit="image")
    assert counted.probabilities is SCORES


def test_a_pooled_data_set():
    dataset, scores = patients.pooled(make_dataset(PATIENTS), {"test": SCORES}, unit="patient")
    assert list(dataset.splits) == ["test"]
    assert len(dataset.splits["test"]) == 3
    assert dataset.splits["test"].groups.tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(scores["test"][:, 1], [0.6, 0.4, 0.3], atol=1e-7)
    np.testing.assert_allclose(dataset.baselines["size"]["test"], [60, 40, 30])


def test_unknown_patients(package_warnings):
    dataset = make_dataset(None)
    patients.check(dataset, unit="image")
    assert package_warnings == []
    patients.check(dataset, unit="patient")
    (text,) = package_warnings
    assert "x has no patient ids, so every image counts as a patient" in text
    counted = patients.counted(dataset.splits["test"], SCORES, BINARY, unit="patient")
    np.testing.assert_array_equal(counted.probabilities, SCORES)
