"""Folds for cross-validation: by patient, stratified by label, and kept in a file that can be read again."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.data.dataset import Dataset, Split, join_splits
from jaxboost.data.splits import stratify, table
from jaxboost.errors import UserError

_COLUMN = "fold"

logger = logging.getLogger(__name__)


def fold_of(
    dataset: Dataset, *, count: int, fold: int, seed: int, val_share: float, file: pathlib.Path | None
) -> Dataset:
    """The splits "train", "val" and "test" of one fold of `count`, made of all splits of a data set.

    The samples are pooled in the order of the splits (train, val, test, or all). The test split is the fold itself,
    validation about `val_share` of the others, both by patient and stratified.

    Args:
      dataset: with any splits.
      count: number of folds.
      fold: 0 <= fold < count.
      seed: of the assignment of patients to folds, and to validation.
      val_share: 0 < val_share <= 0.5, or 0 for no validation split.
      file: where the folds are kept: read where it exists, whatever the seed, and written where it does not; or None.

    Returns:
      The data set with `n_samples` and baselines of the new splits; every sample has a name, `{split}/{index}` where
      the data set has none.

    Raises:
      UserError: a number is out of range, a class has too few patients, a split would lack a class, or the file is
        not one of this data set.
    """
    if not 0 <= fold < count:
        raise UserError(f"data.fold={fold}: use 0 to {count - 1}, for data.folds={count}")
    pooled = join_splits([_named(split, name) for name, split in dataset.splits.items()])
    info = dataset.info
    if pooled.groups is None:
        logger.warning("%s has no patient ids: images of one patient may lie in several folds", info.name)
    # A sample without a patient is one of its own.
    patients = pooled.names if pooled.groups is None else pooled.groups
    if file is not None and file.exists():
        numbers = read(file, names=pooled.names, groups=patients, count=count)
    else:
        numbers = assign(pooled.labels, pooled.groups, count=count, seed=seed, classes=info.classes)
        if file is not None:
            write(file, names=pooled.names, groups=patients, labels=table.texts(pooled.labels, info), folds=numbers)
    parts = split(pooled.labels, pooled.groups, numbers, fold, val_share=val_share, seed=seed, classes=info.classes)
    values = {
        name: np.concatenate([of_split[key] for key in dataset.splits]) for name, of_split in dataset.baselines.items()
    }
    return Dataset(
        info=dataclasses.replace(info, n_samples={name: len(rows) for name, rows in parts.items()}),
        splits={name: pooled.take(rows) for name, rows in parts.items()},
        baselines={
            name: {key: pooled_values[rows] for key, rows in parts.items()} for name, pooled_values in values.items()
        },
    )


def assign(
    labels: np.ndarray, groups: np.ndarray | None, *, count: int, seed: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """The fold of every sample, int64 (n,) with values 0..count-1.

    Folds have about the same share of each class (of each set of labels, for a multi-label task; a set that is rarer
    than the folds counts as its most frequent label), and no patient is in two.

    Args:
      labels: (n, L).
      groups: patients (n,), or None: every sample is its own.
      count: number of folds, 2 or more.
      seed: 0 <= seed < 2^32.
      classes: names for messages.

    Raises:
      UserError: a number is out of range, or a class has fewer patients than there are folds.
    """
    if count < 2:
        raise UserError(f"data.folds={count}: use 2 or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"data.fold_seed={seed} is out of range: use 0 <= seed < 2**32")
    for name, members in stratify.members(labels, classes).items():
        patients = members.sum() if groups is None else len(np.unique(groups[members]))
        if patients < count:
            raise UserError(
                f"class {name!r} has {patients} patients, fewer than the {count} folds: "
                f"use fewer (data.folds), or leave that class out"
            )
    folds = np.empty(len(labels), np.int64)
    for number, rows in enumerate(stratify.parts(labels, groups, count, seed)):
        folds[rows] = number
    return folds


def split(
    labels: np.ndarray,
    groups: np.ndarray | None,
    fold_numbers: np.ndarray,
    fold: int,
    *,
    val_share: float,
    seed: int,
    classes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Indices of the samples of "train", "val" and "test", ascending, when `fold` is the test split.

    Validation is one of round(1 / val_share) stratified parts of the other folds' patients, the first that has every
    class; with a share of 0 there is none.

    Raises:
      UserError: `val_share` is out of range, there are too few patients, or a split lacks a class.
    """
    if not 0 <= val_share <= 0.5:
        raise UserError(f"data.val_share={val_share}: use 0 to 0.5")
    test, rest = np.flatnonzero(fold_numbers == fold), np.flatnonzero(fold_numbers != fold)
    members = stratify.members(labels, classes)
    found = {"train": rest, "test": test}
    if val_share:
        count = round(1 / val_share)
        others = None if groups is None else groups[rest]
        patients = len(rest) if others is None else len(np.unique(others))
        if patients < count:
            raise UserError(
                f"fold {fold}: {patients} patients are left for training and validation, "
                f"too few for data.val_share={val_share}"
            )
        parts = [rest[rows] for rows in stratify.parts(labels[rest], others, count, seed)]
        val = next((rows for rows in parts if all(has[rows].any() for has in members.values())), parts[0])
        found = {"train": np.setdiff1d(rest, val), "val": np.sort(val), "test": test}
    for name, rows in found.items():
        lacks = [label for label, has in members.items() if not has[rows].any()]
        if lacks:
            raise UserError(
                f"fold {fold}: its {name} split has no {lacks[0]!r}: use fewer folds (data.folds), another share for "
                "validation (data.val_share) or another seed (data.fold_seed)"
            )
    if groups is not None:
        check_disjoint({name: groups[rows] for name, rows in found.items()}, f"fold {fold}")
    return found


def check_official(splits: Mapping[str, Split], classes: Sequence[str], where: str) -> None:
    """Raises UserError where a patient is in two of a data set's own splits, or one of them lacks a class."""
    if all(split.groups is not None for split in splits.values()):
        check_disjoint({name: split.groups for name, split in splits.items()}, where)
    for name, split in splits.items():
        lacking = [label for label, has in stratify.members(split.labels, classes).items() if not has.any()]
        if lacking:
            raise UserError(f"{where}: its {name} split has no {lacking[0]!r}: divide it anew, or leave that class out")


def check_disjoint(groups: Mapping[str, np.ndarray], where: str) -> None:
    """Raises UserError where a patient is in two splits; `groups` has the patients of the samples of each split."""
    seen: dict[str, str] = {}
    for name, patients in groups.items():
        for patient in np.unique(patients).tolist():
            if patient in seen:
                raise UserError(
                    f"{where}: patient {patient!r} is both in the {seen[patient]} and in the {name} split: "
                    "give every patient to one side"
                )
            seen[patient] = name


def write(
    path: pathlib.Path, *, names: np.ndarray, groups: np.ndarray, labels: Sequence[str], folds: np.ndarray
) -> None:
    """Writes a table patient_id, file, label, fold with a row for each sample, under a temporary name first.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        table.write(path, _COLUMN, names=names, groups=groups, labels=labels, places=folds)
    except OSError as error:
        text = f"{path}: the folds cannot be written ({error.strerror}): give another data.folds_file"
        raise UserError(text) from error


def read(path: pathlib.Path, *, names: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """The fold of every sample, int64 (n,), from a table that `write` made; its labels are for people only.

    Raises:
      UserError: the table cannot be read, does not have exactly the samples `names` with their patients `groups`,
        has a fold that is not one of `count` or no sample of one, or a patient in two folds.
    """
    fix = "correct it, or delete it and run again"

    def parse(cell: str) -> int | None:
        fold = int(cell) if cell.isascii() and cell.isdigit() else -1
        return fold if 0 <= fold < count else None

    allowed = f"0 to {count - 1} (data.folds={count})"
    folds = table.read(path, _COLUMN, names=names, groups=groups, parse=parse, allowed=allowed, fix=fix)
    if empty := sorted(set(range(count)) - set(folds)):
        raise UserError(f"{path}: fold {empty[0]} is empty (data.folds={count}): {fix}")
    return np.array(folds, np.int64)


def _named(split: Split, name: str) -> Split:
    if split.names is not None:
        return split
    return dataclasses.replace(split, names=np.array([f"{name}/{index}" for index in range(len(split))]))
