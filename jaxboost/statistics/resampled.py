"""Figures of the runs of an arm on the same resamples of patients, drawn once for all intervals and comparisons."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.statistics import bootstrap, figures, intervals
from jaxboost.statistics.bootstrap import Interval, group_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampled:
    """A figure of the runs of an arm, one run for each of s seeds.

    Attributes:
      values: of each run, (s,); NaN where it is undefined.
      drawn: of each run for each of b resamples, (s, b).
      left_out: of each run without each of g patients, (s, g).
    """

    values: np.ndarray
    drawn: np.ndarray
    left_out: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(self.values.mean())


def resample(
    arms: Mapping[str, Sequence[figures.Figure]], numbers: np.ndarray, *, resamples: int, seed: int
) -> dict[str, Resampled]:
    """Computes figures on resamples of patients; all figures see the same resamples, as do later calls.

    Args:
      arms: name -> the figure of each run.
      numbers: the patient of each item, int (n,), see `bootstrap.group_numbers`.
      resamples: number of resamples.
      seed: random seed.
    """
    every = np.ones((1, len(numbers)), np.int64)
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for drawn in bootstrap.draws(numbers, resamples, seed):
        for name, runs in arms.items():
            blocks[name].append(np.stack([figure.of(drawn) for figure in runs]))
    return {
        name: Resampled(
            values=np.array([figure.of(every)[0] for figure in runs]),
            drawn=np.concatenate(blocks[name], axis=1),
            left_out=np.stack([figure.without_each(numbers) for figure in runs]),
        )
        for name, runs in arms.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsFigure:
    """A figure of the runs of an arm, with the 95 % interval of its mean over the seeds.

    Attributes:
      resampled: its values.
      interval: (low, high) over patients; the seeds are fixed. NaN where the figure is undefined.
      method: how the interval was computed, see `intervals.split_intervals`.
    """

    resampled: Resampled
    interval: Interval
    method: str


def figures_of_runs(
    labels: np.ndarray,
    probabilities: np.ndarray,
    task: str,
    *,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> dict[str, RunsFigure]:
    """The figures of `figures.all_figures` over the runs of an arm, with intervals over patients.

    The interval of one run is that of `intervals.split_intervals`. Else, and for the balanced ACC, it is BCa over
    patients of the mean over the seeds or, where all resamples are the same, the score interval of the mean.

    Args:
      labels: (n, L).
      probabilities: of the runs, (s, n, classes).
      task: a key of `tasks.TASKS`.
      groups: the patient of each item, (n,); None: each item is its own patient.
      resamples: number of resamples.
      seed: random seed.

    Raises:
      ValueError: there are no items, or a probability is not finite.
    """
    numbers = group_numbers(groups, len(labels))
    limits, methods = {}, {}
    if len(probabilities) == 1:
        limits, methods = intervals.split_intervals(
            labels, probabilities[0], task, groups=groups, resamples=resamples, seed=seed
        )
    elif not len(labels) or not np.isfinite(probabilities).all():
        raise ValueError("there are no items, or the probabilities contain NaN or an infinite number")
    runs = [figures.all_figures(labels, scores, task) for scores in probabilities]
    by_name = {name: [run[name] for run in runs] for name in runs[0]}
    found = {}
    for name, resampled in resample(by_name, numbers, resamples=resamples, seed=seed).items():
        if name not in limits:
            limits[name], methods[name] = _mean_interval(name, resampled, labels, task, numbers)
        found[name] = RunsFigure(resampled=resampled, interval=limits[name], method=methods[name])
    return found


def score_interval(labels: np.ndarray, task: str, name: str, value: float, numbers: np.ndarray) -> Interval:
    """`intervals.score_interval` for all names of `figures.all_figures`.

    Sensitivity and specificity: Wilson, as if each patient of the class had one item. Balanced ACC: the mean of the
    limits of both, no narrower than an interval of the mean, as the standard deviation of a mean is at most the mean of
    the standard deviations.
    """
    if name in ("auc", "acc"):
        return intervals.score_interval(labels, task, name, value, numbers)
    classes = {"sensitivity": [1], "specificity": [0], "balanced_acc": [0, 1]}[name]
    counts = [len(np.unique(numbers[labels[:, 0] == number])) for number in classes]
    low, high = np.mean([intervals.wilson(value * count, count) for count in counts], axis=0)
    return float(low), float(high)


def _mean_interval(
    name: str, resampled: Resampled, labels: np.ndarray, task: str, numbers: np.ndarray
) -> tuple[Interval, str]:
    """Interval of the mean over the seeds, and its method."""
    if not np.isfinite(resampled.mean):
        return bootstrap.UNDEFINED, intervals.NONE
    several = intervals.PATIENTS if int(numbers.max()) + 1 < len(numbers) else ""
    low, high = bootstrap.bca_limits(resampled.mean, resampled.drawn.mean(0), [resampled.left_out.mean(0)])
    if low < high:
        return (low, high), intervals.BCA + several
    method = intervals.NEWCOMBE if name == "auc" else intervals.WILSON
    return score_interval(labels, task, name, resampled.mean, numbers), method + several
