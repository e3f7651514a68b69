"""Whether probabilities mean what they say: Brier score, calibration error, reliability bins, and a temperature.

A figure is NaN if there are no items, or if a probability is not finite.
"""

import dataclasses
import math

import numpy as np

from jaxboost.statistics.bootstrap import Interval
from jaxboost.statistics.intervals import wilson
from jaxboost.tasks import TASKS

# Probabilities of 0 and 1 have no finite logarithm. This is the smallest normal float32, the type of a model's
# probabilities, so that no other two probabilities become equal.
_SMALLEST = float(np.finfo(np.float32).tiny)
# A split that is separated without an error asks for a temperature of 0.
_TEMPERATURES = (0.05, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
      low, high: the bin holds probabilities above `low` up to `high`; the first also holds 0.
      mean: mean probability in the bin.
      observed: how often what was predicted came true.
      n: number of predictions in the bin.
      interval: Wilson interval of `observed`.
    """

    low: float
    high: float
    mean: float
    observed: float
    n: int
    interval: Interval


def brier(labels: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """Brier score, the mean squared error of the probabilities; 0 is best.

    Binary: (p1 - y)^2, from 0 to 1. More classes: the sum over the classes (Brier 1950), from 0 to 2. Multi-label: the
    mean of the binary scores.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      task: a key of `tasks.TASKS`.
    """
    if not len(labels):
        return math.nan
    if TASKS[task].multi_label or TASKS[task].binary:
        predicted, came_true = _predictions(labels, probabilities, task)
        return float(np.mean((predicted - came_true) ** 2))
    target = np.eye(probabilities.shape[1])[labels[:, 0]]
    return float(np.mean(((np.asarray(probabilities, float) - target) ** 2).sum(1)))


def reliability(labels: np.ndarray, probabilities: np.ndarray, task: str, *, bins: int = 15) -> list[Bin]:
    """The bins of a reliability diagram, of equal width, without empty ones.

    Binary: the probability of class 1. More classes: that of the decision. Multi-label: those of all labels together.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      task: a key of `tasks.TASKS`.
      bins: number of bins.

    Returns:
      The bins; none if a probability is not finite.
    """
    predicted, came_true = _predictions(labels, probabilities, task)
    if not np.isfinite(predicted).all():
        return []
    edges = np.linspace(0, 1, bins + 1)
    places = np.searchsorted(edges[1:-1], predicted)
    found = []
    for place in np.unique(places):
        inside = places == place
        n, times = int(inside.sum()), int(came_true[inside].sum())
        found.append(
            Bin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                mean=float(predicted[inside].mean()),
                observed=times / n,
                n=n,
                interval=wilson(times, n),
            )
        )
    return found


def ece(labels: np.ndarray, probabilities: np.ndarray, task: str, *, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017), 0 is best.

    The mean over the predictions of |mean probability - observed frequency| of their bin; see `reliability`.
    """
    found = reliability(labels, probabilities, task, bins=bins)
    total = sum(each.n for each in found)
    return sum(each.n * abs(each.mean - each.observed) for each in found) / total if total else math.nan


def negative_log_likelihood(labels: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """Mean over the items of -log of the probability of the label; multi-label: mean over all labels."""
    if not len(labels):
        return math.nan
    probabilities = np.asarray(probabilities, float)
    if TASKS[task].multi_label:
        of_label = np.where(labels == 1, probabilities, 1 - probabilities)
    else:
        of_label = np.take_along_axis(probabilities, labels, axis=1)
    return float(-np.log(np.maximum(of_label, _SMALLEST)).mean())


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """The temperature, 0.05 to 20, that minimises the negative log-likelihood (Guo et al. 2017); fit it on validation.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      task: a key of `tasks.TASKS`.

    Returns:
      The temperature; above 1, the model was too sure. 1 if no other is better; NaN if a probability is not finite or
      there are no items.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels) or not np.isfinite(probabilities).all():
        return math.nan

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, math.exp(log_temperature), task)
        return negative_log_likelihood(labels, scaled, task)

    # The likelihood has one minimum in 1 / temperature, and so in its logarithm.
    bounds = tuple(map(math.log, _TEMPERATURES))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < loss(0.0) - 1e-12 else 1.0


def apply_temperature(probabilities: np.ndarray, temperature: float, task: str) -> np.ndarray:
    """Probabilities, float64 (n, classes), of the logits divided by the temperature.

    The logits are those of the probabilities, up to a constant of each item that makes no difference. The order of the
    classes of an item stays, and in a binary or multi-label task the order of the items.

    Args:
      probabilities: (n, classes).
      temperature: above 0.
      task: a key of `tasks.TASKS`.
    """
    from scipy.special import expit, softmax

    probabilities = np.asarray(probabilities, float)
    logs = np.log(np.maximum(probabilities, _SMALLEST))
    if TASKS[task].multi_label:
        return expit((logs - np.log(np.maximum(1 - probabilities, _SMALLEST))) / temperature)
    return softmax(logs / temperature, axis=1)


def _predictions(labels: np.ndarray, probabilities: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities that a reliability diagram shows, float64 (k,), and whether they came true, bool (k,)."""
    probabilities = np.asarray(probabilities, float)
    if TASKS[task].multi_label:
        return probabilities.ravel(), labels.ravel() == 1
    if TASKS[task].binary:
        return probabilities[:, -1], labels[:, 0] == 1
    return probabilities.max(1), probabilities.argmax(1) == labels[:, 0]
