"""Predictions for patients instead of images: the mean of the probabilities of a patient's images, `eval.unit`."""

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from jaxboost.data.dataset import Dataset, Split
from jaxboost.errors import UserError
from jaxboost.tasks import TASKS

IMAGE, PATIENT = "image", "patient"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Row i of every array belongs to patient i, in the order in which the patients first appear.

    Attributes:
      labels: (p, L).
      probabilities: float64 (p, classes).
      patients: (p,).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray


def pool(labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, task: str) -> Pooled:
    """Pools the images of each patient: the mean of their probabilities, and their common label.

    In a multi-label task, a patient has a label if any of its images has it.

    Args:
      labels: (n, L).
      probabilities: (n, classes).
      patients: the patient of each image, (n,).
      task: a key of `tasks.TASKS`.

    Raises:
      UserError: the images of a patient have different classes.
    """
    names, first, numbers = np.unique(patients, return_index=True, return_inverse=True)
    order = np.argsort(first)
    # The number of each image's patient, where patients are numbered by their first image.
    numbers = np.argsort(order)[numbers.reshape(-1)]
    names, first = names[order], first[order]
    sums = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(sums, numbers, probabilities)
    pooled = labels[first].copy()
    if TASKS[task].multi_label:
        np.maximum.at(pooled, numbers, labels)
    elif len(other := np.flatnonzero(labels[:, 0] != pooled[numbers, 0])):
        patient, count = names[numbers[other[0]]], len(set(numbers[other].tolist()))
        more = f" (and {count - 1} more patients)" if count > 1 else ""
        raise UserError(
            f"config field eval.unit: patient {str(patient)!r} has images of several classes{more}, so there is no one"
            ' label to predict: correct the labels, or set it to "image"'
        )
    return Pooled(pooled, sums / np.bincount(numbers)[:, np.newaxis], names)


def counted(split: Split, probabilities: np.ndarray, task: str, *, unit: str) -> Pooled:
    """What metrics count of a split: its images, or its patients.

    Args:
      split: the samples.
      probabilities: (n, classes) of its samples.
      task: a key of `tasks.TASKS`.
      unit: IMAGE or PATIENT; a split without patients has one for each image.

    Raises:
      UserError: see `pool`.
    """
    if unit == IMAGE or split.groups is None:
        return Pooled(split.labels, probabilities, np.arange(len(split)))
    return pool(split.labels, probabilities, split.groups, task)


def check(dataset: Dataset, *, unit: str) -> None:
    """Checks before a run that its splits can be counted by patient, and warns if it has no patients.

    Raises:
      UserError: see `pool`.
    """
    if unit == IMAGE:
        return
    for split in dataset.splits.values():
        counted(split, np.zeros((len(split), 1)), dataset.info.task, unit=unit)
    if any(split.groups is None for split in dataset.splits.values()):
        logger.warning(
            "eval.unit=patient: %s has no patient ids, so every image counts as a patient: give them in data.groups, or"
            " for a folder in labels.csv",
            dataset.info.name,
        )


def pooled(
    dataset: Dataset, scores: Mapping[str, np.ndarray], *, unit: str
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """Returns a data set and scores whose samples are what metrics count; with IMAGE these are the arguments.

    Args:
      dataset: with the splits of `scores`; its other splits are left out.
      scores: split -> probabilities (n, classes).
      unit: IMAGE or PATIENT.

    Raises:
      UserError: see `pool`.
    """
    if unit == IMAGE:
        return dataset, scores
    splits, means, baselines = {}, {}, {name: dict(values) for name, values in dataset.baselines.items()}
    for name, probabilities in scores.items():
        split, task = dataset.splits[name], dataset.info.task
        found = counted(split, probabilities, task, unit=unit)
        # The images are not needed, and a patient has several.
        images = np.zeros((len(found.labels), 0), np.uint8)
        groups = None if split.groups is None else found.patients
        splits[name], means[name] = Split(images=images, labels=found.labels, groups=groups), found.probabilities
        for values in baselines.values():
            values[name] = counted(split, values[name][:, np.newaxis], task, unit=unit).probabilities[:, 0]
    return dataclasses.replace(dataset, splits=splits, baselines=baselines), means
