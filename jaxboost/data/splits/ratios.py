"""Splits for data that lack some: by patient, stratified by label, and kept in a file that can be read again."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxboost.data.dataset import SPLITS, Dataset, join_splits
from jaxboost.data.splits import stratify, table
from jaxboost.errors import UserError

_COLUMN = "split"


def divide(
    dataset: Dataset, *, shares: Sequence[float], seed: int, file: pathlib.Path | None, without_val: bool = False
) -> Dataset:
    """The splits "train", "val" and "test" of a data set that has the one split "all", or only "train" and "test".

    The latter's test split stays as it is, and val is a part of train, in the proportion of their shares.

    Args:
      dataset: with names for its samples.
      shares: of the samples, for train, val and test.
      seed: of the assignment of patients to splits.
      file: a table that `write` made: read in the place of an assignment, whatever the seed; None: there is none.
      without_val: val may have a share of 0; then there is no such split.

    Raises:
      UserError: a share or the seed is out of range, a class has too few patients or is missing from a split, or the
        file is not one of this data set, or moves samples out of or into its own test split.
    """
    wanted = check_shares(shares, without_val=without_val)
    if not 0 <= seed < 2**32:
        raise UserError(f"data.fold_seed={seed} is out of range: use 0 <= seed < 2**32")
    pooled = join_splits(list(dataset.splits.values()))
    classes = dataset.info.classes
    # Which are in a test split of the data set's own.
    tested = np.repeat([name == "test" for name in dataset.splits], [len(split) for split in dataset.splits.values()])
    if file is None:
        given = {name: share for name, share in wanted.items() if name != "test" or not tested.any()}
        free = np.flatnonzero(~tested)
        places = np.full(len(tested), "test", object)
        places[free] = assign(
            pooled.labels[free],
            None if pooled.groups is None else pooled.groups[free],
            shares={name: share / sum(given.values()) for name, share in given.items()},
            seed=seed,
            classes=classes,
        )
        fix = "use other shares (data.shares) or another seed (data.fold_seed), or leave that class out"
    else:
        fix = (
            "undo what changed in the data or in this file (where it was damaged, remove it: the same data and seed"
            " give the same splits), or give another --workdir"
        )
        patients = pooled.names if pooled.groups is None else pooled.groups
        places = np.array(
            table.read(
                file,
                _COLUMN,
                names=pooled.names,
                groups=patients,
                parse=lambda cell: cell if cell in wanted else None,
                allowed=", ".join(wanted),
                fix=fix,
            )
        )
        if tested.any() and (moved := np.flatnonzero(tested != (places == "test"))).size:
            name = str(pooled.names[moved[0]])
            raise UserError(f"{file}: {name!r} is moved out of or into the data set's own test split: {fix}")
    lacking = [
        f"{split!r} has no {name!r}"
        for split in wanted
        for name, has in stratify.members(pooled.labels, classes).items()
        if not has[places == split].any()
    ]
    if lacking:
        where = f"{file}: " if file else ""
        raise UserError(f"{where}a class is missing from a split: {', '.join(lacking)}: {fix}")
    rows = {split: np.flatnonzero(places == split) for split in wanted}
    return Dataset(
        info=dataclasses.replace(dataset.info, n_samples={split: len(found) for split, found in rows.items()}),
        splits={split: pooled.take(found) for split, found in rows.items()},
        baselines={},
    )


def write(path: pathlib.Path, dataset: Dataset) -> None:
    """Writes a table patient_id, file, label, split with a row for each sample of a data set that `divide` made.

    Raises:
      UserError: the file cannot be written.
    """
    pooled = join_splits(list(dataset.splits.values()))
    try:
        table.write(
            path,
            _COLUMN,
            names=pooled.names,
            groups=pooled.names if pooled.groups is None else pooled.groups,
            labels=table.texts(pooled.labels, dataset.info),
            places=np.repeat(list(dataset.splits), [len(split) for split in dataset.splits.values()]),
        )
    except OSError as error:
        raise UserError(f"{path}: the splits cannot be written ({error.strerror}): give another --workdir") from error


def check_patients(dataset: Dataset) -> None:
    """Raises UserError where a patient is in two splits."""
    first: dict[str, tuple[str, str]] = {}
    for name, split in dataset.splits.items():
        if split.groups is None:
            continue
        names = [f"{name}/{row}" for row in range(len(split))] if split.names is None else split.names.tolist()
        for patient, sample in zip(split.groups.tolist(), names, strict=True):
            where, other = first.setdefault(patient, (name, sample))
            if where != name:
                raise UserError(
                    f"{dataset.info.name}: patient {patient!r} is in {where} ({other}) and in {name} ({sample}): give"
                    " every patient to one split, or set data.folds for a cross-validation of all of them"
                )


def check_shares(shares: Sequence[float], *, without_val: bool) -> dict[str, float]:
    """`shares` by split, without one that is 0.

    Raises:
      UserError: they are not three, do not add up to 1, or one is not above 0; val's may be 0 where `without_val`.
    """
    wanted = dict(zip(SPLITS, shares, strict=False))
    numbers = all(isinstance(share, int | float) and share >= 0 for share in shares)
    if len(shares) != len(SPLITS) or not numbers or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"data.shares={tuple(shares)}: give the shares of train, val and test, which add up to 1")
    empty = [name for name, share in wanted.items() if not share and not (without_val and name == "val")]
    if empty:
        raise UserError(f"data.shares={tuple(shares)}: the share of {empty[0]} should be above 0")
    return {name: share for name, share in wanted.items() if share}


def assign(
    labels: np.ndarray, groups: np.ndarray | None, *, shares: dict[str, float], seed: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """The split of every sample, str (n,).

    Every split gets a patient of every class first, the rarest class before the others. Then the patients, in random
    order, go where the chi-square statistic of the samples that a split has against those that it should have, in each
    stratum and in total, grows least. For single samples of one stratum that is Webster's method.

    Args:
      labels: (n, L).
      groups: patients (n,), or None: every sample is its own.
      shares: of the samples by split, each above 0.
      classes: names for messages.

    Raises:
      UserError: a class has fewer patients than there are splits.
    """
    owner = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(owner)
    # Class -> which patients have it.
    holders = {name: np.bincount(owner, has, len(sizes)) > 0 for name, has in stratify.members(labels, classes).items()}
    if rare := [f"{name!r} has {has.sum()}" for name, has in holders.items() if has.sum() < len(shares)]:
        raise UserError(
            f"every class needs {len(shares)} patients, one for each split, and class {', '.join(rare)}: "
            "leave it out, or join it with another"
        )
    counter = _Counter(labels, owner, shares)
    order = np.random.default_rng(seed).permutation(len(sizes))
    place = np.full(len(sizes), -1)

    def put(patient: int, split: int) -> None:
        place[patient] = split
        counter.add(patient, split)

    by_share = sorted(range(len(shares)), key=list(shares.values()).__getitem__)
    for has in sorted(holders.values(), key=np.sum):
        for split in by_share:
            free = order[has[order] & (place[order] < 0)]
            if free.size and not has[place == split].any():
                fits = sizes[free] <= list(shares.values())[split] * len(labels)
                put(free[fits.argmax()] if fits.any() else free[sizes[free].argmin()], split)
    for patient in order[place[order] < 0]:
        put(patient, counter.best(patient))
    return np.array(list(shares))[place][owner]


class _Counter:
    """Samples of each split in each stratum, and how many there should be; the last stratum is all samples."""

    def __init__(self, labels: np.ndarray, owner: np.ndarray, shares: dict[str, float]):
        strata = np.unique(stratify.strata(labels, len(shares)), return_inverse=True)[1].reshape(-1)
        rows = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
        total = int(strata.max()) + 1
        self._of: list[tuple[np.ndarray, np.ndarray]] = []
        for members in rows:
            found, counts = np.unique(strata[members], return_counts=True)
            self._of.append((np.append(found, total), np.append(counts, len(members))))
        self._target = np.outer(list(shares.values()), np.append(np.bincount(strata), len(labels)))
        self._count = np.zeros_like(self._target)

    def add(self, patient: int, split: int) -> None:
        strata, counts = self._of[patient]
        self._count[split, strata] += counts

    def best(self, patient: int) -> int:
        """The split in which the patient adds least to the sum of (count - target)^2 / target."""
        strata, counts = self._of[patient]
        over = self._count[:, strata] - self._target[:, strata]
        return int(((2 * over * counts + counts**2) / self._target[:, strata]).sum(1).argmin())
