"""Scores against MedMNIST's evaluator, closed forms, and scikit-learn."""

import shutil
import tracemalloc

import numpy as np
import pytest
from medmnist.evaluator import Evaluator, getACC, getAUC
from sklearn.metrics import accuracy_score, roc_auc_score

from jaxboost.data import describe_dataset
from jaxboost.data.sources.medmnist import names as medmnist_names
from jaxboost.evaluation import metrics, prediction_table
from jaxboost.tasks import BINARY, MULTI_LABEL, TASKS


def _example(task: str, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if task == MULTI_LABEL:
        return rng.integers(0, 2, (n, 4)), rng.random((n, 4))
    classes = 2 if task == BINARY else 3
    labels = rng.integers(0, classes, (n, 1))
    scores = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels[:, 0]]
    return labels, scores / scores.sum(1, keepdims=True)


def test_binary_scores_are_those_of_class_one():
    labels, scores = _example(BINARY)
    result = metrics.score(labels, scores, BINARY)
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
    result = metrics.score(np.zeros((2, 1), int), scores, BINARY)
    assert np.isnan(result["auc"])
    assert result["acc"] == 0.5
    assert np.isnan(result["sensitivity"])


@pytest.mark.parametrize("task", [BINARY, "multi-class", MULTI_LABEL])
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
    low, high = metrics.intervals(labels, scores, BINARY, resamples=2000)["acc"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.9 * 0.1 / 400), rel=0.1)


def test_resamples_without_a_class_are_left_out_of_the_auc_interval():
    labels = np.array([[0], [0], [0], [1]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert metrics.intervals(labels, scores, BINARY, resamples=100)["auc"] == (1.0, 1.0)


def test_the_flags_have_these_tasks():
    assert {describe_dataset(flag, 28).task for flag in medmnist_names()} == set(TASKS)


@pytest.mark.parametrize("flag", medmnist_names())
def test_figures_and_files_are_those_of_medmnists_evaluator(flag, tmp_path):
    """For labels and probabilities of the data set's own kind: as stored, and float32 as the model gives them."""
    for size in (28, 64):
        info = describe_dataset(flag, size)
        rng = np.random.default_rng(size)
        n, classes = 80, len(info.classes)
        if info.task == MULTI_LABEL:
            labels = rng.integers(0, 2, (n, classes))
            scores = (0.3 * labels + 0.7 * rng.random((n, classes))).astype(np.float32)
        else:
            labels = rng.permutation(np.arange(n) % classes)[:, None]
            logits = rng.normal(size=(n, classes)) + np.eye(classes)[labels[:, 0]]
            scores = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
        suffix = "" if size == 28 else f"_{size}"
        np.savez_compressed(tmp_path / f"{flag}{suffix}.npz", test_labels=labels.astype(np.uint8))

        class Official(Evaluator):
            def __init__(self, flag, split, size=None):
                super().__init__(flag, split, size, root=str(tmp_path))

        result = metrics.score(labels, scores, info.task)
        ours = (result["auc"], result["acc"])
        assert 0.5 < result["auc"] < 1
        assert tuple(Official(flag, "test", size).evaluate(scores)) == ours
        file = prediction_table.write_medmnist(
            tmp_path / "run", scores, name=flag, size=size, split="test", auc=ours[0], acc=ours[1], run="seed0"
        )
        # The evaluator writes into the folder of the file that it reads.
        copy = shutil.copytree(tmp_path / "run", tmp_path / f"copy{size}")
        assert tuple(Official.parse_and_evaluate(str(copy / file.name))) == ours
        assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in file.parent.iterdir())


def _resamples(labels, scores, count):
    """Those that `metrics.intervals` makes, one after the other."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        rows = rng.integers(0, len(labels), len(labels))
        yield labels[rows], scores[rows]


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("task", TASKS)
def test_intervals_are_those_of_medmnists_scores_of_the_resamples(task, decimals, monkeypatch):
    labels, scores = _example(task)
    scores = scores.round(decimals).astype(np.float32)  # one decimal: many equal scores
    found = metrics.intervals(labels, scores, task, resamples=50)
    for name, of_medmnist in {"acc": getACC, "auc": getAUC}.items():
        figures = [of_medmnist(*resample, task) for resample in _resamples(labels, scores, 50)]
        np.testing.assert_allclose(found[name], np.quantile(figures, [0.025, 0.975]), rtol=0, atol=1e-12)
    # However many resamples are made at a time.
    for block in (1, 7 * len(labels)):
        monkeypatch.setattr(metrics, "_BLOCK", block)
        assert metrics.intervals(labels, scores, task, resamples=50) == found


@pytest.mark.parametrize("decimals", [1, 9])
def test_auc_of_drawn_examples_is_that_of_scikit_learn(decimals):
    rng = np.random.default_rng(1)
    positive, score = rng.random(300) < 0.1, rng.random(300).round(decimals)
    drawn = rng.integers(0, 4, (20, 300))
    expected = [roc_auc_score(np.repeat(positive, row), np.repeat(score, row)) for row in drawn]
    np.testing.assert_allclose(metrics._drawn_auc(positive, score)(drawn), expected, rtol=0, atol=1e-12)
    # Without a positive there is none.
    drawn[0, positive] = 0
    drawn[1, ~positive] = 0
    assert np.isnan(metrics._drawn_auc(positive, score)(drawn)).tolist() == [True, True] + [False] * 18


def test_resamples_without_a_rare_label_are_left_out():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (40, 3)), rng.random((40, 3))
    labels[:, 2] = np.arange(40) == 0  # about a third of the resamples lack it
    found = metrics.intervals(labels, scores, MULTI_LABEL, resamples=100)
    figures = [metrics.auc(*resample, MULTI_LABEL) for resample in _resamples(labels, scores, 100)]
    assert 20 < np.isnan(figures).sum() < 60
    np.testing.assert_allclose(found["auc"], np.nanquantile(figures, [0.025, 0.975]), rtol=0, atol=1e-12)


def test_scores_that_are_no_numbers_are_refused():
    labels, scores = _example(BINARY)
    scores[3, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        metrics.intervals(labels, scores, BINARY, resamples=10)


def test_memory_of_intervals_does_not_grow_with_the_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", 20_000)
    labels, scores = _example(MULTI_LABEL, n=4000)
    tracemalloc.start()
    try:
        metrics.intervals(labels, scores, MULTI_LABEL, resamples=300)
        # All resamples at once are 4000 x 300 x 8 bytes in every array.
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
