"""Patients and clinical columns of a published or prepared set, from a table of the user's own (`data.groups`)."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from jaxboost.data.dataset import Dataset
from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import labels, patients, table_columns
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.walk import some
from jaxboost.errors import UserError
from jaxboost.io import user_path

logger = logging.getLogger(__name__)


def with_patients(dataset: Dataset, table: str, *, ignore_splits: bool, columns: Sequence[str] = ()) -> Dataset:
    """Returns the data set with the patients of a table as `groups`, and its clinical columns as `cells`.

    Args:
      dataset: without patients; a sample without a name is called `train/0`, `val/3`, ...: its split and its index.
      table: CSV file with the columns `file` and `patient_id`, read as labels.csv of a folder is; it names each sample
        once. With clinical columns it may have no `patient_id`: the patients are those that the data set knows.
      ignore_splits: whether a patient may be in two splits, because a cross-validation divides all samples anew.
      columns: the clinical columns, see `table_columns.parse`; further ones are ignored.

    Raises:
      UserError: the table cannot be read or has problems, the message has all of them; the data set has patients; or
        nothing names them, and a column of another name seems to.
    """
    name = dataset.info.name
    path, wanted = user_path(table), table_columns.parse(columns)
    with_ids = not wanted or labels.has_column(path, "patient")
    knows_patients = any(split.groups is not None for split in dataset.splits.values())
    if not with_ids and not knows_patients:
        # Patients that are overlooked would be in several folds.
        labels.check_not_meant(path, "patient", wanted)
    if with_ids and knows_patients:
        fix = f"leave that column out of {path}" if wanted else "leave it empty"
        raise UserError(f"config field data.groups: {name} has patient ids already: {fix}")
    problems = Problems(path.parent, path.name)
    required = ("file", "patient") if with_ids else ("file",)
    entries = labels.read_entries(path, problems, required=required, wanted=wanted)
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
        problems.add(f"no row for {some(missing)}: name {'the patient of ' * with_ids}every sample")
    table_columns.check(list(kept.values()), wanted, problems)
    if kept and with_ids:
        # A published set may have images of one patient with different labels.
        patients.add_problems(list(kept.values()), problems, patients.TABLE, allow_mixed=True)
    problems.raise_any()
    splits = {}
    for split, members in dataset.splits.items():
        rows = [kept[str(file)] for file in named[split]]
        if with_ids:
            members = dataclasses.replace(members, groups=np.array([row.patient for row in rows]))
        if wanted:
            members = dataclasses.replace(members, cells=np.array([row.cells for row in rows], str))
        splits[split] = members
    if with_ids:
        logger.info("%s: the patients are those of %s", name, path)
    elif not knows_patients:
        logger.warning("%s: %s has no column patient_id: each sample counts as a patient", name, path)
    return dataclasses.replace(dataset, splits=splits)
