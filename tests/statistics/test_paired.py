"""Tests of two arms against mlstatkit, statsmodels, scipy and Monte Carlo."""

import math

import numpy as np
import pytest
from MLstatkit import Delong_test
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from jaxboost.statistics import intervals, paired
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL
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
    # p is the alpha at which the interval reaches 0.
    assert 0.001 < found.p < 0.01
    touching = paired.delong_test(positive, positive + 0.0, 1.0 - positive, level=1 - found.p)
    assert touching.low == pytest.approx(0, abs=1e-6)
    assert 0 < found.low < 1 == found.high
    one = paired.delong_test(np.arange(6) < 1, np.arange(6.0), -np.arange(6.0))  # a class of one item
    assert math.isnan(one.p)
    assert one.low == one.difference == -1 < one.high < 0
    # Two items of each class, and half a step: nothing can be shown; with 100 of each, everything.
    for n, low, high in ((2, 0.05, 0.5), (100, 0, 1e-8)):
        positive = np.arange(2 * n) < n
        assert low < paired.delong_test(positive, positive + 0.0, np.zeros(2 * n)).p <= high
    none = paired.delong_test(np.zeros(6, bool), np.arange(6.0), np.arange(6.0))
    assert np.isnan([none.difference, none.p, none.low, none.high]).all()


@pytest.mark.parametrize("groups", [None, np.arange(80) // 2])
def test_the_auc_test_of_a_binary_task_is_delongs(groups):
    positive, a, b = _pair()
    probabilities = [np.stack([-score, score], 1) for score in (a, b)]
    found = paired.auc_test(positive[:, None].astype(int), *probabilities, BINARY, groups=groups)
    assert found == paired.delong_test(positive, a, b, groups=groups)


def test_the_jackknife_of_two_classes_is_nearly_delong():
    """The sums of squares are DeLong's, divided by (m - 1)^2 and (k - 1)^2 and not by m (m - 1) and k (k - 1)."""
    positive, a, b = _pair()
    labels = positive[:, None].astype(int)
    # As a task of two classes that are averaged: both AUCs are the same.
    found = paired.auc_test(labels, *(np.stack([-score, score], 1) for score in (a, b)), MULTI_CLASS)
    expected = paired.delong_test(positive, a, b)
    assert found.difference == pytest.approx(expected.difference)
    m, k = positive.sum(), (~positive).sum()
    difference = [brute.wins(positive, score) for score in (a, b)]
    difference = difference[0] - difference[1]
    squares = [((difference.mean(axis) - difference.mean()) ** 2).sum() for axis in (1, 0)]
    variance = 79 / 80 * (squares[0] / (m - 1) ** 2 + squares[1] / (k - 1) ** 2)
    assert found.se == pytest.approx(math.sqrt(variance))
    assert found.se == pytest.approx(expected.se, rel=0.03)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.difference) / found.se))


@pytest.mark.parametrize("task", [MULTI_CLASS, MULTI_LABEL])
def test_the_jackknife_test_holds_its_level(task):
    p = []
    for seed in range(150):
        labels, _ = brute.example(task, 60, seed)
        rng = np.random.default_rng(1000 + seed)
        truth = labels if task == MULTI_LABEL else np.eye(3)[labels[:, 0]]
        p.append(paired.auc_test(labels, *(truth + rng.normal(size=(2, *truth.shape))), task).p)
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.045)


def test_the_jackknife_test_of_equal_arms_and_of_rounding_errors():
    labels, scores = brute.example(MULTI_CLASS)
    same = paired.auc_test(labels, scores, 2 * scores, MULTI_CLASS)
    assert (same.difference, same.se, same.p) == (0, 0, 1)
    constant = paired.auc_test(labels, np.eye(3)[labels[:, 0]], np.ones((60, 3)), MULTI_CLASS)
    assert (constant.difference, constant.se) == (0.5, 0)
    assert 0 < constant.p < 1e-6
    labels[labels == 2] = 1
    assert math.isnan(paired.auc_test(labels, scores, scores, MULTI_CLASS).p)


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
