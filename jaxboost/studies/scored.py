"""The scores of a record as the analysis reads them: of each arm the usable runs, and why the others are left out."""

import dataclasses
import functools

import numpy as np

from jaxboost.statistics.bootstrap import group_numbers
from jaxboost.studies.record import ArmRecord, LeftOut, Record, RunRecord
from jaxboost.tasks import TASKS, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The test split.

    Attributes:
      task, classes: of the data set.
      labels: int64 (n, L).
      patients: str (n,).
      columns: name -> str (n,).
    """

    task: str
    classes: tuple[str, ...]
    labels: np.ndarray
    patients: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def kind(self) -> Task:
        """The row of the task's table."""
        return TASKS[self.task]

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The patient of each item, int (n,)."""
        return group_numbers(self.patients, len(self.labels))

    @property
    def groups(self) -> np.ndarray | None:
        """The patient of each item, or None if no patient has several items."""
        return self.patients if self.several else None

    @functools.cached_property
    def several(self) -> bool:
        """Whether a patient has several items."""
        return len(np.unique(self.patients)) < len(self.patients)

    @functools.cached_property
    def absent(self) -> list[str]:
        """The classes that no item has, or that every item of a multi-label task has: no AUC is defined with them."""
        counts = self.kind.class_counts(self.labels, len(self.classes))
        whole = len(self.labels) if self.kind.multi_label else -1
        return [name for name, count in zip(self.classes, counts.tolist(), strict=True) if count in (0, whole)]

    def take(self, rows: np.ndarray) -> "HeldOut":
        """The items of some rows, bool (n,)."""
        return dataclasses.replace(self, labels=self.labels[rows], patients=self.patients[rows], columns={})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """An arm with its usable runs; there may be none.

    Attributes:
      arm: its entry in the record.
      runs: by seed.
      test: probabilities float64 (s, n, C).
      val: probabilities of the validation split, float64 (s, v, C); None if a run has none.
      missing: why there is no usable run; "" if there is one.
    """

    arm: ArmRecord
    runs: tuple[RunRecord, ...]
    test: np.ndarray
    val: np.ndarray | None
    missing: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs, in order."""
        return tuple(run.seed for run in self.runs)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """The probabilities, averaged over the seeds, (n, C)."""
        return self.test.mean(0)

    @property
    def random(self) -> bool:
        """Whether its runs depend on their seed: a baseline is fitted without random numbers."""
        return not any("baseline" in _mapping(run.result.get("config")) for run in self.runs)


def of_record(record: Record) -> tuple[HeldOut, dict[str, Scored], list[LeftOut]]:
    """The test split, name -> arm in the order of the record, and what is left out."""
    items = record.items.get("test")
    labels = items.labels if items is not None else np.zeros((0, _labels_per_item(record)), np.int64)
    test = HeldOut(
        task=record.task,
        classes=tuple(record.classes),
        labels=labels,
        patients=items.patients if items is not None else np.zeros(0, str),
        columns=dict(items.columns) if items is not None else {},
    )
    left_out = list(record.left_out)
    known = {arm.name for arm in record.arms}
    left_out += [
        LeftOut(what=f"{run.arm}, seed {run.seed}", why="its arm is not in the study")
        for run in record.runs
        if run.arm not in known
    ]
    arms = {}
    for arm in record.arms:
        usable, reasons = [], [arm.missing] if arm.missing else []
        for run in record.runs_of(arm.name):
            why = _unusable(record.scores.get((arm.name, run.seed, "test")), test)
            if any(run.seed == other.seed for other in usable):
                why = "another run of the arm has this seed too"
            if why:
                left_out.append(LeftOut(what=f"{arm.name}, seed {run.seed}", why=why))
                reasons.append(why)
            else:
                usable.append(run)
        missing = "" if usable else "; ".join(dict.fromkeys(reasons)) or "it has not run yet"
        arms[arm.name] = _scored(record, arm, tuple(usable), test, missing)
    return test, arms, left_out


def _unusable(scores: np.ndarray | None, test: HeldOut) -> str:
    """Why the test scores of a run cannot be used; "" if they can."""
    expected = (len(test.labels), len(test.classes))
    if scores is None or not len(test.labels):
        return "it has no scores of the test split"
    if scores.shape != expected:
        return f"its scores have the shape {scores.shape}, and the test split needs {expected}"
    return "" if np.isfinite(scores).all() else "its scores contain NaN or infinite numbers"


def _scored(record: Record, arm: ArmRecord, runs: tuple[RunRecord, ...], test: HeldOut, missing: str) -> Scored:
    classes = len(test.classes)
    found = [record.scores[arm.name, run.seed, "test"] for run in runs]
    val = [record.scores.get((arm.name, run.seed, "val")) for run in runs]
    members = record.items.get("val")
    good = members is not None and len(members.labels) and runs
    shape = (len(members.labels), classes) if members is not None else ()
    usable = [each for each in val if each is not None and each.shape == shape and np.isfinite(each).all()]
    return Scored(
        arm=arm,
        runs=runs,
        test=np.stack(found).astype(float) if found else np.zeros((0, len(test.labels), classes)),
        val=np.stack(usable).astype(float) if good and len(usable) == len(runs) else None,
        missing=missing,
    )


def _labels_per_item(record: Record) -> int:
    return TASKS[record.task].labels_per_example(len(record.classes))


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}
