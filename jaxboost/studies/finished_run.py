"""Reads what a report needs of one finished run: its result, its predictions with their samples, and its curve."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.evaluation.patients import PATIENT
from jaxboost.runs import workdir
from jaxboost.runs.result import RunResult
from jaxboost.statistics.pooling import pool
from jaxboost.studies import tuning
from jaxboost.studies.record import Items
from jaxboost.tasks import TASKS
from jaxboost.training.log import METRICS

REFERENCE = "reference"
_MAX_POINTS = 200  # a curve with more records is thinned
_TIMES = ("images_per_second", "mfu", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run, or a finished cross-validation, whose folds follow each other in its samples and scores.

    Attributes:
      folder: its folder.
      result: the content of its result.json.
      value: the metric that picked the epoch, on the split that picks it.
      items: split -> its samples: images or, with eval.unit=patient, patients.
      scores: split -> probabilities float32 (n, C).
      curve: see `record.RunRecord`.
    """

    folder: pathlib.Path
    result: dict[str, Any]
    value: float
    items: Mapping[str, Items]
    scores: Mapping[str, np.ndarray]
    curve: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Its random seed."""
        return self.result["seed"]

    @property
    def per_patient(self) -> bool:
        """Whether its samples are patients, whose images were pooled."""
        return of_patients(self.result["config"])


def read(folder: pathlib.Path) -> FinishedRun:
    """Reads a finished run.

    Raises:
      ValueError: it is unfinished or damaged, or lacks its predictions; the message says how.
    """
    if not os.path.exists(folder / workdir.RESULT):
        raise ValueError("it is not finished: it has no result.json")
    try:
        parsed = workdir.result_in(folder)
        content = io.read_json(folder / workdir.RESULT)
    except (OSError, ValueError) as error:
        raise ValueError(f"its result.json is damaged ({error})") from None
    except UserError as error:
        raise ValueError(str(error)) from None
    folds = [] if isinstance(parsed, RunResult) else [folder / f"fold{number}" for number in range(len(parsed.folds))]
    reference = content["protocol"] == REFERENCE
    per_patient = of_patients(content["config"])
    items, scores = {}, {}
    for split in ("test",) if reference else ("val", "test"):
        name = f"{REFERENCE}-{split}.csv" if reference else f"{split}.csv"
        tables = [
            _table(each / workdir.PREDICTIONS / name, content["classes"], content["task"]) for each in folds or [folder]
        ]
        if not folds and (count := len(tables[0][1])) != (wanted := content["splits"][split]):
            raise ValueError(f"its predictions/{split}.csv has {count} samples, not {wanted}")
        if per_patient:
            # The tables have a row for each image, and the figures of the run are of patients.
            tables = [_of_patients(*table, content["task"]) for table in tables]
        items[split] = _joined([found for found, _ in tables])
        scores[split] = np.concatenate([found for _, found in tables])
    return FinishedRun(
        folder=folder,
        result=content,
        value=tuning.value(parsed),
        items=items,
        scores=scores,
        curve=[] if folds else curve(folder / METRICS),
    )


def of_patients(config: Mapping[str, Any]) -> bool:
    """Whether the figures of a config, as JSON, are of patients, and not of images; earlier versions had images."""
    return config.get("eval", {}).get("unit") == PATIENT


def curve(file: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, one for each validation, without times; every tenth if there are many.

    Each has the training loss of the same step too.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for line in lines:
        # The last line of a run that was killed may be incomplete.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            values = {name: value for name, value in entry.items() if not name.startswith(_TIMES)}
            by_step.setdefault(entry["step"], {}).update(values)
    found = [entry for entry in by_step.values() if any(name.startswith(("val_", "test_")) for name in entry)]
    return found if len(found) <= _MAX_POINTS else found[9::10]


def _table(path: pathlib.Path, classes: Sequence[str], task: str) -> tuple[Items, np.ndarray]:
    """Samples and probabilities of a table of predictions, see `prediction_table.named_table`.

    Raises:
      ValueError: it is missing or damaged.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except FileNotFoundError:
        raise ValueError(f"it has no {where}, as an earlier version made it: train it again") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"its {where} cannot be read ({error})") from None
    if header != ["file", "patient_id", "label", *classes] or any(len(row) != len(header) for row in rows) or not rows:
        raise ValueError(f"its {where} is damaged")
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        labels = np.array([_labels(row[2], numbers, multi=TASKS[task].multi_label) for row in rows], np.int64)
        scores = np.array([row[3:] for row in rows], np.float32)
    except (KeyError, ValueError) as error:
        raise ValueError(f"its {where} is damaged ({error})") from None
    if not np.isfinite(scores).all():
        raise ValueError(f"its {where} has probabilities that are no numbers")
    names, patients = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    return Items(names=names, patients=patients, labels=labels), scores


def _of_patients(items: Items, scores: np.ndarray, task: str) -> tuple[Items, np.ndarray]:
    """One sample for each patient, with the name of its first image, as `evaluation.patients.counted` counts them.

    Raises:
      ValueError: the images of a patient have different classes.
    """
    try:
        found = pool(items.labels, scores, items.patients, task)
    except UserError as error:
        raise ValueError(str(error)) from None
    first = np.sort(np.unique(items.patients, return_index=True)[1])
    pooled = Items(names=items.names[first], patients=found.patients, labels=found.labels)
    return pooled, found.probabilities.astype(np.float32)


def _labels(text: str, numbers: Mapping[str, int], *, multi: bool) -> list[int]:
    if not multi:
        return [numbers[text]]
    present = {numbers[name] for name in text.split("|") if name}
    return [int(number in present) for number in numbers.values()]


def _joined(parts: Sequence[Items]) -> Items:
    fields = ("names", "patients", "labels")
    return Items(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})
