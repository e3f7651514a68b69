"""The analysis of each arm by itself: figures with intervals, calibration, curves, classes and subgroups."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.statistics import calibration, figures
from jaxboost.statistics.auc import delong
from jaxboost.statistics.resampled import RunsFigure, figures_of_runs
from jaxboost.statistics.seeds import spread
from jaxboost.studies.scored import HeldOut, Scored
from jaxboost.tasks import MULTI_CLASS, TASKS

Json = dict[str, Any]
BINS = 15
# A curve of more points looks the same.
_ROC_POINTS = 1000
# What a column of subgroups may have.
_MIN_VALUES, _MAX_VALUES, _MIN_ITEMS = 2, 10, 10


def figures_of(arm: Scored, test: HeldOut, *, resamples: int, seed: int) -> dict[str, RunsFigure]:
    """The figures of an arm's runs; none without runs."""
    if not arm.runs:
        return {}
    return figures_of_runs(test.labels, arm.test, test.task, groups=test.groups, resamples=resamples, seed=seed)


def entry(arm: Scored, test: HeldOut, val_labels: np.ndarray | None, found: Mapping[str, RunsFigure]) -> Json:
    """The entry of an arm.

    Args:
      arm: the arm.
      test: the test split.
      val_labels: labels of the validation split, (v, L); None if there is none.
      found: see `figures_of`.
    """
    of = arm.arm
    results = [run.result for run in arm.runs]
    return {
        "name": of.name,
        "title": of.title,
        "group": of.group,
        "rung": of.rung,
        "note": of.note,
        "changes": dict(of.changes),
        "seeds": list(arm.seeds),
        "missing": arm.missing or None,
        "metrics": _metrics(test, found),
        "val": _val(arm, test.task, val_labels),
        "parameters": {name: _parameters(results, name) for name in ("trainable", "frozen")},
        "seconds": _mean(result.get("seconds") for result in results),
        "memory_gb": max((result["memory_gb"] for result in results if result.get("memory_gb")), default=None),
        "calibration": _calibration(arm, test, val_labels),
        "roc": _roc(arm, test),
        "confusion": _confusion(arm, test),
        "per_class": _per_class(arm, test),
        "best_on_test_minus_reported": _best_on_test(arm, found),
        "learning_rates": None if of.learning_rates is None else {str(k): v for k, v in of.learning_rates.items()},
    }


def _metrics(test: HeldOut, found: Mapping[str, RunsFigure]) -> Json:
    names = ["auc", "acc"] + (["sensitivity", "specificity", "balanced_acc"] if test.kind.binary else [])
    return {name: _metric(found.get(name)) for name in names}


def _metric(figure: RunsFigure | None) -> Json:
    if figure is None:
        return {"mean": None, "sd": None, "per_seed": [], "low": None, "high": None, "method": "undefined"}
    values, (low, high) = figure.resampled.values, figure.interval
    over_seeds = spread(values)
    return {
        "mean": over_seeds.mean,
        "sd": over_seeds.sd,
        "per_seed": values.tolist(),
        "low": low,
        "high": high,
        "method": figure.method,
    }


def _val(arm: Scored, task: str, labels: np.ndarray | None) -> Json:
    if arm.val is None or labels is None:
        return {"auc": None, "acc": None}
    every = np.ones((1, len(labels)), np.int64)
    return {
        name: spread([float(figures.metric(labels, run, task, name).of(every)[0]) for run in arm.val]).mean
        for name in ("auc", "acc")
    }


def _parameters(results: Sequence[Json], name: str) -> int | None:
    """Of the first run: all runs of an arm have the same model."""
    counts = results[0].get("parameters") if results else None
    value = counts.get(name) if isinstance(counts, Mapping) else None
    return value if isinstance(value, int) else None


def _calibration(arm: Scored, test: HeldOut, val_labels: np.ndarray | None) -> Json:
    """Brier score, ECE and temperature are means over the seeds; the bins are of the averaged probabilities."""
    if not arm.runs:
        return {"brier": None, "ece": None, "temperature": None, "ece_scaled": None, "bins": []}
    task, labels = test.task, test.labels
    temperatures = [1.0] * len(arm.runs)
    known = arm.val is not None and val_labels is not None
    if known:
        temperatures = [calibration.fit_temperature(val_labels, run, task) for run in arm.val]
    scaled = [calibration.apply_temperature(run, t, task) for run, t in zip(arm.test, temperatures, strict=True)]
    return {
        "brier": _mean(calibration.brier(labels, run, task) for run in arm.test),
        "ece": _mean(calibration.ece(labels, run, task, bins=BINS) for run in arm.test),
        "temperature": _mean(temperatures) if known else None,
        "ece_scaled": _mean(calibration.ece(labels, run, task, bins=BINS) for run in scaled) if known else None,
        "bins": [
            {
                "probability": each.mean,
                "frequency": each.observed,
                "count": each.n,
                "low": each.interval[0],
                "high": each.interval[1],
            }
            for each in calibration.reliability(labels, arm.mean, task, bins=BINS)
        ],
    }


def _roc(arm: Scored, test: HeldOut) -> list[list[float]] | None:
    """The ROC curve of the averaged probabilities: [false positive rate, true positive rate], from [0, 0]."""
    if not arm.runs or not test.kind.binary or test.absent:
        return None
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(test.labels[:, 0], arm.mean[:, 1])
    points = np.stack([false_positive, true_positive], 1)
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), _ROC_POINTS)).round().astype(int))
    return points[kept].tolist()


def _confusion(arm: Scored, test: HeldOut) -> list[list[int]] | None:
    """Counts (true class, predicted class), summed over the seeds; None for a multi-label task."""
    if not arm.runs or test.kind.multi_label:
        return None
    counts = np.zeros((len(test.classes), len(test.classes)), np.int64)
    for run in arm.test:
        np.add.at(counts, (test.labels[:, 0], test.kind.decide(run)[:, 0]), 1)
    return counts.tolist()


def _per_class(arm: Scored, test: HeldOut) -> list[Json]:
    """Of each class against the rest, the means over the seeds."""
    if not arm.runs:
        return []
    found = []
    # In a binary task too, both classes have a row.
    kind = test.kind if test.kind.multi_label else TASKS[MULTI_CLASS]
    # Those of class 0 have the AUC of class 1: the probability of class 0 may be rounded in another way.
    ranks = [np.stack([-run[:, 1], run[:, 1]], 1) if test.kind.binary else run for run in arm.test]
    problems = [list(kind.one_against_rest(test.labels, run)) for run in ranks]
    decided = [test.kind.decide(run) for run in arm.test]
    for number, name in enumerate(test.classes):
        positive = problems[0][number][0]
        aucs, _ = delong(positive, [run[number][1] for run in problems])
        chosen = [each[:, number] == 1 if kind.multi_label else each[:, 0] == number for each in decided]
        n = int(positive.sum())
        recalls = [int((each & positive).sum()) / n if n else math.nan for each in chosen]
        found.append({"class": name, "n": n, "auc": spread(aucs).mean, "sensitivity": spread(recalls).mean})
    return found


def _best_on_test(arm: Scored, found: Mapping[str, RunsFigure]) -> Json | None:
    """The best epoch's figure on the test split less the reported one, mean over the seeds; None if not known."""
    entries: Json = {"auc": None, "acc": None}
    for name in entries:
        if name not in found:
            continue
        added = []
        for run, reported in zip(arm.runs, found[name].resampled.values.tolist(), strict=True):
            curve = [each for record in run.curve if is_number(each := record.get(f"test_{name}"))]
            # The reported epoch may be one that the record's curve leaves out.
            added.append(max(*curve, reported) - reported if curve else math.nan)
        entries[name] = spread(added).mean
    return None if all(value is None for value in entries.values()) else entries


def subgroups(arm: Scored, test: HeldOut, *, resamples: int, seed: int) -> list[Json]:
    """The AUC of an arm in each subgroup: columns with 2 to 10 values that 10 items or more have."""
    if not arm.runs:
        return []
    found = []
    for column, values in sorted(test.columns.items()):
        names, counts = np.unique(values, return_counts=True)
        # Nothing in a cell is no value.
        kept = [name for name, n in zip(names.tolist(), counts.tolist(), strict=True) if name and n >= _MIN_ITEMS]
        if not _MIN_VALUES <= len(kept) <= _MAX_VALUES:
            continue
        for value in kept:
            rows = values == value
            inside = test.take(rows)
            scores = {"labels": inside.labels, "probabilities": arm.test[:, rows], "task": test.task}
            auc = figures_of_runs(**scores, groups=inside.groups, resamples=resamples, seed=seed)["auc"]
            found.append(
                {
                    "column": column,
                    "value": value,
                    "n": int(rows.sum()),
                    "arm": arm.arm.name,
                    "auc": spread(auc.resampled.values).mean,
                    "low": auc.interval[0],
                    "high": auc.interval[1],
                }
            )
    return found


def learning_curve(arms: Iterable[Scored], entries: Sequence[Json]) -> list[Json]:
    """The AUC of each arm with the fraction and number of training items, if the arms differ in the fraction.

    Args:
      arms: the arms.
      entries: the entry of each arm, see `entry`.
    """
    arms = list(arms)
    fractions = [_fraction(arm) for arm in arms]
    if len({fraction for fraction, arm in zip(fractions, arms, strict=True) if arm.runs}) < 2:
        return []
    found = []
    for arm, fraction, of in zip(arms, fractions, entries, strict=True):
        if not arm.runs:
            continue
        splits = arm.runs[0].result.get("splits")
        auc = of["metrics"]["auc"]
        found.append(
            {
                "arm": arm.arm.name,
                "fraction": fraction,
                "n": splits.get("train") if isinstance(splits, Mapping) else None,
                "auc": auc["mean"],
                "low": auc["low"],
                "high": auc["high"],
            }
        )
    return found


def _fraction(arm: Scored) -> float:
    """The fraction of the training patients that an arm was trained on; configs without the field took all."""
    config = arm.runs[0].result.get("config") if arm.runs else None
    data = config.get("data") if isinstance(config, Mapping) else None
    of_config = data.get("train_fraction", 1.0) if isinstance(data, Mapping) else 1.0
    value = arm.arm.changes.get("data.train_fraction", of_config)
    return float(value) if is_number(value) else 1.0


def is_number(value: Any) -> bool:
    """Whether a value of a result is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(values: Iterable[Any]) -> float | None:
    """The mean of numbers; None if there are none, or if one is missing."""
    values = list(values)
    return spread(values).mean if values and all(is_number(value) for value in values) else None
