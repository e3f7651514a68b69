"""Two arms, A and B, on the same test items: paired tests, and a bootstrap over patients and seeds together."""

import dataclasses
import math

import numpy as np

from jaxboost.statistics import bootstrap, figures
from jaxboost.statistics.auc import delong
from jaxboost.statistics.bootstrap import UNDEFINED, Interval, group_numbers
from jaxboost.statistics.intervals import BCA, NONE, newcombe, score_interval

SQUARE_AND_ADD = "square-and-add"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DelongTest:
    """The AUCs of two scores compared; see `delong_test`.

    Attributes:
      auc_a, auc_b: the two AUCs.
      difference: auc_a - auc_b.
      se: the standard error of the difference.
      p: two-sided p value; NaN: undefined.
      low, high: interval of the difference.
    """

    auc_a: float
    auc_b: float
    difference: float
    se: float
    p: float
    low: float
    high: float


def delong_test(
    positive: np.ndarray,
    score_a: np.ndarray,
    score_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    level: float = 0.95,
) -> DelongTest:
    """Paired test that two AUCs of the same items are equal (DeLong et al. 1988; with groups Obuchowski 1997).

    The difference divided by its standard error is taken as normal. If the standard error is 0 or undefined (two arms
    that rank each pair alike; a class with one item), the interval is `square_and_add`, and p is 1 for a difference of
    0 and else undefined.

    Args:
      positive: bool (n,).
      score_a, score_b: (n,).
      groups: the patient of each item, (n,); None: each item is its own patient.
      level: the coverage asked for.

    Raises:
      ValueError: a score is not finite.
    """
    from scipy.special import ndtr, ndtri

    aucs, covariance = delong(positive, [score_a, score_b], groups)
    auc_a, auc_b = map(float, aucs)
    difference = auc_a - auc_b
    separate = float(covariance.trace())
    variance = separate - 2 * float(covariance[0, 1])
    if abs(variance) <= bootstrap.ROUNDING * separate:
        variance = 0.0
    se = math.sqrt(variance)
    if math.isnan(difference):
        p, (low, high) = math.nan, UNDEFINED
    elif se > 0:
        reach = float(ndtri((1 + level) / 2)) * se
        p, low, high = 2 * float(ndtr(-abs(difference) / se)), difference - reach, difference + reach
    else:
        numbers = group_numbers(groups, len(positive))
        counts = [len(np.unique(numbers[of_class])) for of_class in (positive, ~positive)]
        each = [(auc, newcombe(auc, *counts, level=level)) for auc in (auc_a, auc_b)]
        p = 1.0 if difference == 0 else math.nan
        low, high = square_and_add(*each)
    # A difference of two AUCs is between -1 and 1.
    return DelongTest(
        auc_a=auc_a, auc_b=auc_b, difference=difference, se=se, p=p, low=max(low, -1.0), high=min(high, 1.0)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's exact test.

    Attributes:
      only_a, only_b: x1 and x2, the items that only A and only B gets right.
      n: the number of items.
      difference: ACC of A less ACC of B.
      p: two-sided exact p value.
    """

    only_a: int
    only_b: int
    n: int
    difference: float
    p: float


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> McNemar:
    """McNemar's exact test that two arms have the same ACC (McNemar 1947).

    Given x1 + x2, x1 is binomial with 1/2. The items must be independent: where a patient has several, pool them first
    (`pooling.pool`).

    Args:
      right_a, right_b: whether each arm gets each item right, bool (n,).

    Raises:
      ValueError: there are no items.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    if not len(right_a):
        raise ValueError("there are no items: McNemar's test needs one or more")
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    # The test does not use the items that both or neither get right. Without a discordant item, p is 1.
    p = exact_test([[0, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
    n = len(right_a)
    return McNemar(only_a=only_a, only_b=only_b, n=n, difference=(only_a - only_b) / n, p=float(p))


def false_order(only_a: float, only_b: float) -> float:
    """The probability that A, which is claimed to be better, has no higher ACC than B in the population.

    (p1, p2, rest) ~ Dirichlet(x1 + 1, x2 + 1, n - x1 - x2 + 2) after the test items (arXiv 2505.04720), and the result
    is P(p1 <= p2). The share p1 / (p1 + p2) of a Dirichlet vector is Beta(x1 + 1, x2 + 1), whatever the rest is, so the
    probability is that of a share up to 1/2, the regularised incomplete beta function I_1/2(x1 + 1, x2 + 1). It does
    not depend on n.

    Args:
      only_a, only_b: x1 and x2, how many items only A and only B gets right.
    """
    from scipy.special import betainc

    return float(betainc(only_a + 1, only_b + 1, 0.5))


def square_and_add(a: tuple[float, Interval], b: tuple[float, Interval]) -> Interval:
    """Interval of the difference of two figures from their own intervals (Newcombe 1998, method 10).

    It takes the two as independent. Two arms on the same items go up and down together, so it is too wide for them.

    Args:
      a, b: the figure and its (low, high).
    """
    (value_a, (low_a, high_a)), (value_b, (low_b, high_b)) = a, b
    difference = value_a - value_b
    return (
        difference - math.hypot(value_a - low_a, high_b - value_b),
        difference + math.hypot(high_a - value_a, value_b - low_b),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms compared over patients and seeds; see `compare`.

    Attributes:
      mean_a, mean_b: the metric, averaged over the seeds.
      difference: mean_a - mean_b.
      low, high: 95 % interval of the difference.
      method: "bca", "square-and-add" or "undefined".
      p_better: P(A > B): the probability that one run of A has a higher metric than one run of B, over resampled
        patients and over seeds; ties count half.
      p_mean_better: the fraction of the resamples in which the mean over the seeds is higher for A; ties count half.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    method: str
    p_better: float
    p_mean_better: float


def compare(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    labels: np.ndarray,
    task: str,
    metric: figures.Metric,
    *,
    groups: np.ndarray | None = None,
    paired_seeds: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares the mean metric of two arms by a bootstrap in which patients and seeds are crossed.

    A resample draws patients, the same for all runs of both arms, and seeds of each arm. The limits are BCa, with the
    jackknife over patients and over seeds. A mean over S drawn seeds varies by (S - 1) / S too little, so the weights
    of the seeds are stretched by sqrt(S / (S - 1)) (Rao and Wu 1988). With one seed, the interval knows of patients
    only. P(A > B) is that of Bouthillier et al. 2021.

    Args:
      scores_a: probabilities of the runs of A, (seeds, n, classes).
      scores_b: probabilities of the runs of B, (seeds, n, classes).
      labels: (n, L).
      task: a key of `tasks.TASKS`.
      metric: "auc" or "acc", in MedMNIST's sense.
      groups: the patient of each item, (n,); None: each item is its own patient.
      paired_seeds: run s of A and run s of B have the same seed (order of data, initial weights): draw them together.
      resamples: number of resamples.
      seed: random seed.

    Returns:
      The comparison; all its numbers are NaN if the metric is undefined, as an AUC without one of the classes.

    Raises:
      ValueError: there are no items or no seeds, a score is not finite, or the arms have different numbers of paired
        seeds.
    """
    _check(scores_a, scores_b, labels, paired_seeds)
    numbers = group_numbers(groups, len(labels))
    arms = [[figures.metric(labels, scores, task, metric) for scores in arm] for arm in (scores_a, scores_b)]
    every = np.ones((1, len(labels)), np.int64)
    values_a, values_b = (np.array([figure.of(every)[0] for figure in arm]) for arm in arms)
    mean_a, mean_b = float(values_a.mean()), float(values_b.mean())
    difference = mean_a - mean_b
    if not math.isfinite(difference):
        names = [field.name for field in dataclasses.fields(Comparison) if field.name != "method"]
        return Comparison(**dict.fromkeys(names, math.nan), method=NONE)

    blocks = [
        [np.stack([figure.of(drawn) for figure in arm]) for arm in arms]
        for drawn in bootstrap.draws(numbers, resamples, seed)
    ]
    drawn_a, drawn_b = (np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
    defined = np.isfinite(drawn_a).all(0)  # without a class, the metric of no run is defined
    drawn_a, drawn_b = drawn_a[:, defined], drawn_b[:, defined]
    rng = np.random.default_rng([seed, 1])
    weights_a = _seed_weights(rng, *drawn_a.shape)
    weights_b = weights_a if paired_seeds else _seed_weights(rng, *drawn_b.shape)
    differences = (weights_a * drawn_a).sum(0) - (weights_b * drawn_b).sum(0)

    without_patient = [np.mean([figure.without_each(numbers) for figure in arm], axis=0) for arm in arms]
    left_out = [without_patient[0] - without_patient[1], *_without_seed(values_a, values_b, paired_seeds)]
    (low, high), method = bootstrap.bca_limits(difference, differences, left_out), BCA
    if not low < high:
        each = [(mean, score_interval(labels, task, metric, mean, numbers)) for mean in (mean_a, mean_b)]
        (low, high), method = square_and_add(*each), SQUARE_AND_ADD
    pairs = drawn_a - drawn_b if paired_seeds else drawn_a[:, np.newaxis] - drawn_b
    return Comparison(
        mean_a=mean_a,
        mean_b=mean_b,
        difference=difference,
        low=low,
        high=high,
        method=method,
        p_better=bootstrap.fraction_above(pairs),
        p_mean_better=bootstrap.fraction_above(differences),
    )


def _check(scores_a: np.ndarray, scores_b: np.ndarray, labels: np.ndarray, paired_seeds: bool) -> None:
    if not len(labels):
        raise ValueError("there are no items: a comparison needs one or more")
    for name, scores in (("A", scores_a), ("B", scores_b)):
        if scores.ndim != 3 or not len(scores) or scores.shape[1] != len(labels):
            raise ValueError(f"the scores of {name} have the shape {scores.shape}, not (seeds, {len(labels)}, classes)")
        if not np.isfinite(scores).all():
            raise ValueError(f"the scores of {name} contain NaN or an infinite number")
    if paired_seeds and len(scores_a) != len(scores_b):
        raise ValueError(f"A has {len(scores_a)} seeds and B has {len(scores_b)}: they cannot be paired")


def _seed_weights(rng: np.random.Generator, seeds: int, resamples: int) -> np.ndarray:
    """The weight of each seed in the mean of each resample, (seeds, resamples); the weights of a resample sum to 1."""
    if seeds == 1:
        return np.ones((1, resamples))
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).T
    return (1 + math.sqrt(seeds / (seeds - 1)) * (counts - 1)) / seeds


def _without_seed(values_a: np.ndarray, values_b: np.ndarray, paired_seeds: bool) -> list[np.ndarray]:
    """The difference of the means without each seed: one array for each set of seeds that is drawn."""

    def rest(values: np.ndarray) -> np.ndarray:
        return (values.sum() - values) / (len(values) - 1)

    if paired_seeds:
        return [rest(values_a - values_b)] if len(values_a) > 1 else []
    of_a = [rest(values_a) - values_b.mean()] if len(values_a) > 1 else []
    return of_a + ([values_a.mean() - rest(values_b)] if len(values_b) > 1 else [])
