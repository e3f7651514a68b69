"""One prediction for each patient from those of its items."""

import dataclasses

import numpy as np

from jaxboost.errors import UserError
from jaxboost.statistics.bootstrap import group_numbers
from jaxboost.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Row i of every array belongs to patient i, in the order in which the patients first appear.

    Attributes:
      labels: (p, L), of the type of the items' labels.
      probabilities: float64 (p, classes).
      patients: (p,).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray


def pool(labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, task: str) -> Pooled:
    """Pools the items of each patient: the mean of their probabilities, and their common label.

    In a multi-label task, a patient has a label if any of its items has it.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      patients: the patient of each item, (n,).
      task: a key of `tasks.TASKS`.

    Raises:
      UserError: the items of a patient have different classes.
      ValueError: there are no items.
    """
    if not len(labels):
        raise ValueError("there are no items to pool: one or more are needed")
    numbers = group_numbers(patients, len(labels))
    _, first = np.unique(numbers, return_index=True)
    names = patients[first]
    sums = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(sums, numbers, probabilities)
    pooled = labels[first].copy()
    if TASKS[task].multi_label:
        np.maximum.at(pooled, numbers, labels)
    elif len(other := np.flatnonzero(labels[:, 0] != pooled[numbers, 0])):
        patient = names[numbers[other[0]]]
        here, there = pooled[numbers[other[0]], 0], labels[other[0], 0]
        raise UserError(
            f"patient {str(patient)!r} has items of the classes {here} and {there}, so it has no single label to pool:"
            " correct its labels, or score each item by itself"
        )
    return Pooled(labels=pooled, probabilities=sums / np.bincount(numbers)[:, np.newaxis], patients=names)
