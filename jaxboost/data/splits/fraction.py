"""A part of the training split, for learning curves: by patient, stratified, and nested."""

import dataclasses
import math

import numpy as np

from jaxboost.data.dataset import Dataset
from jaxboost.data.splits import stratify

# Combinations of labels with fewer samples count as their most frequent label, see `stratify.strata`. The number does
# not depend on the fraction, else a smaller part would not lie inside a larger one.
_SMALLEST = 10


def take(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Keeps a fraction of the patients of the training split; the other splits stay whole.

    Of each stratum the first patients of a random order are kept, so the part for 10 % lies inside that for 30 %.

    Args:
      dataset: with the split "train".
      fraction: above 0, up to 1. Of each stratum at least one patient is kept.
      seed: seed of the random order.
    """
    if fraction == 1:
        return dataset
    train = dataset.splits["train"]
    rows = np.flatnonzero(kept(train.labels, train.groups, fraction, seed))
    splits = {**dataset.splits, "train": train.take(rows)}
    baselines = {
        score: {split: values[rows] if split == "train" else values for split, values in of_splits.items()}
        for score, of_splits in dataset.baselines.items()
    }
    info = dataclasses.replace(dataset.info, n_samples={name: len(split) for name, split in splits.items()})
    return Dataset(info=info, splits=splits, baselines=baselines)


def kept(labels: np.ndarray, groups: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """Which samples are kept, bool (n,).

    Args:
      labels: (n, L).
      groups: patients (n,), or None: every sample is its own patient.
      fraction, seed: see `take`.
    """
    owner = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    # The stratum of a patient is that of the first sample.
    first = np.unique(owner, return_index=True)[1]
    strata = stratify.strata(labels, _SMALLEST)[first]
    order = np.random.default_rng(seed).permutation(len(first))
    chosen = np.zeros(len(first), bool)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        # Rounded first: 0.1 * 30 is a little more than 3.
        chosen[members[: math.ceil(round(fraction * len(members), 9))]] = True
    return chosen[owner]
