"""Predictions for patients instead of images: the mean of the probabilities of a patient's images, `eval.unit`."""

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from jaxboost.data.dataset import Dataset, Split
from jaxboost.errors import UserError
from jaxboost.statistics.pooling import Pooled, pool

IMAGE, PATIENT = "image", "patient"

logger = logging.getLogger(__name__)


def counted(split: Split, probabilities: np.ndarray, task: str, *, unit: str) -> Pooled:
    """What metrics count of a split: its images, or its patients.

    Args:
      split: the samples.
      probabilities: (n, classes) of its samples.
      task: a key of `tasks.TASKS`.
      unit: IMAGE or PATIENT; a split without patients has one for each image.

    Raises:
      UserError: the images of a patient have different classes, see `statistics.pooling.pool`.
    """
    if unit == IMAGE or split.groups is None:
        return Pooled(split.labels, probabilities, np.arange(len(split)))
    try:
        return pool(split.labels, probabilities, split.groups, task)
    except UserError as error:
        raise UserError(f'config field eval.unit: {error}, or set it to "image"') from None


def check(dataset: Dataset, *, unit: str) -> None:
    """Checks before a run that its splits can be counted by patient, and warns if it has no patients.

    Raises:
      UserError: see `counted`.
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
      UserError: see `counted`.
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
