"""AUC, its variance and its jackknife against scikit-learn, mlstatkit and the definitions."""

import numpy as np
import pytest
from MLstatkit import Delong_test
from sklearn.metrics import roc_auc_score

from jaxboost.statistics.auc import auc_without_each, delong, drawn_auc
from tests.statistics import brute

decimals = pytest.mark.parametrize("decimals", [1, 9])  # one decimal: many equal scores


def _problem(decimals, n=300, rate=0.2):
    rng = np.random.default_rng(1)
    positive = rng.random(n) < rate
    return positive, (rng.normal(size=n) + positive).round(decimals)


@decimals
def test_auc_of_drawn_items_is_that_of_scikit_learn(decimals):
    positive, score = _problem(decimals)
    drawn = np.random.default_rng(0).integers(0, 4, (20, 300))
    expected = [roc_auc_score(np.repeat(positive, row), np.repeat(score, row)) for row in drawn]
    np.testing.assert_allclose(drawn_auc(positive, score)(drawn), expected, rtol=0, atol=1e-12)
    # Without a positive, or without a negative, there is none.
    drawn[0, positive] = 0
    drawn[1, ~positive] = 0
    assert np.isnan(drawn_auc(positive, score)(drawn)).tolist() == [True, True] + [False] * 18


@pytest.mark.parametrize("value", [True, False])
def test_one_class_has_no_auc(value):
    positive, score = np.full(5, value), np.arange(5.0)
    assert np.isnan(drawn_auc(positive, score)(np.ones((3, 5), int))).all()
    assert np.isnan(auc_without_each(positive, score, np.arange(5))).all()
    aucs, covariance = delong(positive, [score, -score])
    assert np.isnan(aucs).all()
    assert np.isnan(covariance).all()
    assert covariance.shape == (2, 2)


@decimals
def test_delong_is_the_definition(decimals):
    positive, score = _problem(decimals)
    scores = [score, (score + np.random.default_rng(2).normal(size=300)).round(decimals), -score]
    for found, expected in zip(delong(positive, scores), brute.delong(positive, scores), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@decimals
def test_delong_is_that_of_mlstatkit(decimals):
    positive, score = _problem(decimals)
    other = (score + np.random.default_rng(2).normal(size=300)).round(decimals)
    (a, b), covariance = delong(positive, [score, other])
    z, _, _, _, auc_a, auc_b, _ = Delong_test(positive.astype(int), score, other, return_auc=True, verbose=0)
    assert (a, b) == pytest.approx((auc_a, auc_b), abs=1e-12)
    assert abs(a - b) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) == pytest.approx(abs(z))


def test_items_that_are_their_own_groups_change_no_covariance():
    positive, score = _problem(1)
    names = np.random.default_rng(0).permutation(300).astype(str)
    for found, expected in zip(delong(positive, [score], names), delong(positive, [score]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_each_item_twice_doubles_the_variance_without_groups_only():
    """Obuchowski's variance sees that a copy tells nothing new; DeLong's halves."""
    positive, score = _problem(9)
    twice = np.tile(positive, 2), [np.tile(score, 2)]
    (_, once), (_, grouped), (_, alone) = (
        delong(positive, [score]),
        delong(*twice, np.tile(range(300), 2)),
        delong(*twice),
    )
    assert grouped[0, 0] == pytest.approx(once[0, 0], rel=1e-9)
    assert alone[0, 0] == pytest.approx(once[0, 0] / 2, rel=0.02)


def test_variance_over_patients_is_obuchowskis():
    """The formula of Obuchowski 1997, written with sums over clusters."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(9), rng.integers(1, 5, 9))
    positive = rng.random(len(groups)) < 0.5
    positive[groups == 0], positive[groups == 1] = True, False  # clusters of one class too
    scores = [(positive + rng.normal(size=len(groups))).round(1) for _ in range(2)]
    m, k = positive.sum(), (~positive).sum()
    parts = []
    for score in scores:
        table = brute.wins(positive, score)
        above, below = table.mean(1) - table.mean(), table.mean(0) - table.mean()
        parts.append(
            [
                [part[groups[rows] == g].sum() for g in range(9)]
                for part, rows in ((above, positive), (below, ~positive))
            ]
        )
    (a1, a0), (b1, b0) = np.array(parts)
    with_1, with_0 = len(set(groups[positive])), len(set(groups[~positive]))
    s1 = with_1 / ((with_1 - 1) * m) * (a1 @ b1)
    s0 = with_0 / ((with_0 - 1) * k) * (a0 @ b0)
    s10, s01 = 9 / 8 * (a1 @ b0), 9 / 8 * (a0 @ b1)
    expected = s1 / m + s0 / k + (s10 + s01) / (m * k)
    assert delong(positive, scores, groups)[1][0, 1] == pytest.approx(expected, rel=1e-12)


def test_variance_over_patients_is_that_of_repeated_samples():
    """Patients have items of both classes, of a common level: the AUC varies less than that of independent items."""
    rng = np.random.default_rng(0)
    positive, groups = np.tile([True, False, False], 40), np.repeat(np.arange(40), 3)
    found, variances, alone = [], [], []
    for _ in range(400):
        score = positive * 1.0 + rng.normal(size=120) + 2 * rng.normal(size=40)[groups]
        (auc,), ((variance,),) = delong(positive, [score], groups)
        found.append(auc)
        variances.append(variance)
        alone.append(delong(positive, [score])[1][0, 0])
    assert np.mean(variances) == pytest.approx(np.var(found, ddof=1), rel=0.15)
    assert np.mean(alone) > 1.5 * np.var(found, ddof=1)


@decimals
@pytest.mark.parametrize("groups", [300, 40, 2, 1])
def test_auc_without_each_group_is_that_of_the_rest(decimals, groups):
    positive, score = _problem(decimals)
    numbers = np.random.default_rng(3).permutation(np.arange(300) % groups)
    expected = [brute.auc(positive[numbers != g], score[numbers != g]) for g in range(groups)]
    np.testing.assert_allclose(auc_without_each(positive, score, numbers), expected, rtol=0, atol=1e-12)


def test_leaving_out_the_only_positive_leaves_no_auc():
    found = auc_without_each(np.array([True, False, False]), np.array([0.3, 0.2, 0.4]), np.arange(3))
    np.testing.assert_array_equal(found, [np.nan, 0.0, 1.0])


def test_scores_without_a_rank_are_refused():
    with pytest.raises(ValueError, match="contain NaN"):
        delong(np.array([True, False]), [[0.1, np.nan]])
