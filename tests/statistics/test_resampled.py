"""Figures of an arm's runs: their means are MedMNIST's, and their intervals are those of scipy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from jaxboost.evaluation import metrics
from jaxboost.statistics import intervals, resampled
from jaxboost.tasks import BINARY, MULTI_CLASS, TASKS
from tests.statistics import brute


def _runs(task, seeds, n=60):
    labels, first = brute.example(task, n)
    rng = np.random.default_rng(1)
    scores = np.abs(first + 0.3 * rng.normal(size=(seeds, *first.shape)))
    return labels, scores / scores.max() if TASKS[task].multi_label else scores / scores.sum(2, keepdims=True)


@pytest.mark.parametrize("task", TASKS)
def test_the_values_are_those_of_the_metrics(task):
    labels, scores = _runs(task, 3)
    found = resampled.figures_of_runs(labels, scores, task, resamples=50)
    expected = [metrics.score(labels, run, task) for run in scores]
    names = {"auc", "acc"} | ({"sensitivity", "specificity", "balanced_acc"} if TASKS[task].binary else set())
    assert set(found) == names
    for name, figure in found.items():
        np.testing.assert_allclose(figure.resampled.values, [run[name] for run in expected])
        assert figure.interval[0] < figure.resampled.mean < figure.interval[1]
        assert figure.method == "bca"


@pytest.mark.parametrize("name", ["auc", "acc", "balanced_acc"])
def test_the_interval_of_a_mean_is_scipys_bca_over_patients(name):
    labels, scores = _runs(BINARY, 3)
    groups = np.arange(60) // 2

    def mean(drawn):
        rows = np.concatenate([np.flatnonzero(groups == patient) for patient in drawn])
        # Equal means are equal, whatever their rounding errors.
        return round(np.mean([metrics.score(labels[rows], run[rows], BINARY)[name] for run in scores]), 13)

    expected = stats.bootstrap(
        (np.arange(30),), mean, n_resamples=100, vectorized=False, method="BCa", rng=np.random.default_rng(6)
    ).confidence_interval
    found = resampled.figures_of_runs(labels, scores, BINARY, groups=groups, resamples=100, seed=6)[name]
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.method == "bca-patients"


@pytest.mark.parametrize("groups", [None, np.arange(60) // 3])
def test_one_run_has_the_intervals_of_its_result(groups):
    labels, scores = _runs(BINARY, 1)
    found = resampled.figures_of_runs(labels, scores, BINARY, groups=groups, resamples=80, seed=2)
    limits, methods = intervals.split_intervals(labels, scores[0], BINARY, groups=groups, resamples=80, seed=2)
    for name, interval in limits.items():
        assert (found[name].interval, found[name].method) == (interval, methods[name])
    assert found["balanced_acc"].method == ("bca" if groups is None else "bca-patients")


def test_perfect_runs_have_the_score_intervals():
    labels = np.arange(60)[:, None] % 3 // 2
    scores = np.stack([np.eye(2)[labels[:, 0]]] * 2)
    found = resampled.figures_of_runs(labels, scores, BINARY, resamples=50)
    low = {
        "auc": intervals.newcombe(1, 20, 40)[0],
        "acc": intervals.wilson(60, 60)[0],
        "sensitivity": intervals.wilson(20, 20)[0],
        "specificity": intervals.wilson(40, 40)[0],
    }
    low["balanced_acc"] = (low["sensitivity"] + low["specificity"]) / 2
    for name, figure in found.items():
        assert figure.interval == pytest.approx((low[name], 1))
        assert figure.method == ("newcombe" if name == "auc" else "wilson")


def test_an_absent_class_is_undefined():
    labels, scores = _runs(MULTI_CLASS, 2)
    labels[labels == 2] = 0
    found = resampled.figures_of_runs(labels, scores, MULTI_CLASS, resamples=50)
    assert np.isnan([found["auc"].resampled.mean, *found["auc"].interval]).all()
    assert found["auc"].method == "undefined"
    assert np.isfinite(found["acc"].interval).all()


def test_scores_that_are_no_numbers_are_refused():
    labels, scores = _runs(BINARY, 2)
    scores[1, 3, 0] = np.nan
    with pytest.raises(ValueError, match="contain NaN"):
        resampled.figures_of_runs(labels, scores, BINARY, resamples=50)
