"""BCa limits against scipy's, over items and over patients; their coverage beside that of the percentile bootstrap."""

import numpy as np
import pytest
from scipy import stats

from jaxboost.statistics import bootstrap
from jaxboost.statistics.auc import drawn_auc
from tests.statistics import brute


def _scipy(statistic, count, resamples=300, seed=5, method="BCa"):
    """scipy's interval of a function of drawn numbers below `count`."""
    found = stats.bootstrap(
        (np.arange(count),), statistic, n_resamples=resamples, vectorized=False, method=method, rng=seed
    )
    return found.confidence_interval


def test_limits_over_items_are_those_of_scipy():
    values = np.random.default_rng(0).exponential(size=30)
    found = bootstrap.bca(lambda drawn: drawn @ values / drawn.sum(1), 30, resamples=300, seed=5)
    assert found == pytest.approx(_scipy(lambda rows: values[rows].mean(), 30), abs=1e-12)


def test_limits_over_patients_are_those_of_scipy():
    """Patients of 1 to 4 items, in no order."""
    rng = np.random.default_rng(1)
    groups = rng.permutation(np.repeat(np.arange(25), rng.integers(1, 5, 25)))
    positive = rng.random(len(groups)) < 0.4
    score = (positive + rng.normal(size=len(groups)) + rng.normal(size=25)[groups]).round(1)

    in_order = list(dict.fromkeys(groups))  # of their first items

    def of_patients(patients):
        rows = np.concatenate([np.flatnonzero(groups == in_order[patient]) for patient in patients])
        return brute.auc(positive[rows], score[rows])

    names = np.array([f"p{group}" for group in groups])
    found = bootstrap.bca(drawn_auc(positive, score), len(groups), groups=names, resamples=300, seed=5)
    assert found == pytest.approx(_scipy(of_patients, 25), abs=1e-12)


def test_limits_of_two_factors_are_those_of_scipys_two_samples():
    rng = np.random.default_rng(2)
    a, b = rng.exponential(size=12), 3 * rng.exponential(size=20)
    expected = stats.bootstrap(
        (a, b), lambda x, y, axis=-1: x.mean(axis) - y.mean(axis), n_resamples=300, method="BCa", rng=rng
    )
    left_out = [(a.sum() - a) / 11 - b.mean(), a.mean() - (b.sum() - b) / 19]
    found = bootstrap.bca_limits(a.mean() - b.mean(), expected.bootstrap_distribution, left_out)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=1e-12)


def test_limits_with_a_given_jackknife_are_those_with_a_computed_one():
    values = np.random.default_rng(0).exponential(size=30)

    def mean(drawn):
        return drawn @ values / drawn.sum(1)

    known = (values.sum() - values) / 29
    numbers = np.arange(30)
    np.testing.assert_allclose(bootstrap.without_each(mean, numbers), known, rtol=1e-12)
    first, second = (bootstrap.bca(mean, 30, resamples=200, left_out=left_out) for left_out in (known, None))
    assert first == pytest.approx(second, rel=1e-12)


@pytest.mark.parametrize("groups", [None, np.arange(50) // 3])
def test_resamples_do_not_depend_on_the_block(groups, monkeypatch):
    numbers = bootstrap.group_numbers(groups, 50)
    expected = np.concatenate(list(bootstrap.draws(numbers, 40, 3)))
    assert expected.shape == (40, 50)
    if groups is None:
        assert (expected.sum(1) == 50).all()
    else:
        assert (expected[:, ::3].sum(1) == 17).all()
        np.testing.assert_array_equal(expected[:, 0], expected[:, 2])
    for block in (1, 50 * 7):
        monkeypatch.setattr(bootstrap, "_BLOCK", block)
        np.testing.assert_array_equal(np.concatenate(list(bootstrap.draws(numbers, 40, 3))), expected)


def test_groups_are_numbered_without_gaps():
    assert bootstrap.group_numbers(np.array(["c", "a", "c", "b"]), 4).tolist() == [0, 1, 0, 2]
    assert bootstrap.group_numbers(None, 3).tolist() == [0, 1, 2]


def test_a_statistic_that_never_changes_has_no_limits():
    assert np.isnan(bootstrap.bca(lambda drawn: np.ones(len(drawn)), 5, resamples=20)).all()
    assert np.isnan(bootstrap.bca(lambda drawn: np.full(len(drawn), np.nan), 5, resamples=20)).all()


def test_figures_that_are_equal_but_for_rounding_are_equal():
    rng = np.random.default_rng(0)
    exact = np.concatenate([rng.normal(0.1, 0.2, 100), np.full(100, 0.1)])
    noisy = exact + rng.choice([1e-16, 2e-16], 200)
    left_out = [np.array([0.1, 0.2, 0.4])]
    assert bootstrap.bca_limits(0.1, noisy, left_out) == pytest.approx(bootstrap.bca_limits(0.1, exact, left_out))
    assert np.isnan(bootstrap.bca_limits(0.1, 0.1 + (noisy - exact), left_out)).all()
    assert bootstrap.fraction_above(np.array([0.2, 1e-16, -1e-16, -0.1])) == 0.5
    assert np.isnan(bootstrap.fraction_above(np.zeros(0)))


def test_resamples_without_a_value_are_left_out():
    positive, score = np.arange(8) < 2, np.array([3, 5, 1, 2, 4, 6, 2, 1.0])  # a tenth of the resamples lack a positive
    low, high = bootstrap.bca(drawn_auc(positive, score), 8, resamples=500)
    assert 0 <= low < brute.auc(positive, score) < high <= 1


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="there are no items"):
        bootstrap.bca(lambda drawn: drawn.sum(1), 0, resamples=10)


def _coverage(truth, trials, interval):
    """How often the two intervals that a trial gives, (2, 2), hold the truth, (2,)."""
    found = np.array([interval(np.random.default_rng(seed)) for seed in range(trials)])
    return ((found[:, :, 0] <= truth) & (truth <= found[:, :, 1])).mean(0)


def test_bca_covers_a_skewed_mean_better_than_percentiles():
    def trial(rng):
        values = rng.lognormal(size=20)
        distribution = np.concatenate([drawn @ values / 20 for drawn in bootstrap.draws(np.arange(20), 400, 0)])
        left_out = (values.sum() - values) / 19
        bca = bootstrap.bca_limits(values.mean(), distribution, [left_out])
        return bca, tuple(np.quantile(distribution, [0.025, 0.975]))

    bca, percentile = _coverage(np.exp(0.5), 1000, trial)
    assert percentile < 0.86
    assert bca > percentile + 0.01


def test_resamples_of_patients_cover_where_resamples_of_items_do_not():
    """AUC of 40 patients with 6 items each. The true AUC is that of two normal distributions of scores."""
    truth = stats.norm.cdf(2 / np.sqrt(2 * (1.5**2 + 0.3**2)))

    def trial(rng):
        labels, probabilities, groups = brute.of_patients(40, 6, rng)
        statistic = drawn_auc(labels[:, 0] == 1, probabilities[:, 1])
        over_patients = bootstrap.bca(statistic, 240, groups=groups, resamples=300)
        items = np.concatenate([statistic(drawn) for drawn in bootstrap.draws(np.arange(240), 300, 0)])
        return over_patients, tuple(np.quantile(items, [0.025, 0.975]))

    patients, items = _coverage(truth, 200, trial)
    assert 0.9 <= patients <= 0.99
    assert items < 0.7
