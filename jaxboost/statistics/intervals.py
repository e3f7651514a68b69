"""95 % intervals of the figures of a split: Wilson, DeLong on the logit scale, BCa, and else score intervals.

Wald intervals and plain percentile bootstraps cover too little where a set is small, a figure is close to 1, or a
patient has several items.
"""

import math

import numpy as np

from jaxboost.statistics import bootstrap, figures
from jaxboost.statistics.auc import delong
from jaxboost.statistics.bootstrap import UNDEFINED, Interval, group_numbers
from jaxboost.tasks import TASKS

# The names of the methods in a result. After a "-patients", patients were drawn or counted, and not items.
WILSON, LOGIT_DELONG, NEWCOMBE, BCA, NONE = "wilson", "delong-logit", "newcombe", "bca", "undefined"
PATIENTS = "-patients"


def wilson(right: float, of: float, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of the proportion right / of (Wilson 1927); NaN if `of` is 0.

    It has all P with |right / of - P| <= z sqrt(P (1 - P) / of). The numbers need not be whole.
    """
    if not of:
        return UNDEFINED
    from scipy.special import ndtri

    right, of, square = float(right), float(of), float(ndtri((1 + level) / 2)) ** 2
    center = (right + square / 2) / (of + square)
    reach = math.sqrt(square * (right * (1 - right / of) + square / 4)) / (of + square)
    # The exact limit at a proportion of 0 and of 1, which rounding misses by 1e-17.
    return (0.0 if right == 0 else center - reach), (1.0 if right == of else center + reach)


def newcombe(auc: float, positives: int, negatives: int, *, level: float = 0.95) -> Interval:
    """Score interval of an AUC (Newcombe 2006, method 5), which also holds for an AUC of 0 or 1.

    It has all A with |auc - A| <= z sqrt(V(A)), where V is the variance of Hanley and McNeil 1982 with N = (m + k) / 2
    in place of both m and k in its two covariances:
    V(A) = A (1 - A) [1 + (N - 1) ((1 - A) / (2 - A) + A / (1 + A))] / (m k).

    Args:
      auc: the observed AUC.
      positives: m, at least 1.
      negatives: k, at least 1.
      level: the coverage asked for.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    scale = ndtri((1 + level) / 2) ** 2 / (positives * negatives)
    others = (positives + negatives) / 2 - 1

    def lower_limit(observed: float) -> float:
        # (observed - A)^2 - z^2 V(A) has the root A = 1 for an observed 1: there it is divided by 1 - A.
        def excess(at: float) -> float:
            variance = at * (1 + others * ((1 - at) / (2 - at) + at / (1 + at)))
            return (1 - at) - scale * variance if observed == 1 else (observed - at) ** 2 - scale * variance * (1 - at)

        return 0.0 if observed == 0 else float(brentq(excess, 0, observed))

    return lower_limit(auc), 1 - lower_limit(1 - auc)


def auc_interval(positive: np.ndarray, score: np.ndarray, *, level: float = 0.95) -> tuple[Interval, str]:
    """Interval of the AUC of a binary problem with independent items, and the name of its method.

    It is logit(A) +- z SE / (A (1 - A)) on the logit scale, SE from DeLong (Qin and Hotilovac 2008), or, where this is
    undefined (A is 0 or 1, SE is 0, a class has one item), `newcombe`.

    Args:
      positive: bool (n,).
      score: (n,).
      level: the coverage asked for.

    Returns:
      (low, high), method; NaN, "undefined" if a class is absent.
    """
    (auc,), ((variance,),) = delong(positive, [score])
    if not np.isfinite(auc):
        return UNDEFINED, NONE
    if not 0 < auc < 1 or not variance > 0:
        return newcombe(auc, int(positive.sum()), int((~positive).sum()), level=level), NEWCOMBE
    from scipy.special import expit, logit, ndtri

    reach = ndtri((1 + level) / 2) * math.sqrt(variance) / (auc * (1 - auc))
    return (float(expit(logit(auc) - reach)), float(expit(logit(auc) + reach))), LOGIT_DELONG


def score_interval(
    labels: np.ndarray, task: str, name: figures.Metric, value: float, numbers: np.ndarray, *, level: float = 0.95
) -> Interval:
    """A wide interval of an ACC or AUC whose resamples are all the same, as if each group had one item.

    ACC: `wilson`. AUC: `newcombe`, whose limits are averaged over the classes. The standard deviation of a mean is at
    most the mean of the standard deviations, so this is no narrower than an interval of the mean.

    Args:
      labels: (n, L).
      task: a key of `tasks.TASKS`.
      name: "acc" or "auc".
      value: the ACC or AUC.
      numbers: the group of each item, int (n,), see `bootstrap.group_numbers`.
      level: the coverage asked for.
    """
    if name == "acc":
        groups = int(numbers.max()) + 1
        return wilson(value * groups, groups, level=level)
    classes = labels.shape[1] if TASKS[task].multi_label else int(labels.max()) + 1
    problems = TASKS[task].one_against_rest(labels, np.zeros((len(labels), classes)))
    counts = [[len(np.unique(numbers[of_class])) for of_class in (positive, ~positive)] for positive, _ in problems]
    low, high = np.mean([newcombe(value, *each, level=level) for each in counts], axis=0)
    return float(low), float(high)


def split_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    task: str,
    *,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """95 % intervals of "acc" and "auc" and, for a binary task, of "sensitivity" and "specificity" at threshold .5.

    Where each item is its own patient: `wilson` for proportions, `auc_interval` for the AUC of a binary task, and BCa
    over items for the other AUCs and for the ACC of a multi-label task. Where a patient has several items: BCa over
    patients. Where BCa is undefined, as when all resamples have the same figure: `score_interval`. So no interval is a
    single point, and none is NaN unless its figure is.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      task: a key of `tasks.TASKS`.
      groups: the patient of each item, (n,); None: each item is its own patient.
      resamples: number of bootstrap resamples.
      seed: random seed.

    Returns:
      Name -> (low, high), and name -> method: "wilson", "delong-logit", "newcombe" or "bca", with "-patients" after it
      where patients were drawn or counted; "undefined" (and NaN) for a figure without a class that it needs.

    Raises:
      ValueError: there are no items, or a probability is not finite.
    """
    if not len(labels):
        raise ValueError("the split has no items: an interval needs one or more")
    if not np.isfinite(probabilities).all():
        raise ValueError("the probabilities contain NaN or an infinite number")
    numbers = group_numbers(groups, len(labels))
    proportions = {
        name: _of_proportion(right, whole, numbers, resamples, seed)
        for name, (right, whole) in figures.proportions(labels, probabilities, task).items()
    }
    auc = _of_auc(labels, probabilities, task, numbers, resamples, seed)
    found = {"acc": proportions.pop("acc"), "auc": auc, **proportions}
    return {name: interval for name, (interval, _) in found.items()}, {name: how for name, (_, how) in found.items()}


def _of_auc(
    labels: np.ndarray, probabilities: np.ndarray, task: str, numbers: np.ndarray, resamples: int, seed: int
) -> tuple[Interval, str]:
    """Interval of MedMNIST's AUC, and its method."""
    kind = TASKS[task]
    if not kind.has_every_class(labels, probabilities.shape[1]):
        return UNDEFINED, NONE
    alone = _alone(numbers)
    if kind.binary and alone:
        return auc_interval(*next(kind.one_against_rest(labels, probabilities)))
    figure = figures.metric(labels, probabilities, task, "auc")
    interval, method = _bca(figure, numbers, resamples, seed), BCA
    if interval is None:
        value = float(figure.of(np.ones((1, len(labels)), np.int64))[0])
        interval, method = score_interval(labels, task, "auc", value, numbers), NEWCOMBE
    return interval, method if alone else method + PATIENTS


def _alone(numbers: np.ndarray) -> bool:
    """Whether each item is its own group."""
    return int(numbers.max()) + 1 == len(numbers)


def _of_proportion(
    right: np.ndarray, whole: np.ndarray, numbers: np.ndarray, resamples: int, seed: int
) -> tuple[Interval, str]:
    """Interval of sum(right) / sum(whole), and its method."""
    if not whole.any():
        return UNDEFINED, NONE
    alone = _alone(numbers)
    if alone and whole.max() == 1:
        return wilson(int(right.sum()), int(whole.sum())), WILSON
    interval, method = _bca(figures.fraction(right, whole), numbers, resamples, seed), BCA
    if interval is None:
        groups = len(np.unique(numbers[whole > 0]))
        interval, method = wilson(groups * (right.sum() / whole.sum()), groups), WILSON
    return interval, method if alone else method + PATIENTS


def _bca(figure: figures.Figure, numbers: np.ndarray, resamples: int, seed: int) -> Interval | None:
    """BCa interval over groups; None if it is undefined or a single point."""
    low, high = bootstrap.bca(
        figure.of,
        len(numbers),
        groups=numbers,
        resamples=resamples,
        seed=seed,
        left_out=figure.without_each(numbers),
    )
    return (low, high) if low < high else None
