"""Runs all folds of a cross-validation, and summarises their results."""

import dataclasses
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost import io, processes, systems
from jaxboost.config import continuing, validate
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset
from jaxboost.errors import UserError
from jaxboost.runs import datasets, deterministic, train, workdir
from jaxboost.runs.datasets import ALL_FOLDS
from jaxboost.runs.result import RunResult, Selection, Threshold
from jaxboost.statistics import seeds
from jaxboost.systems.weights import ROLES

FOLDS = "folds.csv"
METRICS = ("sensitivity", "specificity", "acc", "auc", "avg")
# Entries with the same value in all folds. They appear once in result.json of the cross-validation.
# fmt: off
SHARED = (
    "dataset", "task", "classes", "seed", "protocol", "warning", "model", "boost", "width", "parameters", "encoder",
    "vision", "llama", "block", "text", "question", "qformer", "versions",
)
# fmt: on

logger = logging.getLogger(__name__)


def train_and_evaluate(config: Config, folder: pathlib.Path) -> dict[str, Any] | None:
    """Runs a config: all folds one after the other, each in `folder`/fold<i>, or one run if the config has no folds.

    Finished folds are not run again, and interrupted folds are resumed.

    Args:
      config: config of the run.
      folder: folder of the run; it may be missing.

    Returns:
      The content of result.json; None if a signal stopped the run, or if `data.fold` selects one fold and others
      are not finished.

    Raises:
      UserError: see `train.train_and_evaluate`.
    """
    validate(config)
    if "train" in config and config.train.deterministic:
        deterministic.prepare()
    datasets.check_folds(config)
    if not config.data.folds:
        return train.train_and_evaluate(config, folder)
    config = train.resolved(config, folder)
    workdir.finished_result(folder, _of_fold(config, ALL_FOLDS))
    # Checks every fold before anything is written to the common folder.
    for number in range(config.data.folds):
        workdir.finished_result(folder / f"fold{number}", _of_fold(config, number))
    _check_folds_file(config, folder)
    whole = functools.cache(lambda: _checked(config, folder))
    for number in range(config.data.folds) if config.data.fold == ALL_FOLDS else (config.data.fold,):
        logger.info("fold %d (folds are 0 to %d)", number, config.data.folds - 1)
        splits = datasets.Splits(
            load=lambda number=number: datasets.fold_of(whole(), config, number, _folds_in(folder)),
            prepare=lambda: _prepare(whole(), _of_all(config), folder),
            folder=datasets.cache_folder(folder),
        )
        if train.train_and_evaluate(_of_fold(config, number), folder / f"fold{number}", splits) is None:
            return None
    return processes.first("folds", lambda: _finish(config, folder))


def _finish(config: Config, folder: pathlib.Path) -> dict[str, Any] | None:
    """Writes the result of all folds, if all are finished."""
    results = [workdir.read_result(folder / f"fold{number}") for number in range(config.data.folds)]
    if missing := [str(number) for number, result in enumerate(results) if result is None]:
        logger.info("fold(s) %s not finished yet: run them for the result of all folds", ", ".join(missing))
        return None
    _check_alike(results, folder)
    together = _of_all(config)
    with io.writing(folder):
        # Also renames damaged files, if all folds were finished already.
        workdir.create(folder, together)
        result = workdir.write_result(folder, {**summarise(results), "config": continuing.to_dict(together)})
    log_summary(result)
    return result


def summarise(results: Sequence[RunResult]) -> dict[str, Any]:
    """Summarises the results of all folds for result.json of the cross-validation.

    Args:
      results: results of the folds, in order.

    Returns:
      The entries that are equal in all folds; "folds": the test metrics of each fold; "test": mean and standard
      deviation (n - 1) over the folds, None for a metric that is undefined in a fold.
    """
    first = results[0].to_json()
    names = [name for name in METRICS if getattr(results[0].test, name) is not None]
    figures = {name: [getattr(result.test, name) for result in results] for name in names}
    return {
        **{name: first[name] for name in SHARED if name in first},
        "folds": [
            {"fold": number, "splits": result.splits, "selection": _without_none(result.selection)}
            | {name: getattr(result.test, name) for name in names}
            | ({"threshold": result.to_json()["threshold"]} if result.threshold else {})
            for number, result in enumerate(results)
        ],
        "test": {name: _mean_and_sd(values) for name, values in figures.items()},
        "threshold": _at_thresholds([result.threshold for result in results]),
        "seconds": round(sum(result.seconds for result in results), 1),
        **_by_part(results),
    }


def _by_part(results: Sequence[RunResult]) -> dict[str, dict[str, float]]:
    """The entry "seconds_by_part", summed over the folds; {} if it is not known of all of them."""
    parts = [result.seconds_by_part for result in results]
    if None in parts:
        return {}
    names = dict.fromkeys(name for each in parts for name in each or {})
    return {"seconds_by_part": {name: round(sum((each or {}).get(name, 0) for each in parts), 2) for name in names}}


def _without_none(selection: Selection) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(selection).items() if value is not None}


def _at_thresholds(thresholds: Sequence[Threshold | None]) -> dict[str, Any] | None:
    """Returns mean and standard deviation of the test metrics at each fold's threshold; None without thresholds."""
    if thresholds[0] is None:
        return None
    tests = [threshold.test for threshold in thresholds]
    return {
        "wanted": thresholds[0].specificity,
        "test": {name: _mean_and_sd([test[name] for test in tests]) for name in tests[0]},
    }


def _mean_and_sd(values: Sequence[float]) -> dict[str, float | None] | None:
    found = seeds.spread(values)
    return None if found.mean is None else {"mean": found.mean, "sd": found.sd}


def log_summary(result: Mapping[str, Any]) -> None:
    """Logs mean and standard deviation over all folds."""
    logger.info("test, mean over %d folds: %s", len(result["folds"]), _listed(result["test"]))
    if threshold := result["threshold"]:
        logger.info(
            "at each fold's threshold for specificity %.4f: %s", threshold["wanted"], _listed(threshold["test"])
        )
    if result["warning"]:
        logger.warning(result["warning"])


def _listed(figures: Mapping[str, Mapping[str, float] | None]) -> str:
    return ", ".join(
        f"{name} {values['mean']:.4f} (sd {values['sd']:.4f})" if values else f"{name} undefined in a fold"
        for name, values in figures.items()
    )


def _of_all(config: Config) -> Config:
    """Returns the config of the whole cross-validation. By now the block exists: the first fold converts it."""
    return systems.with_layers(_of_fold(config, ALL_FOLDS))


def _of_fold(config: Config, number: int) -> Config:
    return with_overrides(config, {"data.fold": number})


def _checked(config: Config, folder: pathlib.Path) -> Dataset:
    """Loads the whole data set and checks all folds, so that no fold fails after days of training."""
    dataset = datasets.load(config)
    for number in range(config.data.folds):
        datasets.fold_of(_without_images(dataset), config, number, _folds_in(folder))
    return dataset


def _without_images(dataset: Dataset) -> Dataset:
    """Returns the data set with empty images, for its assignment to folds alone: each fold copies its images."""
    splits = {
        name: dataclasses.replace(split, images=np.zeros((len(split), 0), np.uint8))
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def _folds_in(folder: pathlib.Path) -> pathlib.Path | None:
    return folder / FOLDS if os.path.exists(folder / FOLDS) else None


def _check_folds_file(config: Config, folder: pathlib.Path) -> None:
    """Raises UserError if `data.folds_file` has other folds than the run started with. The file may have moved."""
    name, copy = config.data.folds_file, folder / FOLDS
    if not name:
        return
    if os.path.isfile(copy):
        same = io.user_path(name).read_bytes() == copy.read_bytes()
    else:
        # For a user's own data the fingerprint of the splits is compared later.
        same = config.data.source or workdir.named_before(folder, "data", "folds_file") in (None, name)
    if not same:
        raise UserError(
            f"config field data.folds_file: {name} has other folds than {copy}, with which the run started: give"
            " the same folds, or another --workdir"
        )


def _prepare(dataset: Dataset, together: Config, folder: pathlib.Path) -> None:
    """Writes the config of the whole cross-validation, and the table of the folds."""
    workdir.create(folder, together)
    if os.path.exists(folder / FOLDS):
        return
    if together.data.folds_file:
        with io.replacing(folder / FOLDS) as temporary:
            shutil.copyfile(io.user_path(together.data.folds_file), temporary)
    else:
        datasets.fold_of(_without_images(dataset), together, 0, folder / FOLDS)


def _check_alike(results: Sequence[RunResult], folder: pathlib.Path) -> None:
    """Raises UserError if the folds were run with different weights or data; their configs are equal."""
    if len({(result.data_sha256, result.columns_sha256) for result in results}) > 1:
        raise UserError(
            f"the data changed while the folds in {folder} were run: remove the older folds and run again, or give"
            " another --workdir"
        )
    for role in ROLES:
        found = {(result.parts[role] or {}).get("sha256") for result in results}
        # Random parts have the same seed and therefore the same fingerprint.
        if len(found) > 1:
            raise UserError(
                f"the folds in {folder} were run with different weights ({role}): remove the folds with the wrong"
                " weights and run again, or give another --workdir"
            )
