"""Scores against MedMNIST's evaluator, closed forms, and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from jaxboost.data.source import MULTI_LABEL
from jaxboost.training import metrics


def _example(task: str, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if task == MULTI_LABEL:
        return rng.integers(0, 2, (n, 4)), rng.random((n, 4))
    classes = 2 if task == metrics.BINARY else 3
    labels = rng.integers(0, classes, (n, 1))
    scores = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels[:, 0]]
    return labels, scores / scores.sum(1, keepdims=True)


def test_binary_scores_are_those_of_class_one():
    labels, scores = _example(metrics.BINARY)
    result = metrics.score(labels, scores, metrics.BINARY)
    truth, predicted = labels[:, 0], scores[:, 1] > 0.5
    assert result["acc"] == accuracy_score(truth, predicted)
    assert result["auc"] == roc_auc_score(truth, scores[:, 1])
    assert result["sensitivity"] == predicted[truth == 1].mean()
    assert result["specificity"] == (~predicted)[truth == 0].mean()
    assert result["balanced_acc"] == pytest.approx((result["sensitivity"] + result["specificity"]) / 2)
    assert result["majority_acc"] == max(truth.mean(), 1 - truth.mean())


@pytest.mark.parametrize("task", ["multi-class", "ordinal-regression", MULTI_LABEL])
def test_other_tasks_average_over_classes(task):
    labels, scores = _example(task)
    result = metrics.score(labels, scores, task)
    truth = labels if task == MULTI_LABEL else np.eye(3, dtype=int)[labels[:, 0]]
    assert result["auc"] == pytest.approx(roc_auc_score(truth, scores, average="macro"))
    expected = ((scores > 0.5) == labels).mean() if task == MULTI_LABEL else (scores.argmax(1) == labels[:, 0]).mean()
    assert result["acc"] == pytest.approx(expected)
    assert "sensitivity" not in result


def test_absent_class_has_no_auc_but_an_accuracy():
    scores = np.array([[0.8, 0.2], [0.3, 0.7]])
    result = metrics.score(np.zeros((2, 1), int), scores, metrics.BINARY)
    assert np.isnan(result["auc"])
    assert result["acc"] == 0.5
    assert np.isnan(result["sensitivity"])


@pytest.mark.parametrize("task", [metrics.BINARY, "multi-class", MULTI_LABEL])
def test_intervals_hold_the_estimate_and_are_repeatable(task):
    labels, scores = _example(task)
    result = metrics.intervals(labels, scores, task, resamples=200)
    assert result == metrics.intervals(labels, scores, task, resamples=200)
    for name, (low, high) in result.items():
        assert low < getattr(metrics, name)(labels, scores, task) < high


def test_interval_of_accuracy_is_the_binomial_one():
    """A percentile bootstrap of a proportion has the binomial's standard error."""
    labels = np.arange(400)[:, None] % 2
    right = np.arange(400) % 10 > 0  # 90 % right
    scores = np.where(right[:, None] == (np.arange(2) == labels), 0.9, 0.1)
    low, high = metrics.intervals(labels, scores, metrics.BINARY, resamples=2000)["acc"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.9 * 0.1 / 400), rel=0.1)


def test_resamples_without_a_class_are_left_out_of_the_auc_interval():
    labels = np.array([[0], [0], [0], [1]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert metrics.intervals(labels, scores, metrics.BINARY, resamples=100)["auc"] == (1.0, 1.0)
