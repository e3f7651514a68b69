"""Classes of unequal size: weights for the loss, and a threshold where the better of two errors is known."""

import numpy as np

from jaxboost.data.dataset import MULTI_LABEL, Dataset, DatasetInfo
from jaxboost.errors import UserError

BALANCED = "balanced"


def class_weights(spec: str, labels: np.ndarray, info: DatasetInfo) -> tuple[float, ...]:
    """Weights of the classes in the loss, for `step.Objective`.

    Args:
      spec: the config's train.class_weights: "" for none, "balanced", or a number for each class, "1,2.5".
      labels: of the training split, (n, L).

    Returns:
      (): none. "balanced": n / (classes n_c) for class c, so that all have the same share of the loss and the mean over
      the examples is 1; for several labels the odds against each, so that its presence counts as much as its absence.

    Raises:
      UserError: something else, or a class that "balanced" cannot weigh, for no example has it.
    """
    classes = len(info.classes)
    if not spec:
        return ()
    if spec != BALANCED:
        return _numbers(spec, classes)
    multi_label = info.task == MULTI_LABEL
    counts = labels.sum(0) if multi_label else np.bincount(labels[:, 0], minlength=classes)
    n = len(labels)
    if not counts.all() or (multi_label and (counts == n).any()):
        which = info.classes[int(np.argmin(counts) if not counts.all() else np.argmax(counts))]
        raise UserError(
            f"config field train.class_weights: {'every' if counts.all() else 'no'} training example is {which!r},"
            f" which cannot be balanced: give {classes} numbers"
        )
    return tuple(((n - counts) / counts if multi_label else n / (classes * counts)).tolist())


def _numbers(spec: str, classes: int) -> tuple[float, ...]:
    try:
        weights = tuple(float(text) for text in spec.split(","))
    except ValueError:
        weights = ()
    if len(weights) != classes or not all(0 <= weight < np.inf for weight in weights) or not any(weights):
        raise UserError(
            f'config field train.class_weights: {spec!r} should be empty, "balanced", or {classes} numbers from 0 with'
            " commas between them, not all of them 0"
        )
    return weights


def check_both_classes(dataset: Dataset, split: str) -> None:
    """Raises UserError where a threshold cannot be chosen on a split, for it lacks one of the two classes."""
    found = np.unique(dataset.splits[split].labels)
    if len(found) < 2:
        only = dataset.info.classes[found[0]]
        raise UserError(
            f"config field eval.specificity: every example of the {split} split is {only!r}, no threshold can be chosen"
            " on it: set it to 0"
        )


def choose_threshold(labels: np.ndarray, scores: np.ndarray, specificity: float) -> float:
    """The threshold of the best sensitivity among those with at least this specificity: positive is a score from it.

    Args:
      labels: 0 or 1, (n,), both of them there.
      scores: probability of class 1, (n,).

    Returns:
      Infinity where no positive answer is specific enough.
    """
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    # Counts, for 1 - specificity is not exact.
    allowed = np.floor((1 - specificity) * np.sum(labels == 0) + 1e-9)
    specific = np.flatnonzero(np.rint(false_positive * np.sum(labels == 0)) <= allowed)
    best = specific[np.argmax(true_positive[specific])]
    return float(thresholds[best])


def score_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Sensitivity, specificity and ACC of binary answers, positive from `threshold` on; None without such examples."""
    truth, answers = labels == 1, scores >= threshold

    def share(correct: np.ndarray) -> float | None:
        return float(correct.mean()) if correct.size else None

    return {
        "sensitivity": share(answers[truth]),
        "specificity": share(~answers[~truth]),
        "acc": share(answers == truth),
    }
