"""Tests of two arms against mlstatkit, statsmodels, scipy and Monte Carlo; their coverage over patients and seeds."""

import math

import numpy as np
import pytest
from MLstatkit import Delong_test
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from jaxboost.evaluation import metrics
from jaxboost.statistics import bootstrap, intervals, paired
from jaxboost.tasks import BINARY, MULTI_CLASS, TASKS
from tests.statistics import brute


def _pair(n=80):
    rng = np.random.default_rng(3)
    positive = np.arange(n) % 3 == 0
    return positive, rng.normal(size=n) + positive, rng.normal(size=n) + 0.6 * positive


def test_delong_test_is_that_of_mlstatkit():
    positive, a, b = _pair()
    found = paired.delong_test(positive, a, b)
    z, p, *_ = Delong_test(positive.astype(int), a, b, verbose=0)
    assert found.p == pytest.approx(p)
    assert abs(found.difference) / found.se == pytest.approx(abs(z))
    assert found.difference == pytest.approx(brute.auc(positive, a) - brute.auc(positive, b))
    assert (found.low, found.high) == pytest.approx(
        (found.difference - 1.959964 * found.se, found.difference + 1.959964 * found.se), abs=1e-6
    )


def test_delong_test_holds_its_level():
    rng = np.random.default_rng(0)
    positive = np.arange(60) % 2 == 0
    p = [paired.delong_test(positive, *(rng.normal(size=(2, 60)) + positive)).p for _ in range(600)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.025)


def test_delong_test_over_patients_holds_its_level():
    """Each patient has five items with one score: without the groups the test is far too sure."""
    rng = np.random.default_rng(0)
    positive, groups = np.repeat(np.arange(40) % 2 == 0, 5), np.repeat(np.arange(40), 5)
    found = []
    for _ in range(400):
        scores = np.repeat(rng.normal(size=(2, 40)), 5, axis=1) + positive
        found.append([paired.delong_test(positive, *scores, groups=each).p < 0.05 for each in (groups, None)])
    with_groups, without = np.mean(found, axis=0)
    assert with_groups < 0.09
    assert without > 0.3


def test_scores_that_rank_alike_do_not_differ():
    positive, a, _ = _pair()
    for b in (a, 2 * a + 1):
        found = paired.delong_test(positive, a, b)
        assert (found.difference, found.se, found.p) == (0, 0, 1)
        assert found.low < 0 < found.high
    # Nor do two perfect ones, which does not show that they are equal on all items of the world.
    found = paired.delong_test(positive, positive + 0.0, positive * 2.0)
    assert found.p == 1
    assert -0.2 < found.low < -0.01
    assert 0.01 < found.high < 0.2


def test_delong_test_without_a_variance_or_a_class():
    positive = np.arange(6) < 3
    found = paired.delong_test(positive, positive + 0.0, 1.0 - positive)
    assert found.difference == 1
    assert math.isnan(found.p)
    assert 0 < found.low < 1 == found.high
    one = paired.delong_test(np.arange(6) < 1, np.arange(6.0), -np.arange(6.0))  # a class of one item
    assert math.isnan(one.p)
    assert one.low == one.difference == -1 < one.high < 0
    none = paired.delong_test(np.zeros(6, bool), np.arange(6.0), np.arange(6.0))
    assert np.isnan([none.difference, none.p, none.low, none.high]).all()


@pytest.mark.parametrize(("x1", "x2"), [(9, 2), (2, 9), (5, 5), (1, 0), (0, 30), (40, 17)])
def test_mcnemar_is_the_exact_binomial_test(x1, x2):
    a = np.array([True] * x1 + [False] * x2 + [True] * 4 + [False])
    b = np.array([False] * x1 + [True] * x2 + [True] * 4 + [False])
    found = paired.mcnemar(a, b)
    assert (found.only_a, found.only_b, found.n) == (x1, x2, x1 + x2 + 5)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p == pytest.approx(stats.binomtest(x1, x1 + x2, 0.5).pvalue)
    assert found.p == pytest.approx(mcnemar([[4, x1], [x2, 1]], exact=True).pvalue)


def test_mcnemar_without_discordant_items_and_without_items():
    assert paired.mcnemar(np.array([True, False]), np.array([True, False])).p == 1
    with pytest.raises(ValueError, match="there are no items"):
        paired.mcnemar(np.zeros(0, bool), np.zeros(0, bool))


@pytest.mark.parametrize(("x1", "x2", "n"), [(0, 0, 10), (7, 3, 100), (3, 7, 40), (12, 12, 30), (25, 10, 1000)])
def test_the_probability_of_a_false_order_is_that_of_dirichlet_draws(x1, x2, n):
    drawn = np.random.default_rng(0).dirichlet([x1 + 1, x2 + 1, n - x1 - x2 + 2], 200_000)
    assert paired.false_order(x1, x2) == pytest.approx((drawn[:, 0] <= drawn[:, 1]).mean(), abs=0.004)


@pytest.mark.parametrize("x1", [0, 3, 11])
def test_the_probability_of_a_false_order_is_a_binomial_tail(x1):
    x2 = 5
    assert paired.false_order(x1, x2) == pytest.approx(stats.binom.sf(x1, x1 + x2 + 1, 0.5))
    assert paired.false_order(x1, x2) + paired.false_order(x2, x1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("n", "base", "rllm", "at_5", "at_10"),
    [
        (156, 87.17, 87.17, 0.50, 0.50),  # BreastMNIST
        (400, 54.25, 57.00, 0.007, 0.042),  # RetinaMNIST
        (2005, 78.95, 79.50, 0.14, 0.22),  # DermaMNIST
        (1000, 83.60, 85.10, 0.018, 0.067),  # OCTMNIST
        (17778, 95.19, 95.22, 0.43, 0.45),  # OrganAMNIST
        (240, 53.33, 56.25, 0.024, 0.080),  # FractureMNIST3D, ViViT-M
        (298, 81.54, 83.22, 0.10, 0.18),  # AdrenalMNIST3D, ViViT-M
        (310, 86.77, 89.68, 0.012, 0.054),  # NoduleMNIST3D, ViT3D
        (382, 90.05, 91.10, 0.19, 0.26),  # VesselMNIST3D, ViT3D
    ],
)
def test_the_order_of_rllms_accuracies(n, base, rllm, at_5, at_10):
    """If the arms differ on 5 % and 10 % of the test items (Tables 1 and 3 of arXiv 2403.17343), from random draws."""
    for rate, expected in ((0.05, at_5), (0.10, at_10)):
        discordant, gain = rate * n, n * (rllm - base) / 100
        found = paired.false_order((discordant + gain) / 2, (discordant - gain) / 2)
        assert found == pytest.approx(expected, abs=0.0051 if expected >= 0.1 else 0.001)


def test_square_and_add_is_newcombes_example():
    """56/70 against 48/80: 0.2 with 0.0524 to 0.3339 (Newcombe 1998, Table II, method 10)."""
    each = [(right / n, intervals.wilson(right, n)) for right, n in ((56, 70), (48, 80))]
    assert paired.square_and_add(*each) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def _runs(task, seeds, n=60, seed=0):
    labels, first = brute.example(task, n)
    rng = np.random.default_rng(seed)
    scores = np.abs(first + 0.3 * rng.normal(size=(seeds, *first.shape)))
    return labels, scores / (scores.sum(2, keepdims=True) if not TASKS[task].multi_label else scores.max())


@pytest.mark.parametrize("metric", ["acc", "auc"])
@pytest.mark.parametrize("task", TASKS)
def test_means_are_medmnists(task, metric):
    labels, a = _runs(task, 3)
    _, b = _runs(task, 2, seed=9)
    found = paired.compare(a, b, labels, task, metric, resamples=100)
    of = getattr(metrics, metric)
    assert found.mean_a == pytest.approx(np.mean([of(labels, run, task) for run in a]))
    assert found.mean_b == pytest.approx(np.mean([of(labels, run, task) for run in b]))
    assert found.difference == found.mean_a - found.mean_b
    assert found.low < found.difference < found.high
    assert found == paired.compare(a, b, labels, task, metric, resamples=100)


@pytest.mark.parametrize("metric", ["acc", "auc"])
def test_one_seed_each_is_scipys_bca_of_the_difference(metric):
    labels, (a, b) = _runs(BINARY, 2)
    groups = np.arange(60) // 2

    def difference(drawn):
        rows = np.concatenate([np.flatnonzero(groups == patient) for patient in drawn])
        of_a, of_b = (getattr(metrics, metric)(labels[rows], run[rows], BINARY) for run in (a, b))
        return round(of_a - of_b, 13)

    expected = stats.bootstrap(
        (np.arange(30),), difference, n_resamples=100, vectorized=False, method="BCa", rng=np.random.default_rng(6)
    )
    found = paired.compare(a[None], b[None], labels, BINARY, metric, groups=groups, resamples=100, seed=6)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval, abs=1e-9)
    distribution = expected.bootstrap_distribution
    better = (distribution > 0).mean() + (distribution == 0).mean() / 2
    assert found.p_better == found.p_mean_better == pytest.approx(better)


def test_seed_weights_give_the_mean_its_variance():
    values = np.random.default_rng(0).normal(size=4)
    weights = paired._seed_weights(np.random.default_rng(1), 4, 200_000)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert (weights * values[:, None]).sum(0).var() == pytest.approx(values.var(ddof=1) / 4, rel=0.02)


def test_the_difference_without_each_seed():
    a, b = np.random.default_rng(0).random((2, 3))

    def difference(rows_a, rows_b):
        return np.delete(a, rows_a).mean() - np.delete(b, rows_b).mean()

    of_a, of_b = paired._without_seed(a, b, paired_seeds=False)
    np.testing.assert_allclose(of_a, [difference([s], []) for s in range(3)])
    np.testing.assert_allclose(of_b, [difference([], [s]) for s in range(3)])
    (together,) = paired._without_seed(a, b, paired_seeds=True)
    np.testing.assert_allclose(together, [difference([s], [s]) for s in range(3)])
    assert paired._without_seed(a[:1], b[:1], paired_seeds=False) == []
    assert paired._without_seed(a[:1], b[:1], paired_seeds=True) == []


def _simulate(rng, paired_seeds):
    """Two arms that are alike: 40 patients with 2 items, 4 seeds of different skill. The true difference is 0."""
    labels, groups = np.repeat(np.arange(40) % 2, 2)[:, None], np.repeat(np.arange(40), 2)
    sign, hardness = 2 * labels[:, 0] - 1, rng.normal(size=40)[groups]
    skill = 1.2 + 0.5 * rng.normal(size=(2, 4, 1))
    if paired_seeds:
        skill[1] = skill[0]
    logits = skill * sign + 0.7 * hardness + 0.5 * rng.normal(size=(2, 4, 40))[:, :, groups]
    logits = logits + rng.normal(size=(2, 4, 80))
    probabilities = 1 / (1 + np.exp(-logits))
    return np.stack([1 - probabilities, probabilities], -1), labels, groups


@pytest.mark.parametrize("paired_seeds", [False, True])
def test_the_interval_covers_over_patients_and_seeds(paired_seeds):
    hits, alone = [], []
    for seed in range(150):
        (a, b), labels, groups = _simulate(np.random.default_rng(seed), paired_seeds)
        found = paired.compare(
            a, b, labels, BINARY, "auc", groups=groups, paired_seeds=paired_seeds, resamples=200, seed=seed
        )
        hits.append(found.low <= 0 <= found.high)
        one = paired.compare(a[:1], b[:1], labels, BINARY, "auc", groups=groups, resamples=200, seed=seed)
        alone.append(one.low <= 0 <= one.high)
    assert np.mean(hits) >= 0.9
    if not paired_seeds:
        assert np.mean(alone) < np.mean(hits)  # one seed knows nothing of the others


def test_paired_seeds_are_drawn_together():
    """Both arms have one run for each of 4 seeds of very different skill: only pairs show the difference."""
    rng = np.random.default_rng(0)
    labels = np.arange(200)[:, None] % 2
    sign = 2 * labels[:, 0] - 1
    noise = rng.normal(size=(4, 200))
    runs = []
    for gain in (0.15, 0.0):
        probability = 1 / (1 + np.exp(-((np.array([0.2, 0.7, 1.2, 1.7])[:, None] + gain) * sign + noise)))
        runs.append(np.stack([1 - probability, probability], -1))
    together = paired.compare(*runs, labels, BINARY, "auc", paired_seeds=True, resamples=300)
    apart = paired.compare(*runs, labels, BINARY, "auc", resamples=300)
    assert together.difference == apart.difference
    assert together.low > 0 > apart.low
    assert together.p_better > 0.99
    assert 0.5 < apart.p_better < 0.8
    backwards = paired.compare(*runs[::-1], labels, BINARY, "auc", paired_seeds=True, resamples=300)
    assert (backwards.low, backwards.high) == pytest.approx((-together.high, -together.low), abs=1e-4)
    assert backwards.p_better == pytest.approx(1 - together.p_better)


@pytest.mark.parametrize("metric", ["acc", "auc"])
@pytest.mark.parametrize("task", TASKS)
def test_equal_arms_have_an_interval_around_zero(task, metric):
    labels, scores = _runs(task, 3)
    found = paired.compare(scores, scores, labels, task, metric, paired_seeds=True, resamples=50)
    assert (found.difference, found.p_better, found.p_mean_better) == (0, 0.5, 0.5)
    assert found.method == "square-and-add"
    assert found.low == pytest.approx(-found.high)
    assert 0 < found.high < 0.5


def test_two_perfect_arms_of_few_patients_are_not_shown_to_be_equal():
    labels = np.arange(40)[:, None] // 20
    perfect = np.eye(2)[labels[:, 0]][None]
    found = paired.compare(perfect, perfect, labels, BINARY, "auc", groups=np.arange(40) // 5, resamples=50)
    low = intervals.newcombe(1, 4, 4)[0]
    assert (found.low, found.high) == pytest.approx((low - 1, 1 - low))


def test_an_absent_class_leaves_the_auc_undefined():
    labels, scores = _runs(MULTI_CLASS, 2)
    labels[labels == 2] = 0
    found = paired.compare(scores, scores, labels, MULTI_CLASS, "auc", resamples=50)
    assert found.method == "undefined"
    assert np.isnan([found.difference, found.low, found.high, found.p_better, found.p_mean_better]).all()
    assert paired.compare(scores, scores, labels, MULTI_CLASS, "acc", resamples=50).difference == 0


def test_resamples_without_a_class_are_left_out():
    labels, scores = _runs(BINARY, 2, n=9)
    labels[:, 0] = np.arange(9) < 2
    found = paired.compare(scores, scores[::-1], labels, BINARY, "auc", resamples=200)
    assert np.isfinite([found.low, found.high, found.p_better]).all()


def test_comparisons_that_cannot_be_made_are_refused():
    labels, scores = _runs(BINARY, 3)
    for a, b, rows, options, match in (
        (scores[:, :0], scores[:, :0], labels[:0], {}, "there are no items"),
        (scores[:, :9], scores, labels, {}, r"scores of A have the shape \(3, 9, 2\)"),
        (scores, scores[0], labels, {}, r"scores of B have the shape \(60, 2\)"),
        (scores[:0], scores, labels, {}, r"scores of A have the shape \(0, 60, 2\)"),
        (scores, np.where(scores > 0.9, np.nan, scores), labels, {}, "scores of B contain NaN"),
        (scores, scores[:2], labels, {"paired_seeds": True}, "A has 3 seeds and B has 2"),
    ):
        with pytest.raises(ValueError, match=match):
            paired.compare(a, b, rows, BINARY, "auc", resamples=10, **options)


def test_comparisons_do_not_depend_on_the_block(monkeypatch):
    labels, scores = _runs(BINARY, 3)
    expected = paired.compare(scores, scores[:2], labels, BINARY, "auc", resamples=100)
    monkeypatch.setattr(bootstrap, "_BLOCK", 60 * 7)
    assert paired.compare(scores, scores[:2], labels, BINARY, "auc", resamples=100) == expected
