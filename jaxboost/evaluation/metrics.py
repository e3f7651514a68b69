"""Metrics of a split: MedMNIST's AUC and ACC with bootstrap intervals, sensitivity and specificity."""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxboost.tasks import TASKS

# scipy.stats and scikit-learn take seconds to import. They are imported inside functions, so that a mistake in a config
# is reported at once.

SELECTION = ("auc", "acc", "avg")  # metrics that can pick the best epoch

# Resamples are drawn in blocks: about 10 arrays of this many int64 numbers are in memory at a time.
_BLOCK = 1 << 19


@functools.cache
def _medmnist_evaluator() -> Any:
    # medmnist prints a line if torch is not installed, although only its data sets need torch.
    with contextlib.redirect_stdout(io.StringIO()):
        from medmnist import evaluator
    return evaluator


def auc(labels: np.ndarray, scores: np.ndarray, task: str) -> float:
    """MedMNIST's `getAUC`: labels (n, L), scores (n, classes); NaN if a class is absent."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one class is present")
        try:
            return float(_medmnist_evaluator().getAUC(labels, scores, task))
        except ValueError:
            if TASKS[task].has_every_class(labels, scores.shape[1]):
                raise
            return float("nan")


def acc(labels: np.ndarray, scores: np.ndarray, task: str) -> float:
    """MedMNIST's `getACC`: labels (n, L), scores (n, classes), threshold .5 for binary and multi-label tasks."""
    return float(_medmnist_evaluator().getACC(labels, scores, task))


def score(labels: np.ndarray, scores: np.ndarray, task: str) -> dict[str, float]:
    """Computes the metrics of a split: "acc", "auc" and "majority_acc", the ACC of predicting the majority class.

    A binary task also has "sensitivity" and "specificity" at threshold .5 (see `sensitivity_and_specificity`), their
    mean "balanced_acc", and "avg", the mean of sensitivity, specificity, ACC and AUC (PneumoLLM, Table 2).

    Args:
      labels: (n, L).
      scores: probabilities (n, classes).
      task: a key of `tasks.TASKS`.

    Returns:
      Name -> value; NaN if the metric is undefined.
    """
    result = {
        "acc": acc(labels, scores, task),
        "auc": auc(labels, scores, task),
        "majority_acc": majority_accuracy(labels),
    }
    if TASKS[task].binary:
        result |= sensitivity_and_specificity(labels[:, 0], TASKS[task].decide(scores)[:, 0])
        # The mean over the classes that the split has.
        result["balanced_acc"] = float(np.nanmean([result["specificity"], result["sensitivity"]]))
        result["avg"] = float(np.mean([result[name] for name in ("sensitivity", "specificity", "acc", "auc")]))
    return result


def sensitivity_and_specificity(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Recall of class 1 ("sensitivity") and of class 0 ("specificity"); NaN if no example has the class.

    Args:
      truth: 0 or 1, (n,).
      predicted: 0 or 1, (n,).
    """

    def recall(number: int) -> float:
        of_class = predicted[truth == number]
        return float((of_class == number).mean()) if of_class.size else float("nan")

    return {"sensitivity": recall(1), "specificity": recall(0)}


def majority_accuracy(labels: np.ndarray) -> float:
    """ACC of the best constant prediction; in a multi-label task the mean over the labels."""
    return float(np.mean([np.bincount(column).max() / len(column) for column in labels.T]))


def intervals(
    labels: np.ndarray, scores: np.ndarray, task: str, *, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals of ACC and AUC over the examples of a split.

    ACC and AUC of a resample are MedMNIST's. They are computed from how often each example was drawn, so the scores are
    sorted only once and not per resample. A resample in which a class is absent has no AUC and is left out.

    Args:
      labels: (n, L).
      scores: probabilities (n, classes).
      task: a key of `tasks.TASKS`.
      resamples: number of bootstrap resamples.
      seed: random seed.

    Returns:
      "acc" and "auc": (low, high).

    Raises:
      ValueError: a score is not finite.
    """
    from scipy import stats
    from sklearn.utils import assert_all_finite

    assert_all_finite(scores)
    examples = len(labels)
    # The fraction of correct labels of each example: its contribution to the ACC.
    right = (TASKS[task].decide(scores) == labels).mean(1)
    problems = [_drawn_auc(*problem) for problem in TASKS[task].one_against_rest(labels, scores)]

    def resampled(rows: np.ndarray, axis: int) -> np.ndarray:
        """Drawn examples (b, n) -> ACC and AUC (2, b)."""
        drawn = np.stack([np.bincount(row, minlength=examples) for row in rows])
        return np.stack([drawn @ right / examples, np.mean([auc_of(drawn) for auc_of in problems], axis=0)])

    with warnings.catch_warnings():
        # scipy warns if some resamples have no AUC. Its interval is not used.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        distribution = stats.bootstrap(
            (np.arange(examples),),
            resampled,
            n_resamples=resamples,
            batch=max(1, _BLOCK // examples),
            vectorized=True,
            method="percentile",
            rng=seed,
        ).bootstrap_distribution
    low, high = np.nanquantile(distribution, [0.025, 0.975], axis=-1)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("acc", "auc"))}


def _drawn_auc(positive: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the AUC as a function of how often each example is drawn, int64 (b, n) -> (b,); NaN without both classes.

    The AUC is the fraction of pairs of a positive and a negative example in which the positive has the higher score;
    ties count half (Mann and Whitney). Pairs are counted in integers, so the result is exact up to the last division.
    """
    order = np.argsort(score)
    positive, ascending = positive[order], score[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))

    def auc_of(drawn: np.ndarray) -> np.ndarray:
        drawn = drawn[:, order]
        # One column per distinct score.
        positives = np.add.reduceat(drawn * positive, starts, axis=1)
        negatives = np.add.reduceat(drawn, starts, axis=1) - positives
        twice_ordered = (positives * (2 * negatives.cumsum(1) - negatives)).sum(1)
        pairs = positives.sum(1) * negatives.sum(1)
        return np.divide(twice_ordered, 2 * pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)

    return auc_of


def is_better(value: float, best: float, *, ties: str) -> bool:
    """Whether an epoch replaces the best one so far.

    Args:
      value: the metric of the epoch. It is NaN if a class is absent; then the first epoch stays the best.
      best: the metric of the best epoch so far.
      ties: which of two epochs with the same metric is better: "earlier" or "later".
    """
    return value > best or (ties == "later" and value == best)
