"""Operating points against plain counting."""

import math

import numpy as np
import pytest

from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.errors import UserError
from jaxboost.evaluation import thresholds


def test_threshold_is_the_most_sensitive_that_is_specific_enough():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = np.round(np.clip(0.3 * labels + 0.5 * rng.random(60), 0, 1), 2)  # with ties
    for wanted in (0.5, 0.8, 0.9, 0.95):
        value = thresholds.choose_threshold(labels, scores, wanted)
        figures = thresholds.score_at(labels, scores, value)
        assert figures["specificity"] >= wanted
        candidates = [thresholds.score_at(labels, scores, other) for other in np.unique(scores)]
        allowed = [found["sensitivity"] for found in candidates if found["specificity"] >= wanted]
        assert figures["sensitivity"] == max(allowed)


def test_a_split_of_one_class_has_no_threshold():
    info = DatasetInfo("x", "binary-class", ("well", "sick"), 1, 2, 2, {}, "")
    images = np.zeros((3, 2, 2, 1), np.uint8)
    labels = {"val": [[1], [1], [1]], "test": [[1], [0], [1]]}
    splits = {name: Split(images=images, labels=np.array(rows)) for name, rows in labels.items()}
    dataset = Dataset(info=info, splits=splits, baselines={})
    thresholds.check_both_classes(dataset, "test")
    with pytest.raises(UserError, match=r"specificity: every example of the val split is 'sick', so no threshold"):
        thresholds.check_both_classes(dataset, "val")


def test_threshold_counts_exactly():
    """Nine of ten are right at .9: floating point must not make it ten of ten."""
    labels = np.array([0] * 10 + [1])
    scores = np.array([*np.linspace(0, 0.45, 9), 0.9, 0.8])
    assert thresholds.choose_threshold(labels, scores, 0.9) == pytest.approx(0.8)


def test_no_threshold_is_specific_enough():
    value = thresholds.choose_threshold(np.array([1, 0]), np.array([0.2, 0.9]), 0.99)
    assert value == np.inf
    assert thresholds.score_at(np.array([1, 0]), np.array([0.2, 0.9]), value) == {
        "sensitivity": 0.0,
        "specificity": 1.0,
        "acc": 0.5,
    }
    assert math.isnan(thresholds.score_at(np.array([1]), np.array([0.2]), value)["specificity"])
