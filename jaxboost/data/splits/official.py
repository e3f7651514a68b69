"""Checks the official splits of a data set."""

import numpy as np

from jaxboost.data.dataset import Dataset
from jaxboost.data.splits import patients, stratify
from jaxboost.errors import UserError


def check(dataset: Dataset, where: str) -> None:
    """Checks the official splits of a data set; `where` is its name in messages.

    Raises:
      UserError: a patient is in two splits, or a split lacks a class.
    """
    check_patients(dataset, where)
    for name, split in dataset.splits.items():
        for _, label in stratify.missing_classes(split.labels, dataset.info.classes, {name: np.arange(len(split))}):
            raise UserError(
                f"{where}: its {name} split has no {label!r}: divide the data set again, or leave that class out"
            )


def check_patients(dataset: Dataset, where: str = "") -> None:
    """Raises UserError if a patient is in two splits; `where` is the name of the data set in the message."""
    known = {name: split for name, split in dataset.splits.items() if split.groups is not None}
    patients.check(
        {name: split.groups for name, split in known.items()},
        where or dataset.info.name,
        names={name: split.named(name).names for name, split in known.items()},
        fix="give every patient to one split, or set data.folds for a cross-validation of all of them",
    )
