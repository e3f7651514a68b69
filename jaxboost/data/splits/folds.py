"""Cross-validation: folds by patient, stratified by label, and stored in a file that is checked when it is read."""

import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxboost.data.dataset import ALL, Dataset, Split
from jaxboost.data.splits import patients, stratify, table
from jaxboost.errors import UserError

_COLUMN = "fold"

logger = logging.getLogger(__name__)


def fold_of(
    dataset: Dataset, *, count: int, fold: int, seed: int, val_share: float, file: pathlib.Path | None
) -> Dataset:
    """The splits "train", "val" and "test" of one fold of a cross-validation over all samples of a data set.

    All splits are pooled in their order. The fold is the test split. Validation is about `val_share` of the other
    folds. Both are by patient and stratified.

    Args:
      dataset: a data set with any splits.
      count: number of folds.
      fold: 0 <= fold < count.
      seed: seed of the random assignment of patients to folds, and to validation.
      val_share: 0 < val_share <= 0.5, or 0 for no validation split.
      file: the file of the folds. If it exists, it is read, whatever the seed; otherwise it is written. None: no file.

    Returns:
      The data set with the splits of the fold. Every sample has a name, `{split}/{index}` if the data set has none.

    Raises:
      UserError: a number is out of range, a class has too few patients, a split would lack a class, or the file
        belongs to another data set.
    """
    if not 0 <= fold < count:
        raise UserError(f"data.fold={fold}: use 0 to {count - 1}, for data.folds={count}")
    pooled = dataset.pooled()
    samples, info = pooled.splits[ALL], dataset.info
    if samples.groups is None:
        logger.warning("%s has no patient ids: images of one patient may be in several folds", info.name)
    if file is not None and os.path.exists(file):
        folds = read(file, samples, count=count)
    else:
        folds = assign(samples.labels, samples.groups, count=count, seed=seed, classes=info.classes)
        if file is not None:
            table.write(file, _COLUMN, samples, info, folds, fix="give another data.folds_file")
    rows = split(samples.labels, samples.groups, folds, fold, val_share=val_share, seed=seed, classes=info.classes)
    return pooled.divided(rows)


def assign(
    labels: np.ndarray, groups: np.ndarray | None, *, count: int, seed: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """Assigns every sample to a fold, int64 (n,) with values 0..count-1, by patient and stratified.

    For multi-label tasks the folds are stratified by combination of labels, see `stratify.strata`.

    Args:
      labels: (n, L).
      groups: patients (n,), or None: every sample is its own patient.
      count: number of folds, 2 or more.
      seed: 0 <= seed < 2^32.
      classes: names for messages.

    Raises:
      UserError: a number is out of range, or a class has fewer patients than there are folds.
    """
    if count < 2:
        raise UserError(f"data.folds={count}: use 2 or more")
    for name, members in stratify.members(labels, classes).items():
        number = members.sum() if groups is None else len(np.unique(groups[members]))
        if number < count:
            raise UserError(
                f"class {name!r} has {number} patients, fewer than the {count} folds: "
                f"use fewer (data.folds), or leave that class out"
            )
    folds = np.empty(len(labels), np.int64)
    for fold, rows in enumerate(stratify.partition(labels, groups, count, seed)):
        folds[rows] = fold
    return folds


def split(
    labels: np.ndarray,
    groups: np.ndarray | None,
    folds: np.ndarray,
    fold: int,
    *,
    val_share: float,
    seed: int,
    classes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The indices of the samples of "train", "val" and "test", ascending, where `fold` is the test split.

    The other folds are divided by patient into round(1 / val_share) stratified parts. Validation is the first part
    that has every class. With val_share = 0 there is no validation split.

    Raises:
      UserError: `val_share` is out of range, there are too few patients, or a split lacks a class.
    """
    if not 0 <= val_share <= 0.5:
        raise UserError(f"data.val_share={val_share}: use 0 to 0.5")
    test, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
    found = {"train": rest, "test": test}
    if val_share:
        count = round(1 / val_share)
        others = None if groups is None else groups[rest]
        number = len(rest) if others is None else len(np.unique(others))
        if number < count:
            raise UserError(
                f"fold {fold}: {number} patients are left for training and validation, "
                f"too few for data.val_share={val_share}"
            )
        parts = [rest[rows] for rows in stratify.partition(labels[rest], others, count, seed)]
        members = stratify.members(labels, classes).values()
        val = next((rows for rows in parts if all(has[rows].any() for has in members)), parts[0])
        found = {"train": np.setdiff1d(rest, val), "val": np.sort(val), "test": test}
    for name, label in stratify.missing_classes(labels, classes, found):
        raise UserError(
            f"fold {fold}: its {name} split has no {label!r}: use fewer folds (data.folds), another size of validation"
            " (data.val_share) or another seed (data.fold_seed)"
        )
    if groups is not None:
        patients.check({name: groups[rows] for name, rows in found.items()}, f"fold {fold}")
    return found


def read(path: pathlib.Path, samples: Split, *, count: int) -> np.ndarray:
    """Reads the fold of every sample, int64 (n,), from a file that `fold_of` wrote.

    Raises:
      UserError: as `table.read`; or one of the `count` folds is empty.
    """
    fix = "correct it, or delete it and run again"

    def parse(cell: str) -> int | None:
        fold = int(cell) if cell.isascii() and cell.isdigit() else -1
        return fold if 0 <= fold < count else None

    allowed = f"0 to {count - 1} (data.folds={count})"
    folds = table.read(path, _COLUMN, samples, parse=parse, allowed=allowed, fix=fix)
    if empty := sorted(set(range(count)) - set(folds)):
        raise UserError(f"{path}: fold {empty[0]} is empty (data.folds={count}): {fix}")
    return np.array(folds, np.int64)
