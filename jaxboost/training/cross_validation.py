"""All folds of a cross-validation in one command, and what they come to together."""

import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxboost.data.source import Dataset
from jaxboost.errors import UserError
from jaxboost.training import datasets, loop, workdir

FOLDS = "folds.csv"
ALL_FOLDS = -1
METRICS = ("sensitivity", "specificity", "acc", "auc", "avg")

logger = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any] | None:
    """Runs a config: its folds one after the other, each in `folder`/fold<i>, or itself where it asks for no folds.

    Folds that are finished are not run again, and one that was cut off goes on where it was.

    Returns:
      The content of result.json; None where a signal stopped it, or where `data.fold` names one fold and others lack.
    """
    fields = config.data
    if not fields.get("folds", 0):
        return loop.train_and_evaluate(config, folder)
    if fields.folds < 2:
        raise UserError(f"config field data.folds: {fields.folds} should be 2 or more, or 0 for the official splits")
    if not ALL_FOLDS <= fields.fold < fields.folds:
        raise UserError(
            f"config field data.fold: {fields.fold} should be 0 to {fields.folds - 1}, or {ALL_FOLDS} for all"
        )
    whole = functools.cache(lambda: datasets.load(config))
    for number in range(fields.folds) if fields.fold == ALL_FOLDS else (fields.fold,):
        one = config.copy_and_resolve_references()
        one.data.fold = number
        logger.info("fold %d of %d", number, fields.folds)
        load = functools.partial(_load_fold, whole, one, folder / FOLDS)
        if loop.train_and_evaluate(one, folder / f"fold{number}", load) is None:
            return None
    results = [workdir.read_result(folder / f"fold{number}") for number in range(fields.folds)]
    if missing := [str(number) for number, result in enumerate(results) if result is None]:
        logger.info("fold %s to be run before there is a result of all", ", ".join(missing))
        return None
    result = workdir.write_result(folder, summarise(results))
    log_summary(result)
    return result


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of a cross-validation's result.json.

    Args:
      results: of the folds, in order.

    Returns:
      What the folds share; "folds": the test figures of each; "test": mean and standard deviation (n - 1) over them.
    """
    shared = ("dataset", "task", "classes", "seed", "protocol", "warning", "model", "boost", "parameters", "versions")
    names = [name for name in METRICS if name in results[0]["test"]]
    figures = {name: [result["test"][name] for result in results] for name in names}
    return {
        **{name: results[0][name] for name in shared},
        "folds": [
            {"fold": number, "n": result["test"]["n"], "epoch": result["selection"]["epoch"]}
            | {name: result["test"][name] for name in names}
            for number, result in enumerate(results)
        ],
        "test": {
            name: {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
            for name, values in figures.items()
            if None not in values
        },
        "seconds": round(sum(result["seconds"] for result in results), 1),
    }


def log_summary(result: Mapping[str, Any]) -> None:
    """Says the figures over all folds."""
    texts = [f"{name} {figures['mean']:.4f} (sd {figures['sd']:.4f})" for name, figures in result["test"].items()]
    logger.info("test, mean over %d folds: %s", len(result["folds"]), ", ".join(texts))
    if result["warning"]:
        logger.warning(result["warning"])


def _load_fold(whole: Any, config: ConfigDict, file: pathlib.Path) -> Dataset:
    return datasets.fold_of(whole(), config, file)
