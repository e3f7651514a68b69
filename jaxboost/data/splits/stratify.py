"""What is to be spread evenly over folds and splits: classes, or sets of labels."""

import warnings
from collections.abc import Sequence

import numpy as np


def parts(labels: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[np.ndarray]:
    """`count` stratified parts of about the same size without common groups, as indices (m,).

    Args:
      labels: (n, L).
      groups: (n,), or None: every sample is its own.
    """
    # Only here: it takes seconds to import, and most uses of this package have official splits.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # StratifiedGroupKFold with a group for each sample would take a minute for the largest data sets.
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        # Which split lacks a class, if one does, is found by the caller.
        warnings.filterwarnings("ignore", message="The least populated class in y")
        found = kind(count, shuffle=True, random_state=seed).split(labels, strata(labels, count), groups)
        return [rows for _, rows in found]


def strata(labels: np.ndarray, count: int) -> np.ndarray:
    """A number for what is to be spread evenly over `count` parts: the class, or the set of labels, int64 (n,).

    A set that is rarer than the parts counts as its most frequent label.
    """
    if labels.shape[1] == 1:
        numbers = labels[:, 0]
    else:
        sets, numbers, sizes = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        numbers = numbers.reshape(-1)
        frequent = np.where(sets.any(1), (sets * labels.sum(0)).argmax(1), -1)
        numbers = np.where(sizes[numbers] < count, len(sets) + 1 + frequent[numbers], numbers)
    # Where all are rarer than the parts, nothing can be spread.
    return numbers if np.unique(numbers, return_counts=True)[1].max() >= count else np.zeros_like(numbers)


def members(labels: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """For each class which samples have it, bool (n,); a class without a name is called by its number."""
    multi_label = labels.shape[1] > 1 or len(classes) == 1
    number = len(classes) or (labels.shape[1] if multi_label else int(labels.max()) + 1)
    if multi_label:
        columns = [labels[:, index] > 0 for index in range(number)]
    else:
        columns = [labels[:, 0] == index for index in range(number)]
    return dict(zip(classes or map(str, range(number)), columns, strict=True))
