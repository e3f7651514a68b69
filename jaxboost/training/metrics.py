"""Scores of a split: MedMNIST's own AUC and ACC, bootstrap intervals, and what belongs beside them."""

import contextlib
import functools
import io
import warnings
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, recall_score

from jaxboost.data.source import MULTI_LABEL

BINARY = "binary-class"
SELECTION = ("auc", "acc", "avg")  # metrics that can pick the epoch


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
    """
    rows = np.arange(len(labels))

    def resample(row: np.ndarray) -> np.ndarray:
        return np.array([metric(labels[row], scores[row], task) for metric in (acc, auc)])

    with warnings.catch_warnings():
        # scipy warns where some resamples have no AUC; its own interval is not used.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        distribution = stats.bootstrap(
            (rows,), resample, n_resamples=resamples, vectorized=False, method="percentile", rng=seed
        ).bootstrap_distribution
    low, high = np.nanquantile(distribution, [0.025, 0.975], axis=-1)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("acc", "auc"))}


def _every_class_present(labels: np.ndarray, scores: np.ndarray, task: str) -> bool:
    if task == MULTI_LABEL:
        return all(len(np.unique(column)) == 2 for column in labels.T)
    return len(np.unique(labels)) == scores.shape[1]
