"""The learning rate of an arm, chosen on the validation split from runs with the first seed.

The test split has no part in it: only `selection`, the metric of the best epoch on the split that picks it, is read.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.errors import UserError
from jaxboost.runs import workdir
from jaxboost.runs.result import FoldsResult, RunResult
from jaxboost.studies.plan import RATE, PlannedRun


def value(result: RunResult | FoldsResult) -> float:
    """The metric that picks the epoch, at the best epoch; the mean over the folds of a cross-validation."""
    if isinstance(result, RunResult):
        return result.selection.value
    values = [fold["selection"]["value"] for fold in result.folds]
    return math.nan if None in values else sum(values) / len(values)


def best(values: Mapping[float, float]) -> float:
    """The learning rate with the largest value; of equal ones the smallest rate. An undefined value loses."""
    return min(values, key=lambda rate: (-values[rate] if math.isfinite(values[rate]) else math.inf, rate))


def values(runs: Sequence[PlannedRun]) -> dict[float, float]:
    """Learning rate -> value of the tuning runs that are finished."""
    found = {run.rate: workdir.read_result(run.folder) for run in runs if run.rate is not None}
    return {rate: value(result) for rate, result in found.items() if result is not None}


def chosen(runs: Sequence[PlannedRun]) -> PlannedRun | None:
    """The tuning run with the best learning rate, which is also the arm's run with the first seed.

    A rate that a run of another seed has already stays chosen: a tuning run that failed then may succeed now.

    Args:
      runs: all runs of an arm whose learning rate is tuned.

    Returns:
      None if one of them neither is finished nor has failed.

    Raises:
      UserError: all of them failed.
    """
    tuning, found = [run for run in runs if run.rate is not None], values(runs)
    failed = [run for run in tuning if run.rate not in found and os.path.exists(run.failure)]
    if len(found) + len(failed) < len(tuning):
        return None
    if not found:
        raise UserError(f"arm {runs[0].arm.name}: no learning rate can be chosen, as all its tuning runs failed")
    rate = kept(found, [run.folder for run in runs if run.follows])
    return next(run for run in tuning if run.rate == rate)


def kept(found: Mapping[float, float], others: Sequence[pathlib.Path]) -> float:
    """The chosen learning rate: that of the runs of other seeds in `others`, if there are any, else the best."""
    used = [workdir.named_before(folder, *RATE.split(".")) for folder in others]
    return next((rate for rate in used if rate in found), best(found))


def as_json(found: Mapping[float, float]) -> dict[str, Any]:
    """Learning rate -> value, with the rates as text, for a record; undefined values are left out."""
    return {f"{rate:g}": value for rate, value in sorted(found.items()) if math.isfinite(value)}
