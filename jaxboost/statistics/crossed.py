"""Two arms, A and B, on the same test items: a bootstrap in which patients and seeds are crossed."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxboost.statistics import bootstrap, figures
from jaxboost.statistics.bootstrap import Interval, group_numbers
from jaxboost.statistics.intervals import BCA, NONE, score_interval
from jaxboost.statistics.paired import square_and_add
from jaxboost.statistics.resampled import Resampled, resample

SQUARE_AND_ADD = "square-and-add"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms compared over patients and seeds; see `compare`.

    Attributes:
      mean_a, mean_b: the metric, averaged over the seeds.
      difference: mean_a - mean_b.
      low, high: 95 % interval of the difference.
      method: "bca", "square-and-add" or "undefined".
      p: two-sided p value over patients and seeds, see `_t_test`; NaN where all resamples are the same.
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
    p: float
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
    arms = {
        arm: [figures.metric(labels, scores, task, metric) for scores in runs]
        for arm, runs in (("a", scores_a), ("b", scores_b))
    }
    found = resample(arms, numbers, resamples=resamples, seed=seed)

    def interval_of(mean: float) -> Interval:
        return score_interval(labels, task, metric, mean, numbers)

    return compare_resampled(found["a"], found["b"], interval_of, paired_seeds=paired_seeds, seed=seed)


def compare_resampled(
    a: Resampled, b: Resampled, interval_of: Callable[[float], Interval], *, paired_seeds: bool, seed: int = 0
) -> Comparison:
    """The comparison of `compare`, from the figures of both arms on the same resamples of patients.

    So an arm that is in many comparisons is resampled once.

    Args:
      a, b: the figures, from `resample` with the same patients and seed.
      interval_of: a mean over the seeds -> an interval of it alone, for `paired.square_and_add` where BCa is undefined.
      paired_seeds: as for `compare`.
      seed: random seed of the drawn seeds.
    """
    difference = a.mean - b.mean
    if not math.isfinite(difference):
        names = [field.name for field in dataclasses.fields(Comparison) if field.name != "method"]
        return Comparison(**dict.fromkeys(names, math.nan), method=NONE)
    defined = np.isfinite(a.drawn).all(0) & np.isfinite(b.drawn).all(0)  # a draw may lack a class
    drawn_a, drawn_b = a.drawn[:, defined], b.drawn[:, defined]
    rng = np.random.default_rng([seed, 1])
    weights_a = _seed_weights(rng, *drawn_a.shape)
    weights_b = weights_a if paired_seeds else _seed_weights(rng, *drawn_b.shape)
    differences = (weights_a * drawn_a).sum(0) - (weights_b * drawn_b).sum(0)

    without_patient = a.left_out.mean(0) - b.left_out.mean(0)
    left_out = [without_patient, *_without_seed(a.values, b.values, paired_seeds)]
    (low, high), method = bootstrap.bca_limits(difference, differences, left_out), BCA
    if not low < high:
        each = [(mean, interval_of(mean)) for mean in (a.mean, b.mean)]
        (low, high), method = square_and_add(*each), SQUARE_AND_ADD
    pairs = drawn_a - drawn_b if paired_seeds else drawn_a[:, np.newaxis] - drawn_b
    return Comparison(
        mean_a=a.mean,
        mean_b=b.mean,
        difference=difference,
        low=low,
        high=high,
        method=method,
        p=_t_test(a, b, differences, without_patient.size, paired_seeds=paired_seeds),
        p_better=bootstrap.fraction_above(pairs),
        p_mean_better=bootstrap.fraction_above(differences),
    )


def _t_test(a: Resampled, b: Resampled, differences: np.ndarray, patients: int, *, paired_seeds: bool) -> float:
    """The p value of the difference of the means over the seeds.

    The difference is divided by its standard error over the resamples, and compared with the t distribution. A few
    seeds tell little about their own spread, so the degrees of freedom are Satterthwaite's (1946): the part of the
    variance that is due to the seeds has one less than there are seeds, the rest one less than there are patients.

    Args:
      a, b: the figures.
      differences: of the resamples, (b,).
      patients: number of patients.
      paired_seeds: as for `compare`.
    """
    from scipy.special import stdtr

    variance = float(differences.var()) if differences.size else 0.0
    if variance <= bootstrap.ROUNDING**2 or patients < 2:
        return math.nan
    over_seeds = [a.values - b.values] if paired_seeds else [a.values, b.values]
    parts = [(float(each.var(ddof=1)) / each.size, each.size - 1) for each in over_seeds if each.size > 1]
    rest = max(variance - sum(part for part, _ in parts), 0.0)
    parts.append((rest, patients - 1))
    freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / freedom for part, freedom in parts)
    return 2 * float(stdtr(freedom, -abs(a.mean - b.mean) / math.sqrt(variance)))


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
