"""ACC, AUC and other fractions of a split as functions of how often each item is drawn, in MedMNIST's sense."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from jaxboost.statistics.auc import auc_without_each, drawn_auc
from jaxboost.statistics.bootstrap import Statistic
from jaxboost.tasks import TASKS

Metric = Literal["acc", "auc"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a split.

    Attributes:
      of: how often each item is drawn, int64 (b, n) -> the figure (b,); NaN where it is undefined.
      without_each: the group of each item, int (n,) -> the figure without each group (g,).
    """

    of: Statistic
    without_each: Callable[[np.ndarray], np.ndarray]


def fraction(right: np.ndarray, whole: np.ndarray) -> Figure:
    """The fraction sum(right) / sum(whole) over the items; both are int (n,), and 0 <= right <= whole."""

    def of(drawn: np.ndarray) -> np.ndarray:
        return _divide(drawn @ right, drawn @ whole)

    def without_each(numbers: np.ndarray) -> np.ndarray:
        rest = [part.sum() - np.bincount(numbers, part) for part in (right, whole)]
        return _divide(*rest)

    return Figure(of, without_each)


def mean_auc(problems: Iterable[tuple[np.ndarray, np.ndarray]]) -> Figure:
    """The mean of the AUCs of binary problems (is positive, bool (n,); score, (n,)); NaN if one is undefined."""
    problems = list(problems)
    aucs = [drawn_auc(*problem) for problem in problems]
    return Figure(
        lambda drawn: np.mean([auc_of(drawn) for auc_of in aucs], axis=0),
        lambda numbers: np.mean([auc_without_each(*problem, numbers) for problem in problems], axis=0),
    )


def metric(labels: np.ndarray, probabilities: np.ndarray, task: str, name: Metric) -> Figure:
    """MedMNIST's "acc" or "auc".

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      task: a key of `tasks.TASKS`.
      name: "acc" or "auc".
    """
    if name == "auc":
        return mean_auc(TASKS[task].one_against_rest(labels, probabilities))
    return fraction(*proportions(labels, probabilities, task)["acc"])


def proportions(labels: np.ndarray, probabilities: np.ndarray, task: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The parts of `fraction` of "acc" and, for a binary task, of "sensitivity" and "specificity" at threshold .5.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      task: a key of `tasks.TASKS`.

    Returns:
      Name -> of each item, how many of its labels are right and how many count, both int (n,).
    """
    # Counts of right labels, not fractions: sums of integers are exact, so that equal figures are equal.
    equal = TASKS[task].decide(probabilities) == labels
    found = {"acc": (equal.sum(1), np.full(len(labels), labels.shape[1]))}
    if TASKS[task].binary:
        for name, number in (("sensitivity", 1), ("specificity", 0)):
            of_class = labels[:, 0] == number
            found[name] = ((equal[:, 0] & of_class).astype(int), of_class.astype(int))
    return found


def all_figures(labels: np.ndarray, probabilities: np.ndarray, task: str) -> dict[str, Figure]:
    """All figures of a split: "auc", "acc" and, for a binary task, "sensitivity", "specificity" and "balanced_acc".

    The balanced ACC is the mean of sensitivity and specificity; it is undefined where one of them is.
    """
    found = {name: fraction(*parts) for name, parts in proportions(labels, probabilities, task).items()}
    if TASKS[task].binary:
        found["balanced_acc"] = _mean([found["sensitivity"], found["specificity"]])
    return {"auc": metric(labels, probabilities, task, "auc"), **found}


def _mean(parts: list[Figure]) -> Figure:
    return Figure(
        lambda drawn: np.mean([part.of(drawn) for part in parts], axis=0),
        lambda numbers: np.mean([part.without_each(numbers) for part in parts], axis=0),
    )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
