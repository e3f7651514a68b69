"""Scores of a split: MedMNIST's own AUC and ACC, bootstrap intervals, and what belongs beside them."""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxboost.data.dataset import MULTI_LABEL

# scipy.stats and scikit-learn are imported where they are used, here and elsewhere: that takes seconds, and a mistake
# in a config should be told without them.

BINARY = "binary-class"
SELECTION = ("auc", "acc", "avg")  # metrics that can pick the epoch

# Resamples are made by the block: about 10 arrays of so many int64 are in memory at a time.
_BLOCK = 1 << 19


@functools.cache
def _medmnist_evaluator() -> Any:
    # medmnist prints a line where torch, which only its data sets need, is not installed.
    with contextlib.redirect_stdout(io.StringIO()):
        from medmnist import evaluator
    return evaluator


def auc(labels: np.ndarray, scores: np.ndarray, task: str) -> float:
    """MedMNIST's `getAUC`: labels (n, L), scores (n, classes); NaN where a class is absent."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one class is present")
        try:
            return float(_medmnist_evaluator().getAUC(labels, scores, task))
        except ValueError:
            if _every_class_present(labels, scores, task):
                raise
            return float("nan")


def acc(labels: np.ndarray, scores: np.ndarray, task: str) -> float:
    """MedMNIST's `getACC`: labels (n, L), scores (n, classes), threshold .5 for binary and multi-label tasks."""
    return float(_medmnist_evaluator().getACC(labels, scores, task))


def score(labels: np.ndarray, scores: np.ndarray, task: str) -> dict[str, float]:
    """ACC and AUC, the accuracy of always answering the majority class, and for binary tasks four more.

    Sensitivity is the recall of class 1, specificity that of class 0, at threshold .5. "avg" is the mean of
    sensitivity, specificity, ACC and AUC (PneumoLLM, Table 2).
    """
    result = {
        "acc": acc(labels, scores, task),
        "auc": auc(labels, scores, task),
        "majority_acc": majority_accuracy(labels),
    }
    if task == BINARY:
        from sklearn.metrics import balanced_accuracy_score, recall_score

        truth, predicted = labels[:, 0], scores[:, -1] > 0.5
        result["sensitivity"] = float(recall_score(truth, predicted, pos_label=1, zero_division=np.nan))
        result["specificity"] = float(recall_score(truth, predicted, pos_label=0, zero_division=np.nan))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
            result["balanced_acc"] = float(balanced_accuracy_score(truth, predicted))
        result["avg"] = float(np.mean([result[name] for name in ("sensitivity", "specificity", "acc", "auc")]))
    return result


def majority_accuracy(labels: np.ndarray) -> float:
    """Accuracy of the best constant answer; for several labels, the mean over them."""
    return float(np.mean([np.bincount(column).max() / len(column) for column in labels.T]))


def intervals(
    labels: np.ndarray, scores: np.ndarray, task: str, *, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals of ACC and AUC over the examples of a split.

    Resamples that miss a class have no AUC and are left out of its interval.

    Both are MedMNIST's, of whole resamples: ACC and AUC follow from how often each example was drawn, so the scores are
    sorted once, not for every resample.
    """
    from scipy import stats
    from sklearn.utils import assert_all_finite

    assert_all_finite(scores)
    examples = len(labels)
    right = _right(labels, scores, task)
    problems = [_drawn_auc(positive, score) for positive, score in _binary_problems(labels, scores, task)]

    def resampled(rows: np.ndarray, axis: int) -> np.ndarray:
        """Drawn examples (b, n) -> ACC and AUC (2, b)."""
        drawn = np.stack([np.bincount(row, minlength=examples) for row in rows])
        return np.stack([drawn @ right / examples, np.mean([auc_of(drawn) for auc_of in problems], axis=0)])

    with warnings.catch_warnings():
        # scipy warns where some resamples have no AUC; its own interval is not used.
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


def _right(labels: np.ndarray, scores: np.ndarray, task: str) -> np.ndarray:
    """The share of its labels in which each example is right, (n,): its part in MedMNIST's ACC."""
    if task == MULTI_LABEL:
        return ((scores > 0.5) == labels).mean(1)
    predicted = scores[:, -1] > 0.5 if task == BINARY else scores.argmax(1)
    return (predicted == labels[:, 0]).astype(float)


def _binary_problems(labels: np.ndarray, scores: np.ndarray, task: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positive or not, bool (n,), and score (n,), of each of the problems over which MedMNIST averages the AUC."""
    if task == BINARY:
        yield labels[:, 0] == 1, scores[:, -1]
        return
    for number in range(scores.shape[1]):
        yield labels[:, number] == 1 if task == MULTI_LABEL else labels[:, 0] == number, scores[:, number]


def _drawn_auc(positive: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The AUC as a function of how often each example is drawn, int64 (b, n) -> (b,); NaN where a side is not drawn.

    That is the share of the pairs of a positive and a negative in which the positive has the higher score, equal ones
    counted half (Mann and Whitney). Pairs are counted in integers: exact up to the last division.
    """
    order = np.argsort(score)
    positive, ascending = positive[order], score[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))

    def auc_of(drawn: np.ndarray) -> np.ndarray:
        drawn = drawn[:, order]
        # By distinct score.
        positives = np.add.reduceat(drawn * positive, starts, axis=1)
        negatives = np.add.reduceat(drawn, starts, axis=1) - positives
        twice_ordered = (positives * (2 * negatives.cumsum(1) - negatives)).sum(1)
        pairs = positives.sum(1) * negatives.sum(1)
        return np.divide(twice_ordered, 2 * pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)

    return auc_of


def _every_class_present(labels: np.ndarray, scores: np.ndarray, task: str) -> bool:
    if task == MULTI_LABEL:
        return all(len(np.unique(column)) == 2 for column in labels.T)
    return len(np.unique(labels)) == scores.shape[1]


def is_better(value: float, best: float, *, ties: str) -> bool:
    """Whether an epoch of this metric takes the place of the best so far.

    A split that lacks a class has no AUC (NaN): then the first epoch stays.
    """
    return value > best or (ties == "later" and value == best)
