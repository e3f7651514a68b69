"""Metrics of a split: MedMNIST's AUC and ACC, sensitivity and specificity."""

import functools
import importlib.machinery
import importlib.util
import sys
import warnings
from typing import Any

import numpy as np

from jaxboost.tasks import TASKS

SELECTION = ("auc", "acc", "avg")  # metrics that can pick the best epoch


@functools.cache
def _medmnist_evaluator() -> Any:
    """The module `medmnist.evaluator`.

    The package itself would import its data sets, and with them torch where it is installed (3 seconds, 0.3 GB). In its
    place stands an empty package with the same folder until the evaluator is imported.
    """
    # It takes a second to import: a mistake in a config is reported before.
    if "medmnist" in sys.modules:
        return importlib.import_module("medmnist.evaluator")
    sys.modules["medmnist"] = importlib.util.module_from_spec(_namespace("medmnist"))
    try:
        return importlib.import_module("medmnist.evaluator")
    finally:
        # Whoever imports medmnist later gets all of it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "medmnist"]:
            del sys.modules[name]


def _namespace(name: str) -> importlib.machinery.ModuleSpec:
    """Of a package whose modules can be imported while its own code does not run."""
    found = importlib.util.find_spec(name)
    if found is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = found.submodule_search_locations
    return spec


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
        result["balanced_acc"] = float(np.mean([result["specificity"], result["sensitivity"]]))
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


def is_better(value: float, best: float, *, ties: str) -> bool:
    """Whether an epoch replaces the best one so far.

    Args:
      value: the metric of the epoch. It is NaN if a class is absent; then the first epoch stays the best.
      best: the metric of the best epoch so far.
      ties: which of two epochs with the same metric is better: "earlier" or "later".
    """
    return value > best or (ties == "later" and value == best)
