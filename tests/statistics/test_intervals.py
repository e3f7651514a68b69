"""Intervals of a split against statsmodels, scipy and closed forms; their coverage; where they are undefined."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from statsmodels.stats.proportion import proportion_confint

from jaxboost.evaluation import metrics
from jaxboost.statistics import bootstrap, intervals
from jaxboost.statistics.auc import drawn_auc
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL, TASKS
from tests.statistics import brute

Z = stats.norm.ppf(0.975)


def _covered(n, chance, limits):
    """The exact probability that the interval of a proportion, a function of the number right, holds `chance`."""
    right = np.arange(n + 1)
    low, high = np.array([limits(number) for number in right]).T
    return stats.binom.pmf(right, n, chance)[(low <= chance) & (chance <= high)].sum()


@pytest.mark.parametrize("n", [20, 60])
def test_wilson_covers_where_the_percentile_bootstrap_does_not(n):
    """Without simulation: the number of right items is binomial, and so are all resamples of it."""
    chances = np.linspace(0.9, 0.99, 19)
    wilson = np.mean([_covered(n, chance, lambda right: intervals.wilson(right, n)) for chance in chances])

    def percentile(right):
        return stats.binom.ppf([0.025, 0.975], n, right / n) / n

    assert 0.94 < wilson < 0.98
    assert np.mean([_covered(n, chance, percentile) for chance in chances]) < 0.85


@pytest.mark.parametrize(("right", "of"), [(0, 5), (3, 7), (7, 7), (1, 382), (2.4, 9), (8.999, 9)])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_wilson_is_that_of_statsmodels(right, of, level):
    expected = proportion_confint(right, of, alpha=1 - level, method="wilson")
    assert intervals.wilson(right, of, level=level) == pytest.approx(expected, abs=1e-14)


def test_wilson_at_the_ends():
    low, high = intervals.wilson(0, 10)
    assert low == 0
    assert high == pytest.approx(Z**2 / (10 + Z**2))
    assert intervals.wilson(10, 10) == pytest.approx((1 - high, 1), abs=1e-12)
    assert intervals.wilson(10, 10)[1] == 1
    assert np.isnan(intervals.wilson(0, 0)).all()


@pytest.mark.parametrize(("auc", "m", "k"), [(0.8, 10, 30), (0.97, 3, 200), (0.5, 5, 5), (0.04, 7, 2)])
def test_newcombes_limits_solve_their_equation(auc, m, k):
    """The variance of Hanley and McNeil 1982, written with their Q1 and Q2."""
    for limit in intervals.newcombe(auc, m, k):
        q1, q2 = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        others = (m + k) / 2 - 1
        variance = (limit * (1 - limit) + others * (q1 - limit**2) + others * (q2 - limit**2)) / (m * k)
        assert abs(auc - limit) == pytest.approx(Z * np.sqrt(variance), rel=1e-6)
    low, high = intervals.newcombe(auc, m, k)
    assert 0 < low < auc < high < 1
    assert intervals.newcombe(1 - auc, k, m) == pytest.approx((1 - high, 1 - low))


def test_newcombe_of_one_pair_is_wilson_of_one_item():
    assert intervals.newcombe(1, 1, 1) == pytest.approx(intervals.wilson(1, 1))
    assert intervals.newcombe(0, 1, 1) == pytest.approx(intervals.wilson(0, 1))


@pytest.mark.parametrize("auc", [0, 1])
def test_newcombe_of_a_perfect_auc_is_not_a_point(auc):
    low, high = intervals.newcombe(auc, 20, 30)
    assert (low, high) == pytest.approx((0, high) if auc == 0 else (low, 1))
    assert 0.02 < high - low < 0.2
    few, many = (intervals.newcombe(1, n, n)[0] for n in (5, 50))
    assert few < many


def test_binary_auc_has_delongs_interval_on_the_logit_scale():
    labels, scores = brute.example(BINARY)
    positive = labels[:, 0] == 1
    (auc,), ((variance,),) = brute.delong(positive, [scores[:, 1]])
    reach = Z * np.sqrt(variance) / (auc * (1 - auc))
    found, method = intervals.auc_interval(positive, scores[:, 1])
    assert method == "delong-logit"
    assert found == pytest.approx((expit(logit(auc) - reach), expit(logit(auc) + reach)))


def test_the_logit_interval_covers_a_high_auc_better_than_percentiles():
    positive = np.arange(40) < 12
    truth, hits = stats.norm.cdf(2.2 / np.sqrt(2)), np.zeros(2)
    for seed in range(400):
        score = np.random.default_rng(seed).normal(size=40) + 2.2 * positive
        auc = drawn_auc(positive, score)
        resampled = np.concatenate([auc(drawn) for drawn in bootstrap.draws(np.arange(40), 300, 0)])
        for number, (low, high) in enumerate(
            (intervals.auc_interval(positive, score)[0], np.nanquantile(resampled, [0.025, 0.975]))
        ):
            hits[number] += low <= truth <= high
    logit_delong, percentile = hits / 400
    assert 0.93 < logit_delong <= 0.99
    assert percentile < logit_delong - 0.03


def test_a_binary_split_has_wilson_and_delong():
    labels, scores = brute.example(BINARY)
    truth, right = labels[:, 0], (scores[:, 1] > 0.5) == labels[:, 0]
    found, methods = intervals.split_intervals(labels, scores, BINARY, resamples=100)
    parts = {"acc": right, "sensitivity": right[truth == 1], "specificity": right[truth == 0]}
    for name, part in parts.items():
        assert found[name] == pytest.approx(proportion_confint(part.sum(), len(part), method="wilson"))
    assert found["auc"] == intervals.auc_interval(truth == 1, scores[:, 1])[0]
    assert methods == dict.fromkeys(parts, "wilson") | {"auc": "delong-logit"}


def _scipy(labels, scores, task, name, groups):
    """scipy's BCa interval over patients of MedMNIST's metric, rounded so that equal figures are equal."""
    patients = list(dict.fromkeys(groups))

    def of(drawn):
        rows = np.concatenate([np.flatnonzero(groups == patients[number]) for number in drawn])
        if name in ("acc", "auc"):
            return round(getattr(metrics, name)(labels[rows], scores[rows], task), 13)
        return metrics.sensitivity_and_specificity(labels[rows, 0], TASKS[task].decide(scores[rows])[:, 0])[name]

    rng = np.random.default_rng(4)
    data = (np.arange(len(patients)),)
    return stats.bootstrap(data, of, n_resamples=40, vectorized=False, method="BCa", rng=rng).confidence_interval


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL, MULTI_LABEL])
def test_the_other_tasks_have_bca(task):
    labels, scores = brute.example(task, 40)
    scores = scores.round(1).astype(np.float32)  # many equal scores
    found, methods = intervals.split_intervals(labels, scores, task, resamples=40, seed=4)
    assert found["auc"] == pytest.approx(_scipy(labels, scores, task, "auc", np.arange(40)), abs=1e-12)
    assert methods["auc"] == "bca"
    if task == MULTI_LABEL:
        assert found["acc"] == pytest.approx(_scipy(labels, scores, task, "acc", np.arange(40)), abs=1e-12)
        assert methods["acc"] == "bca"
    else:
        assert found["acc"] == intervals.wilson((scores.argmax(1) == labels[:, 0]).sum(), 40)
        assert methods["acc"] == "wilson"
    assert set(found) == {"acc", "auc"}


@pytest.mark.parametrize("task", TASKS)
def test_patients_with_several_items_are_drawn_as_a_whole(task):
    labels, scores = brute.example(task, 60)
    groups = np.random.default_rng(1).permutation(np.arange(60) // 3)
    found, methods = intervals.split_intervals(labels, scores, task, groups=groups, resamples=40, seed=4)
    for name, interval in found.items():
        assert interval == pytest.approx(_scipy(labels, scores, task, name, groups), abs=1e-12), name
        assert methods[name] == "bca-patients"
    assert set(found) == {"acc", "auc"} | ({"sensitivity", "specificity"} if task == BINARY else set())


@pytest.mark.parametrize("task", TASKS)
def test_patients_of_one_item_each_are_items(task):
    labels, scores = brute.example(task)
    names = np.array([f"p{number}" for number in range(60)])
    expected = intervals.split_intervals(labels, scores, task, resamples=50)
    assert intervals.split_intervals(labels, scores, task, groups=names, resamples=50) == expected
    assert intervals.split_intervals(labels, scores, task, resamples=50) == expected


@pytest.mark.parametrize("scores", ["perfect", "reversed", "constant", "two"])
@pytest.mark.parametrize("of_patients", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [6, 40])
def test_no_interval_is_a_point(task, of_patients, scores, n):
    """Figures that are the same in all resamples still have intervals, and these hold the figures."""
    classes = 2 if task == BINARY else 3
    labels = np.arange(n)[:, None] % classes
    if task == MULTI_LABEL:
        labels = np.eye(3, dtype=int)[labels[:, 0]]
    target = labels if task == MULTI_LABEL else np.eye(classes)[labels[:, 0]]
    probabilities = {
        "perfect": 0.1 + 0.8 * target,
        "reversed": 0.9 - 0.8 * target,
        "constant": np.full_like(target, 1 / classes, dtype=float),
        # All wrong but one item.
        "two": np.where(np.arange(n)[:, None] == 0, 0.1 + 0.8 * target, 0.9 - 0.8 * target),
    }[scores]
    groups = np.arange(n) // 2 if of_patients else None
    found, methods = intervals.split_intervals(labels, probabilities, task, groups=groups, resamples=60)
    values = metrics.score(labels, probabilities, task)
    for name, (low, high) in found.items():
        assert 0 <= low < high <= 1, name
        assert low - 1e-12 <= values[name] <= high + 1e-12, name
    if scores == "perfect":
        last = {"auc": "newcombe", "acc": "wilson", "sensitivity": "wilson", "specificity": "wilson"}
        assert methods == {name: last[name] + "-patients" * of_patients for name in found}


def test_a_perfect_score_of_few_patients_has_a_wider_interval_than_of_as_many_items():
    labels, probabilities = np.arange(40)[:, None] // 20, np.eye(2)[np.arange(40) // 20]
    alone, _ = intervals.split_intervals(labels, probabilities, BINARY, resamples=20)
    grouped, _ = intervals.split_intervals(labels, probabilities, BINARY, groups=np.arange(40) // 5, resamples=20)
    assert grouped["auc"] == pytest.approx(intervals.newcombe(1, 4, 4))
    assert grouped["acc"] == pytest.approx(intervals.wilson(8, 8))
    assert grouped["sensitivity"] == pytest.approx(intervals.wilson(4, 4))
    for name, (low, _) in alone.items():
        assert grouped[name][0] < low


@pytest.mark.parametrize("groups", [None, [0, 0, 1]])
def test_one_class_has_no_auc(groups):
    labels, scores = np.zeros((3, 1), int), np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    groups = None if groups is None else np.array(groups)
    found, methods = intervals.split_intervals(labels, scores, BINARY, groups=groups, resamples=50)
    assert np.isnan([found["auc"], found["sensitivity"]]).all()
    assert (methods["auc"], methods["sensitivity"]) == ("undefined", "undefined")
    for name in ("acc", "specificity"):
        low, high = found[name]
        assert 0 <= low < 2 / 3 < high <= 1


def test_an_absent_class_leaves_the_mean_auc_undefined():
    labels, scores = brute.example(MULTI_CLASS)
    labels[labels == 2] = 0
    found, methods = intervals.split_intervals(labels, scores, MULTI_CLASS, resamples=50)
    assert np.isnan(found["auc"]).all()
    assert methods == {"acc": "wilson", "auc": "undefined"}


def test_one_item_has_an_accuracy():
    found, methods = intervals.split_intervals(np.array([[1]]), np.array([[0.2, 0.8]]), BINARY, resamples=10)
    assert found["acc"] == found["sensitivity"] == intervals.wilson(1, 1)
    assert methods["specificity"] == "undefined"


@pytest.mark.parametrize("m", [1, 2])
def test_a_class_of_one_item_has_an_auc(m):
    positive, score = np.arange(9) < m, np.array([5, 6, 1, 2, 9, 4, 3, 8, 7.0])
    (low, high), method = intervals.auc_interval(positive, score)
    assert method == ("newcombe" if m == 1 else "delong-logit")
    assert low < brute.auc(positive, score) < high


def test_a_rare_label_does_not_leave_the_interval_undefined():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (40, 3)), rng.random((40, 3))
    labels[:, 2] = np.arange(40) == 0  # about a third of the resamples lack it, and so does one of the jackknife
    low, high = intervals.split_intervals(labels, scores, MULTI_LABEL, resamples=200)[0]["auc"]
    assert 0 < low < metrics.auc(labels, scores, MULTI_LABEL) < high < 1


def test_no_items_and_scores_that_are_no_numbers_are_refused():
    labels, scores = brute.example(BINARY)
    with pytest.raises(ValueError, match="the split has no items"):
        intervals.split_intervals(labels[:0], scores[:0], BINARY, resamples=10)
    scores[3, 1] = np.nan
    with pytest.raises(ValueError, match="contain NaN"):
        intervals.split_intervals(labels, scores, BINARY, resamples=10)


def test_memory_does_not_grow_with_the_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BLOCK", 20_000)
    labels, scores = brute.example(MULTI_LABEL, n=4000)
    intervals.split_intervals(labels[:50], scores[:50], MULTI_LABEL, resamples=10)  # imports
    tracemalloc.start()
    try:
        intervals.split_intervals(labels, scores, MULTI_LABEL, resamples=300)
        # All resamples at once are 4000 x 300 x 8 bytes in every array.
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
