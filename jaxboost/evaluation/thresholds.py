"""The operating point of a binary classifier: the threshold of best sensitivity with at least a given specificity."""

import numpy as np

from jaxboost.data.dataset import Dataset
from jaxboost.errors import UserError
from jaxboost.evaluation.metrics import sensitivity_and_specificity
from jaxboost.tasks import TASKS


def check_both_classes(dataset: Dataset, split: str) -> None:
    """Raises UserError if a split has only one of the two classes, so that no threshold can be chosen on it."""
    info, labels = dataset.info, dataset.splits[split].labels
    if not TASKS[info.task].has_every_class(labels, len(info.classes)):
        only = info.classes[labels[0, 0]]
        raise UserError(
            f"config field eval.specificity: every example of the {split} split is {only!r}, so no threshold can be"
            " chosen on it: set it to 0"
        )


def choose_threshold(labels: np.ndarray, scores: np.ndarray, specificity: float) -> float:
    """Returns the threshold with the best sensitivity among those with at least this specificity.

    A score at or above the threshold is a positive prediction.

    Args:
      labels: 0 or 1, (n,); both classes are present.
      scores: probability of class 1, (n,).
      specificity: the smallest specificity that is accepted, 0 to 1.

    Returns:
      The threshold; infinity if only "always negative" is specific enough.
    """
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    # Counted in examples, because 1 - specificity is not exact.
    allowed = np.floor((1 - specificity) * np.sum(labels == 0) + 1e-9)
    specific = np.flatnonzero(np.rint(false_positive * np.sum(labels == 0)) <= allowed)
    best = specific[np.argmax(true_positive[specific])]
    return float(thresholds[best])


def score_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Sensitivity, specificity and ACC at a threshold; NaN if no example has the class.

    Args:
      labels: 0 or 1, (n,).
      scores: probability of class 1, (n,).
      threshold: scores at or above it are positive predictions.
    """
    predicted = (scores >= threshold).astype(np.int64)
    return {**sensitivity_and_specificity(labels, predicted), "acc": float((predicted == labels).mean())}
