"""Random splits by split ratios, for data without official ones: by patient, stratified, and stored in a file."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.data.dataset import ALL, SPLITS, Dataset
from jaxboost.data.splits import stratify, table
from jaxboost.errors import UserError

_COLUMN = "split"
_FIX_FILE = (
    "undo what changed in the data or in this file (if it is damaged, remove it: the same data and seed give the"
    " same splits), or give another --workdir"
)
_FIX_RATIOS = "use other split ratios (data.shares) or another seed (data.fold_seed), or leave that class out"


def divide(
    dataset: Dataset, *, ratios: Sequence[float], seed: int, file: pathlib.Path | None, without_val: bool = False
) -> Dataset:
    """Divides a data set with the one split "all", or with "train" and "test", into "train", "val" and "test".

    A test split that the data set already has stays unchanged. Then "train" is divided into "train" and "val" by the
    ratio of these two.

    Args:
      dataset: the data set; each sample has a name.
      ratios: fractions of the samples for train, val and test; they add up to 1.
      seed: seed of the random assignment of patients to splits.
      file: a table that `write` made; it is read instead of a new assignment, whatever the seed. None: no file.
      without_val: allows a ratio of 0 for val; then there is no such split.

    Raises:
      UserError: a ratio is out of range, a class has too few patients or is missing from a split, or the
        file belongs to another data set, or changes the data set's own test split.
    """
    wanted = check_ratios(ratios, without_val=without_val)
    pooled = dataset.pooled()
    samples, classes = pooled.splits[ALL], dataset.info.classes
    # Samples in a test split that the data set already has.
    is_test = np.repeat([name == "test" for name in dataset.splits], [len(split) for split in dataset.splits.values()])
    if file is None:
        given = {name: ratio for name, ratio in wanted.items() if name != "test" or not is_test.any()}
        free = np.flatnonzero(~is_test)
        splits = np.full(len(is_test), "test", object)
        splits[free] = assign(
            samples.labels[free],
            None if samples.groups is None else samples.groups[free],
            ratios={name: ratio / sum(given.values()) for name, ratio in given.items()},
            seed=seed,
            classes=classes,
        )
    else:

        def parse(cell: str) -> str | None:
            return cell if cell in wanted else None

        splits = np.array(table.read(file, _COLUMN, samples, parse=parse, allowed=", ".join(wanted), fix=_FIX_FILE))
        if is_test.any() and (moved := np.flatnonzero(is_test != (splits == "test"))).size:
            name = str(samples.names[moved[0]])
            raise UserError(f"{file}: {name!r} is moved out of or into the data set's own test split: {_FIX_FILE}")
    rows = {split: np.flatnonzero(splits == split) for split in wanted}
    if missing := stratify.missing_classes(samples.labels, classes, rows):
        where, fix = (f"{file}: ", _FIX_FILE) if file else ("", _FIX_RATIOS)
        found = ", ".join(f"{split!r} has no {name!r}" for split, name in missing)
        raise UserError(f"{where}a class is missing from a split: {found}: {fix}")
    return pooled.divided(rows)


def write(path: pathlib.Path, dataset: Dataset) -> None:
    """Writes the splits of a data set that `divide` made, see `table.write`.

    Raises:
      UserError: the file cannot be written.
    """
    splits = np.repeat(list(dataset.splits), [len(split) for split in dataset.splits.values()])
    samples = dataset.pooled().splits[ALL]
    table.write(path, _COLUMN, samples, dataset.info, splits, fix="give another --workdir")


def check_ratios(ratios: Sequence[float], *, without_val: bool) -> dict[str, float]:
    """The ratio of each split, without a ratio of 0.

    Raises:
      UserError: the ratios are not three, do not add up to 1, or one is not above 0; val's may be 0 with `without_val`.
    """
    wanted = dict(zip(SPLITS, ratios, strict=False))
    numbers = all(isinstance(ratio, int | float) and ratio >= 0 for ratio in ratios)
    if len(ratios) != len(SPLITS) or not numbers or abs(sum(ratios) - 1) > 1e-6:
        raise UserError(f"data.shares={tuple(ratios)}: give the split ratios of train, val and test, which add up to 1")
    empty = [name for name, ratio in wanted.items() if not ratio and not (without_val and name == "val")]
    if empty:
        raise UserError(f"data.shares={tuple(ratios)}: the ratio of {empty[0]} should be above 0")
    return {name: ratio for name, ratio in wanted.items() if ratio}


def assign(
    labels: np.ndarray,
    groups: np.ndarray | None,
    *,
    ratios: Mapping[str, float],
    seed: int,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """Assigns every sample to a split, str (n,), by patient and stratified.

    First every split gets a patient of every class, the rarest class before the others. Then each of the other
    patients, in random order, goes to the split where the chi-square statistic of actual against expected numbers of
    samples, in each stratum and in total, grows least. For single samples of one stratum that is Webster's method.

    Args:
      labels: (n, L).
      groups: patients (n,), or None: every sample is its own patient.
      ratios: fraction of the samples for each split, each above 0.
      seed: seed of the random order of patients.
      classes: names for messages.

    Raises:
      UserError: a class has fewer patients than there are splits.
    """
    owner = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(owner)
    # Class -> whether each patient has it.
    holders = {name: np.bincount(owner, has, len(sizes)) > 0 for name, has in stratify.members(labels, classes).items()}
    if rare := [f"{name!r} has {has.sum()}" for name, has in holders.items() if has.sum() < len(ratios)]:
        raise UserError(
            f"every class needs {len(ratios)} patients, one for each split, and class {', '.join(rare)}: "
            "leave it out, or join it with another"
        )
    counts = _Counts(labels, owner, ratios)
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen = np.full(len(sizes), -1)

    def put(patient: int, split: int) -> None:
        chosen[patient] = split
        counts.add(patient, split)

    smallest_first = sorted(range(len(ratios)), key=list(ratios.values()).__getitem__)
    for has in sorted(holders.values(), key=np.sum):
        for split in smallest_first:
            free = order[has[order] & (chosen[order] < 0)]
            if free.size and not has[chosen == split].any():
                fits = sizes[free] <= list(ratios.values())[split] * len(labels)
                put(free[fits.argmax()] if fits.any() else free[sizes[free].argmin()], split)
    for patient in order[chosen[order] < 0]:
        put(patient, counts.best(patient))
    return np.array(list(ratios))[chosen][owner]


class _Counts:
    """Actual and expected numbers of samples of each split in each stratum; the last column is all strata together."""

    def __init__(self, labels: np.ndarray, owner: np.ndarray, ratios: Mapping[str, float]):
        strata = np.unique(stratify.strata(labels, len(ratios)), return_inverse=True)[1].reshape(-1)
        rows = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
        total = int(strata.max()) + 1
        self._of: list[tuple[np.ndarray, np.ndarray]] = []
        for members in rows:
            found, counts = np.unique(strata[members], return_counts=True)
            self._of.append((np.append(found, total), np.append(counts, len(members))))
        self._expected = np.outer(list(ratios.values()), np.append(np.bincount(strata), len(labels)))
        self._actual = np.zeros_like(self._expected)

    def add(self, patient: int, split: int) -> None:
        """Counts the samples of a patient in a split."""
        strata, counts = self._of[patient]
        self._actual[split, strata] += counts

    def best(self, patient: int) -> int:
        """The split in which the patient adds least to the sum of (actual - expected)^2 / expected."""
        strata, counts = self._of[patient]
        over = self._actual[:, strata] - self._expected[:, strata]
        return int(((2 * over * counts + counts**2) / self._expected[:, strata]).sum(1).argmin())
