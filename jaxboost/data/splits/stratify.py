"""Stratification: which samples count as one stratum, and stratified partitions by patient."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np


def partition(labels: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[np.ndarray]:
    """Divides the samples into `count` stratified parts of about the same size; no patient is in two of them.

    Args:
      labels: (n, L).
      groups: patients (n,), or None: every sample is its own patient.
      count: number of parts.
      seed: seed of the shuffling.

    Returns:
      Indices of the samples of each part.
    """
    # Imported here because it takes seconds, and most uses of this package have official splits.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # StratifiedGroupKFold with a group for each sample would take a minute for the largest data sets.
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        # The caller reports a part that lacks a class.
        warnings.filterwarnings("ignore", message="The least populated class in y")
        found = kind(count, shuffle=True, random_state=seed).split(labels, strata(labels, count), groups)
        return [rows for _, rows in found]


def strata(labels: np.ndarray, count: int) -> np.ndarray:
    """The stratum of each sample, int64 (n,): the class, or for several labels (n, L) the combination of labels.

    A combination with fewer samples than `count`, the number of parts, counts as its most frequent label.
    """
    if labels.shape[1] == 1:
        numbers = labels[:, 0]
    else:
        sets, numbers, sizes = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        numbers = numbers.reshape(-1)
        frequent = np.where(sets.any(1), (sets * labels.sum(0)).argmax(1), -1)
        numbers = np.where(sizes[numbers] < count, len(sets) + 1 + frequent[numbers], numbers)
    # If every stratum is smaller than `count`, stratification is impossible.
    return numbers if np.unique(numbers, return_counts=True)[1].max() >= count else np.zeros_like(numbers)


def members(labels: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Class name -> which samples have the class, bool (n,); a class without a name is called by its number."""
    multi_label = labels.shape[1] > 1 or len(classes) == 1
    number = len(classes) or (labels.shape[1] if multi_label else int(labels.max()) + 1)
    if multi_label:
        columns = [labels[:, index] > 0 for index in range(number)]
    else:
        columns = [labels[:, 0] == index for index in range(number)]
    return dict(zip(classes or map(str, range(number)), columns, strict=True))


def missing_classes(
    labels: np.ndarray, classes: Sequence[str], splits: Mapping[str, np.ndarray]
) -> list[tuple[str, str]]:
    """The pairs (split, class) of splits without a sample of the class; `splits` has the indices of their samples."""
    by_class = members(labels, classes)
    return [(split, name) for split, rows in splits.items() for name, has in by_class.items() if not has[rows].any()]
