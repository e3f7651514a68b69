"""The patients of a published or prepared data set, from a table of the user's own (`data.groups`)."""

import dataclasses
import logging

import numpy as np

from jaxboost.data.dataset import Dataset
from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import labels, patients
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.walk import some
from jaxboost.errors import UserError
from jaxboost.io import user_path

logger = logging.getLogger(__name__)


def with_patients(dataset: Dataset, table: str, *, ignore_splits: bool) -> Dataset:
    """Returns the data set with the patients of a table as `groups`.

    Args:
      dataset: without patients; a sample without a name is called `train/0`, `val/3`, ...: its split and its index.
      table: CSV file with the columns `file` and `patient_id`, read as labels.csv of a folder is; it names each sample
        once. Further columns are ignored.
      ignore_splits: whether a patient may be in two splits, because a cross-validation divides all samples anew.

    Raises:
      UserError: the table cannot be read or has problems, the message has all of them; or the data set has patients.
    """
    name = dataset.info.name
    if any(split.groups is not None for split in dataset.splits.values()):
        raise UserError(f"config field data.groups: {name} has patient ids already: leave it empty")
    path = user_path(table)
    problems = Problems(path.parent, path.name)
    entries = labels.read_entries(path, problems, required=("file", "patient"))
    named = {split: members.named(split).names for split, members in dataset.splits.items()}
    split_of = {str(file): split for split, names in named.items() for file in names}
    kept: dict[str, Entry] = {}
    for entry in entries:
        if entry.file not in split_of:
            entry.report(problems, f"{name} has no sample of this name")
        elif entry.file in kept:
            entry.report(problems, f"is listed twice, first{kept[entry.file].in_row}")
        else:
            split = "" if ignore_splits else split_of[entry.file]
            kept[entry.file] = dataclasses.replace(entry, label="", labels=(), split=split)
    if missing := [file for file in split_of if file not in kept]:
        problems.add(f"no row for {some(missing)}: name the patient of every sample")
    if kept:
        # A published set may have images of one patient with different labels.
        patients.add_problems(list(kept.values()), problems, patients.TABLE, allow_mixed=True)
    problems.raise_any()
    logger.info("%s: the patients are those of %s", name, path)
    splits = {
        split: dataclasses.replace(members, groups=np.array([kept[str(file)].patient for file in named[split]]))
        for split, members in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)
