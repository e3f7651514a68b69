"""Two arms, A and B, on the same test items: paired tests of their AUC and of their ACC."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxboost.statistics import bootstrap, figures
from jaxboost.statistics.auc import delong
from jaxboost.statistics.bootstrap import UNDEFINED, Interval, group_numbers
from jaxboost.statistics.intervals import newcombe, score_interval
from jaxboost.tasks import TASKS


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
    that rank each pair alike; a class with one item), the interval is `square_and_add`. Then p is 1 for a difference of
    0; else, if each class has two patients, the smallest alpha whose interval excludes 0; else undefined.

    Args:
      positive: bool (n,).
      score_a, score_b: (n,).
      groups: the patient of each item, (n,); None: each item is its own patient.
      level: the coverage asked for.

    Raises:
      ValueError: a score is not finite.
    """
    aucs, covariance = delong(positive, [score_a, score_b], groups)
    separate = float(covariance.trace())
    numbers = group_numbers(groups, len(positive))
    counts = [len(np.unique(numbers[of_class])) for of_class in (positive, ~positive)]

    def interval_of(auc: float, level: float) -> Interval:
        return newcombe(auc, *counts, level=level)

    return _normal_test(*map(float, aucs), separate - 2 * float(covariance[0, 1]), separate, interval_of, level)


def auc_test(
    labels: np.ndarray,
    probabilities_a: np.ndarray,
    probabilities_b: np.ndarray,
    task: str,
    *,
    groups: np.ndarray | None = None,
    level: float = 0.95,
) -> DelongTest:
    """Paired test that two AUCs in MedMNIST's sense are equal: `delong_test` where there is one binary problem.

    The AUC of more classes or labels is a mean of several AUCs. Its standard error is that of the jackknife over the
    patients (Arvesen 1969), which for one binary problem differs from DeLong's by a factor of 1 + O(1 / m) alone.

    Args:
      labels: (n, L).
      probabilities_a, probabilities_b: (n, classes).
      task: a key of `tasks.TASKS`.
      groups: the patient of each item, (n,); None: each item is its own patient.
      level: the coverage asked for.

    Raises:
      ValueError: a probability is not finite.
    """
    both = (probabilities_a, probabilities_b)
    if TASKS[task].binary:
        (positive, a), (_, b) = (next(TASKS[task].one_against_rest(labels, each)) for each in both)
        return delong_test(positive, a, b, groups=groups, level=level)
    if not all(np.isfinite(each).all() for each in both):
        raise ValueError("the probabilities contain NaN or an infinite number: these have no rank")
    numbers = group_numbers(groups, len(labels))
    arms = [figures.metric(labels, each, task, "auc") for each in both]
    every = np.ones((1, len(labels)), np.int64)
    auc_a, auc_b = (float(figure.of(every)[0]) for figure in arms)
    without_a, without_b = (figure.without_each(numbers) for figure in arms)
    separate = _jackknife_variance(without_a) + _jackknife_variance(without_b)

    def interval_of(auc: float, level: float) -> Interval:
        return score_interval(labels, task, "auc", auc, numbers, level=level)

    return _normal_test(auc_a, auc_b, _jackknife_variance(without_a - without_b), separate, interval_of, level)


def _jackknife_variance(left_out: np.ndarray) -> float:
    """The jackknife's variance of a figure from its values without each group; NaN if one of them is undefined."""
    return float((len(left_out) - 1) * left_out.var())


def _normal_test(
    auc_a: float,
    auc_b: float,
    variance: float,
    separate: float,
    interval_of: Callable[[float, float], Interval],
    level: float,
) -> DelongTest:
    """The test of `delong_test` from the variance of the difference.

    Args:
      auc_a, auc_b: the two AUCs.
      variance: of their difference; NaN: unknown.
      separate: the sum of their variances.
      interval_of: AUC and coverage -> an interval of the AUC alone.
      level: the coverage asked for.
    """
    from scipy.special import ndtr, ndtri

    difference = auc_a - auc_b
    # Also one that is left of the rounding errors of equal figures.
    if abs(variance) <= max(bootstrap.ROUNDING * separate, bootstrap.ROUNDING**2):
        variance = 0.0
    se = math.sqrt(variance)

    def apart(level: float) -> Interval:
        return square_and_add((auc_a, interval_of(auc_a, level)), (auc_b, interval_of(auc_b, level)))

    if math.isnan(difference):
        p, (low, high) = math.nan, UNDEFINED
    elif se > 0:
        reach = float(ndtri((1 + level) / 2)) * se
        p, low, high = 2 * float(ndtr(-abs(difference) / se)), difference - reach, difference + reach
    else:
        low, high = apart(level)
        p = 1.0 if difference == 0 else _touching(apart) if se == 0 else math.nan
    # A difference of two AUCs is between -1 and 1.
    return DelongTest(
        auc_a=auc_a, auc_b=auc_b, difference=difference, se=se, p=p, low=max(low, -1.0), high=min(high, 1.0)
    )


def _touching(interval_of: Callable[[float], Interval]) -> float:
    """The alpha at which an interval of coverage 1 - alpha just reaches 0, by bisection of its logarithm.

    Smaller ones than 1e-9 are given as 1e-9, and larger ones than .5 as .5.
    """
    below, above = math.log(1e-9), math.log(0.5)
    for _ in range(30):
        middle = (below + above) / 2
        low, high = interval_of(1 - math.exp(middle))
        below, above = (middle, above) if low <= 0 <= high else (below, middle)
    return math.exp(above)


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
