"""One prediction for each patient."""

import numpy as np
import pytest

from jaxboost.errors import UserError
from jaxboost.statistics.pooling import pool
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL


def test_probabilities_are_averaged_in_the_order_of_the_first_items():
    patients = np.array(["p9", "p1", "p9", "p3", "p1", "p9"])
    labels = np.array([[1], [0], [1], [2], [0], [1]])
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 6).astype(np.float32)
    found = pool(labels, probabilities, patients, MULTI_CLASS)
    assert found.patients.tolist() == ["p9", "p1", "p3"]
    assert found.labels.tolist() == [[1], [0], [2]]
    expected = [probabilities[patients == name].astype(float).mean(0) for name in found.patients]
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-6)


def test_a_patient_has_a_label_that_any_item_has():
    labels, before = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]]), np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    found = pool(labels, np.full((3, 3), 0.5), np.array([7, 7, 2]), MULTI_LABEL)
    assert found.labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert found.patients.tolist() == [7, 2]
    np.testing.assert_array_equal(labels, before)


def test_one_item_each_changes_nothing():
    labels, probabilities = np.array([[1], [0]]), np.array([[0.3, 0.7], [0.6, 0.4]])
    found = pool(labels, probabilities, np.array(["b", "a"]), BINARY)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.probabilities, probabilities)


@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS])
def test_a_patient_of_two_classes_is_named(task):
    with pytest.raises(UserError, match=r"patient 'p2' has items of the classes 1 and 0.*correct its labels"):
        pool(np.array([[0], [1], [0], [0]]), np.full((4, 2), 0.5), np.array(["p1", "p2", "p1", "p2"]), task)


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="no items to pool"):
        pool(np.zeros((0, 1), int), np.zeros((0, 2)), np.zeros(0, str), BINARY)
