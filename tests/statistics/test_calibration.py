"""Calibration against scikit-learn, a definition written out, and probabilities whose temperature is known."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from jaxboost.statistics import calibration, intervals
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL, TASKS
from tests.statistics import brute


def test_brier_score_is_that_of_scikit_learn():
    labels, scores = brute.example(BINARY)
    assert calibration.brier(labels, scores, BINARY) == pytest.approx(brier_score_loss(labels[:, 0], scores[:, 1]))
    labels, scores = brute.example(MULTI_CLASS)
    expected = brier_score_loss(labels[:, 0], scores, labels=[0, 1, 2], scale_by_half=False)
    assert calibration.brier(labels, scores, MULTI_CLASS) == pytest.approx(expected)
    labels, scores = brute.example(MULTI_LABEL)
    expected = np.mean([brier_score_loss(*pair) for pair in zip(labels.T, scores.T, strict=True)])
    assert calibration.brier(labels, scores, MULTI_LABEL) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [5, 15])
def test_bins_are_those_of_scikit_learn(bins):
    rng = np.random.default_rng(0)
    probability = np.concatenate([rng.random(300), np.linspace(0, 1, bins + 1)])  # all edges too
    labels = (rng.random(len(probability)) < probability).astype(int)[:, None]
    scores = np.stack([1 - probability, probability], 1)
    found = calibration.reliability(labels, scores, BINARY, bins=bins)
    observed, mean = calibration_curve(labels[:, 0], probability, n_bins=bins)
    np.testing.assert_allclose([each.observed for each in found], observed)
    np.testing.assert_allclose([each.mean for each in found], mean)
    assert sum(each.n for each in found) == len(labels)
    for each in found:
        assert each.low - 1e-12 <= each.mean <= each.high + 1e-12
        assert each.interval == intervals.wilson(round(each.observed * each.n), each.n)


def test_empty_bins_are_left_out():
    scores = np.array([[0.89, 0.11], [0.88, 0.12], [0.2, 0.8]])
    found = calibration.reliability(np.array([[0], [1], [1]]), scores, BINARY, bins=10)
    assert [(each.n, each.observed) for each in found] == [(2, 0.5), (1, 1.0)]
    assert [each.low for each in found] == pytest.approx([0.1, 0.7])


def test_the_calibration_error_by_its_definition():
    labels, scores = brute.example(MULTI_CLASS, 200)
    confidence, right = scores.max(1), scores.argmax(1) == labels[:, 0]
    expected = 0.0
    for number in range(10):
        inside = (confidence > number / 10) & (confidence <= (number + 1) / 10)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration.ece(labels, scores, MULTI_CLASS, bins=10) == pytest.approx(expected)
    assert calibration.ece(np.array([[1], [0]]), np.array([[0.3, 0.7], [0.3, 0.7]]), BINARY) == pytest.approx(0.2)


@pytest.mark.parametrize("task", TASKS)
def test_sure_and_right_is_best_and_sure_and_wrong_worst(task):
    labels, scores = brute.example(task)
    right = labels if task == MULTI_LABEL else np.eye(scores.shape[1], dtype=int)[labels[:, 0]]
    for measure in (calibration.brier, calibration.ece):
        assert measure(labels, right.astype(float), task) == 0
    wrong = 1.0 - right if task == MULTI_LABEL else np.roll(right, 1, axis=1).astype(float)
    assert calibration.ece(labels, wrong, task) == 1
    assert calibration.brier(labels, wrong, task) == (1 if task in (BINARY, MULTI_LABEL) else 2)
    assert np.isfinite(calibration.negative_log_likelihood(labels, wrong, task))
    assert calibration.fit_temperature(labels, wrong, task) == pytest.approx(20, rel=1e-3)
    cooler = calibration.apply_temperature(right.astype(float), 3.0, task)
    assert np.isfinite(cooler).all()
    np.testing.assert_allclose(cooler, right, atol=1e-9)


def test_likelihood_is_scikit_learns_log_loss():
    for task in (BINARY, MULTI_CLASS):
        labels, scores = brute.example(task)
        expected = log_loss(labels[:, 0], scores, labels=range(scores.shape[1]))
        assert calibration.negative_log_likelihood(labels, scores, task) == pytest.approx(expected)
    labels, scores = brute.example(MULTI_LABEL)
    expected = np.mean([log_loss(*pair) for pair in zip(labels.T, scores.T, strict=True)])
    assert calibration.negative_log_likelihood(labels, scores, MULTI_LABEL) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS, MULTI_LABEL])
def test_the_temperature_of_a_model_that_is_too_sure_is_found(task, temperature):
    """Labels are drawn with the true probabilities; the model's logits are `temperature` times too large."""
    rng = np.random.default_rng(1)
    classes = 2 if task == BINARY else 4
    logits = 1.5 * rng.normal(size=(6000, classes))
    if task == MULTI_LABEL:
        labels, sure = (rng.random(logits.shape) < expit(logits)).astype(int), expit(logits * temperature)
    else:
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)[:, None]
        sure = softmax(logits * temperature, axis=1)
    found = calibration.fit_temperature(labels, sure.astype(np.float32), task)
    assert found == pytest.approx(temperature, rel=0.06)
    better = calibration.apply_temperature(sure, found, task)
    best = calibration.negative_log_likelihood(labels, better, task)
    for other in (found * 1.05, found / 1.05):
        scaled = calibration.apply_temperature(sure, other, task)
        assert calibration.negative_log_likelihood(labels, scaled, task) > best
    if temperature != 1:
        assert calibration.ece(labels, better, task) < calibration.ece(labels, sure, task)


@pytest.mark.parametrize("task", TASKS)
def test_a_temperature_of_one_changes_nothing(task):
    _, scores = brute.example(task)
    np.testing.assert_allclose(calibration.apply_temperature(scores, 1.0, task), scores, rtol=1e-9)


def test_a_temperature_keeps_decisions_and_the_order_of_items():
    _, scores = brute.example(BINARY)
    scaled = calibration.apply_temperature(scores, 3.0, BINARY)
    np.testing.assert_array_equal(np.argsort(scaled[:, 1]), np.argsort(scores[:, 1]))
    np.testing.assert_array_equal(scaled.argmax(1), scores.argmax(1))


def test_probabilities_that_cannot_be_improved_keep_their_temperature():
    assert calibration.fit_temperature(np.arange(4)[:, None] % 2, np.full((4, 2), 0.5), BINARY) == 1


@pytest.mark.parametrize("task", TASKS)
def test_undefined_figures_are_nan(task):
    labels, scores = brute.example(task)
    scores[0, :] = np.nan
    for rows, values in ((labels, scores), (labels[:0], scores[:0])):
        for measure in (calibration.brier, calibration.ece, calibration.fit_temperature):
            assert np.isnan(measure(rows, values, task))
        assert calibration.reliability(rows, values, task) == []


def test_one_item_and_one_class():
    labels, scores = np.array([[1]]), np.array([[0.4, 0.6]])
    assert calibration.brier(labels, scores, BINARY) == pytest.approx(0.16)
    assert calibration.ece(labels, scores, BINARY) == pytest.approx(0.4)
    assert calibration.fit_temperature(labels, scores, BINARY) == pytest.approx(0.05, rel=1e-3)
