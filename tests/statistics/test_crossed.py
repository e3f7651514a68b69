"""The bootstrap over patients and seeds against scipy, and its coverage."""

import numpy as np
import pytest
from scipy import stats

from jaxboost.evaluation import metrics
from jaxboost.statistics import bootstrap, crossed, intervals, paired, resampled
from jaxboost.tasks import BINARY, MULTI_CLASS, TASKS
from tests.statistics import brute


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
    found = crossed.compare(a, b, labels, task, metric, resamples=100)
    of = getattr(metrics, metric)
    assert found.mean_a == pytest.approx(np.mean([of(labels, run, task) for run in a]))
    assert found.mean_b == pytest.approx(np.mean([of(labels, run, task) for run in b]))
    assert found.difference == found.mean_a - found.mean_b
    assert found.low < found.difference < found.high
    assert found == crossed.compare(a, b, labels, task, metric, resamples=100)


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
    found = crossed.compare(a[None], b[None], labels, BINARY, metric, groups=groups, resamples=100, seed=6)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval, abs=1e-9)
    distribution = expected.bootstrap_distribution
    better = (distribution > 0).mean() + (distribution == 0).mean() / 2
    assert found.p_better == found.p_mean_better == pytest.approx(better)


def test_seed_weights_give_the_mean_its_variance():
    values = np.random.default_rng(0).normal(size=4)
    weights = crossed._seed_weights(np.random.default_rng(1), 4, 200_000)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert (weights * values[:, None]).sum(0).var() == pytest.approx(values.var(ddof=1) / 4, rel=0.02)


def test_the_difference_without_each_seed():
    a, b = np.random.default_rng(0).random((2, 3))

    def difference(rows_a, rows_b):
        return np.delete(a, rows_a).mean() - np.delete(b, rows_b).mean()

    of_a, of_b = crossed._without_seed(a, b, paired_seeds=False)
    np.testing.assert_allclose(of_a, [difference([s], []) for s in range(3)])
    np.testing.assert_allclose(of_b, [difference([], [s]) for s in range(3)])
    (together,) = crossed._without_seed(a, b, paired_seeds=True)
    np.testing.assert_allclose(together, [difference([s], [s]) for s in range(3)])
    assert crossed._without_seed(a[:1], b[:1], paired_seeds=False) == []
    assert crossed._without_seed(a[:1], b[:1], paired_seeds=True) == []


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
    hits, alone, found_by_test = [], [], []
    for seed in range(150):
        (a, b), labels, groups = _simulate(np.random.default_rng(seed), paired_seeds)
        found = crossed.compare(
            a, b, labels, BINARY, "auc", groups=groups, paired_seeds=paired_seeds, resamples=200, seed=seed
        )
        hits.append(found.low <= 0 <= found.high)
        found_by_test.append(found.p < 0.05)
        one = crossed.compare(a[:1], b[:1], labels, BINARY, "auc", groups=groups, resamples=200, seed=seed)
        alone.append(one.low <= 0 <= one.high)
    assert np.mean(hits) >= 0.9
    # Patients and seeds that act together count in both draws: with paired seeds the test is on the safe side.
    assert np.mean(found_by_test) < 0.085
    if not paired_seeds:
        assert np.mean(alone) < np.mean(hits)  # one seed knows nothing of the others


def _by_seeds_alone(values, resamples=4000):
    """A figure that depends on the seed alone, and not on the patients."""
    values = np.array(values)
    return resampled.Resampled(
        values=values, drawn=np.tile(values[:, None], resamples), left_out=np.tile(values[:, None], 1000)
    )


def test_the_test_is_students_where_only_the_seeds_vary():
    """Welch's test of seeds that are drawn apart, and the paired test of seeds that are drawn together."""
    a, b = [0.91, 0.88, 0.93, 0.90], [0.86, 0.89, 0.87, 0.84]
    for paired_seeds, test in ((False, stats.ttest_ind(a, b, equal_var=False)), (True, stats.ttest_rel(a, b))):
        pair = _by_seeds_alone(a), _by_seeds_alone(b)
        found = crossed.compare_resampled(*pair, lambda mean: (mean, mean), paired_seeds=paired_seeds)
        # The variance is that of 4000 draws.
        assert found.p == pytest.approx(test.pvalue, rel=0.1)


def test_the_test_of_single_runs_is_over_patients():
    labels, (a, b) = _runs(BINARY, 2)
    found = crossed.compare(a[None], b[None], labels, BINARY, "auc", resamples=2000)
    delong = paired.delong_test(labels[:, 0] == 1, a[:, 1], b[:, 1])
    # The bootstrap's standard error is nearly DeLong's, and t has 59 degrees of freedom.
    expected = 2 * stats.t.sf(abs(delong.difference) / delong.se, 59)
    assert found.p == pytest.approx(expected, rel=0.15)
    same = crossed.compare(a[None], a[None], labels, BINARY, "auc", resamples=50)
    assert np.isnan(same.p)


def test_few_patients_tell_little_about_their_own_spread():
    """With one seed all the variance is that of the patients: Student's t with one less degree than there are."""
    drawn = np.random.default_rng(0).normal(0.8, 0.05, (1, 4000))
    a = resampled.Resampled(values=np.array([0.8]), drawn=drawn, left_out=np.full((1, 4), 0.8))
    b = resampled.Resampled(values=np.array([0.7]), drawn=np.full((1, 4000), 0.7), left_out=np.full((1, 4), 0.7))
    found = crossed.compare_resampled(a, b, lambda mean: (mean, mean), paired_seeds=True)
    assert found.p == pytest.approx(2 * stats.t.sf(0.1 / drawn.std(), 3), rel=1e-6)


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
    together = crossed.compare(*runs, labels, BINARY, "auc", paired_seeds=True, resamples=300)
    apart = crossed.compare(*runs, labels, BINARY, "auc", resamples=300)
    assert together.difference == apart.difference
    assert together.low > 0 > apart.low
    assert together.p_better > 0.99
    assert 0.5 < apart.p_better < 0.8
    backwards = crossed.compare(*runs[::-1], labels, BINARY, "auc", paired_seeds=True, resamples=300)
    assert (backwards.low, backwards.high) == pytest.approx((-together.high, -together.low), abs=1e-4)
    assert backwards.p_better == pytest.approx(1 - together.p_better)


@pytest.mark.parametrize("metric", ["acc", "auc"])
@pytest.mark.parametrize("task", TASKS)
def test_equal_arms_have_an_interval_around_zero(task, metric):
    labels, scores = _runs(task, 3)
    found = crossed.compare(scores, scores, labels, task, metric, paired_seeds=True, resamples=50)
    assert (found.difference, found.p_better, found.p_mean_better) == (0, 0.5, 0.5)
    assert found.method == "square-and-add"
    assert found.low == pytest.approx(-found.high)
    assert 0 < found.high < 0.5


def test_two_perfect_arms_of_few_patients_are_not_shown_to_be_equal():
    labels = np.arange(40)[:, None] // 20
    perfect = np.eye(2)[labels[:, 0]][None]
    found = crossed.compare(perfect, perfect, labels, BINARY, "auc", groups=np.arange(40) // 5, resamples=50)
    low = intervals.newcombe(1, 4, 4)[0]
    assert (found.low, found.high) == pytest.approx((low - 1, 1 - low))


def test_an_absent_class_leaves_the_auc_undefined():
    labels, scores = _runs(MULTI_CLASS, 2)
    labels[labels == 2] = 0
    found = crossed.compare(scores, scores, labels, MULTI_CLASS, "auc", resamples=50)
    assert found.method == "undefined"
    assert np.isnan([found.difference, found.low, found.high, found.p_better, found.p_mean_better]).all()
    assert crossed.compare(scores, scores, labels, MULTI_CLASS, "acc", resamples=50).difference == 0


def test_resamples_without_a_class_are_left_out():
    labels, scores = _runs(BINARY, 2, n=9)
    labels[:, 0] = np.arange(9) < 2
    found = crossed.compare(scores, scores[::-1], labels, BINARY, "auc", resamples=200)
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
            crossed.compare(a, b, rows, BINARY, "auc", resamples=10, **options)


def test_comparisons_do_not_depend_on_the_block(monkeypatch):
    labels, scores = _runs(BINARY, 3)
    expected = crossed.compare(scores, scores[:2], labels, BINARY, "auc", resamples=100)
    monkeypatch.setattr(bootstrap, "_BLOCK", 60 * 7)
    assert crossed.compare(scores, scores[:2], labels, BINARY, "auc", resamples=100) == expected
