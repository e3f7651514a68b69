"""All folds of a cross-validation in one command, and what they come to together."""

import dataclasses
import functools
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxboost import io
from jaxboost.config import validate
from jaxboost.data.dataset import Dataset
from jaxboost.errors import UserError
from jaxboost.runs import datasets, workdir
from jaxboost.runs.datasets import ALL_FOLDS
from jaxboost.systems.pretrained import ROLES
from jaxboost.training import loop

FOLDS = "folds.csv"
METRICS = ("sensitivity", "specificity", "acc", "auc", "avg")
# What all folds have in common, and result.json says once.
SHARED = (
    *(
        "dataset",
        "task",
        "classes",
        "seed",
        "protocol",
        "warning",
        "model",
        "boost",
        "parameters",
        "encoder",
        "vision",
        "llama",
    ),
    *("block", "versions"),
)

logger = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any] | None:
    """Runs a config: its folds one after the other, each in `folder`/fold<i>, or itself where it asks for no folds.

    Folds that are finished are not run again, and one that was cut off goes on where it was.

    Returns:
      The content of result.json; None where a signal stopped it, or where `data.fold` names one fold and others lack.
    """
    validate(config)
    datasets.check_folds(config)
    if not config.data.folds:
        return loop.train_and_evaluate(config, folder)
    together = _of_fold(config, ALL_FOLDS)
    workdir.check(folder, together)
    # Before anything is written to the folder of all.
    for number in range(config.data.folds):
        workdir.check(folder / f"fold{number}", _of_fold(config, number))
    _check_folds_file(config, folder)
    whole = functools.cache(lambda: _checked(config, folder))
    for number in range(config.data.folds) if config.data.fold == ALL_FOLDS else (config.data.fold,):
        logger.info("fold %d of %d", number, config.data.folds)
        splits = datasets.Splits(
            load=lambda number=number: datasets.fold_of(whole(), config, number, _folds_in(folder)),
            prepare=lambda: _prepare(whole(), together, folder),
            folder=folder,
        )
        if loop.train_and_evaluate(_of_fold(config, number), folder / f"fold{number}", splits) is None:
            return None
    results = [workdir.read_result(folder / f"fold{number}") for number in range(config.data.folds)]
    if missing := [str(number) for number, result in enumerate(results) if result is None]:
        logger.info("fold %s to be run before there is a result of all", ", ".join(missing))
        return None
    _check_alike(results, folder)
    with io.writing(folder):
        # Where all folds were finished before, nothing has set aside what is damaged here.
        workdir.create(folder, together)
        result = workdir.write_result(folder, {**summarise(results), "config": workdir.to_dict(together)})
    log_summary(result)
    return result


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a cross-validation's result.json.

    Args:
      results: of the folds, in order.

    Returns:
      What the folds share; "folds": the test figures of each; "test": mean and standard deviation (n - 1) over them,
      None for a metric that is undefined in a fold.
    """
    names = [name for name in METRICS if name in results[0]["test"]]
    figures = {name: [result["test"][name] for result in results] for name in names}
    return {
        **{name: results[0][name] for name in SHARED if name in results[0]},
        "folds": [
            {"fold": number, "splits": result["splits"], "selection": result["selection"]}
            | {name: result["test"][name] for name in names}
            | ({"threshold": result["threshold"]} if result["threshold"] else {})
            for number, result in enumerate(results)
        ],
        "test": {name: _mean_and_sd(values) for name, values in figures.items()},
        "threshold": _at_thresholds([result["threshold"] for result in results]),
        "seconds": round(sum(result["seconds"] for result in results), 1),
    }


def _at_thresholds(thresholds: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The figures at the folds' own thresholds; None where none were asked for."""
    if thresholds[0] is None:
        return None
    tests = [threshold["test"] for threshold in thresholds]
    return {
        "wanted": thresholds[0]["specificity"],
        "test": {name: _mean_and_sd([test[name] for test in tests]) for name in tests[0]},
    }


def _mean_and_sd(values: Sequence[float | None]) -> dict[str, float] | None:
    if None in values:
        return None
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}


def log_summary(result: Mapping[str, Any]) -> None:
    """Says the figures over all folds."""
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


def _of_fold(config: ConfigDict, number: int) -> ConfigDict:
    one = config.copy_and_resolve_references()
    one.data.fold = number
    return one


def _checked(config: ConfigDict, folder: pathlib.Path) -> Dataset:
    """The whole data set, once every fold of it was seen to be possible: not the last after days of training."""
    dataset = datasets.load(config)
    splits = {
        # Without the images, which each fold would copy.
        name: dataclasses.replace(split, images=np.zeros((len(split), 0), np.uint8))
        for name, split in dataset.splits.items()
    }
    for number in range(config.data.folds):
        datasets.fold_of(dataclasses.replace(dataset, splits=splits), config, number, _folds_in(folder))
    return dataset


def _folds_in(folder: pathlib.Path) -> pathlib.Path | None:
    return folder / FOLDS if (folder / FOLDS).exists() else None


def _check_folds_file(config: ConfigDict, folder: pathlib.Path) -> None:
    """Raises UserError where `data.folds_file` has other folds than the run began with: its place may change."""
    name, copy = config.data.folds_file, folder / FOLDS
    if not name:
        return
    if copy.is_file():
        same = pathlib.Path(name).expanduser().read_bytes() == copy.read_bytes()
    else:
        # The splits of a user's own data have a fingerprint.
        same = config.data.source or workdir.named_before(folder, "data", "folds_file") in (None, name)
    if not same:
        raise UserError(
            f"config field data.folds_file: {name} has other folds than {copy}, with which the run began: give the"
            " same, or another --workdir"
        )


def _prepare(dataset: Dataset, together: ConfigDict, folder: pathlib.Path) -> None:
    """Notes the config of all folds, and who is in which."""
    workdir.create(folder, together)
    if not together.data.folds_file:
        datasets.fold_of(dataset, together, 0, folder / FOLDS)
    elif not (folder / FOLDS).exists():
        with io.replacing(folder / FOLDS) as temporary:
            shutil.copyfile(pathlib.Path(together.data.folds_file).expanduser(), temporary)


def _check_alike(results: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> None:
    """Raises UserError where folds were run with other weights or data than each other.

    Their configs are the same already.
    """
    if len({result["data_sha256"] for result in results}) > 1:
        raise UserError(
            f"the data changed while the folds in {folder} were run: remove those of before and run again, or give"
            " another --workdir"
        )
    for role in ROLES:
        found = {(result.get(role) or {}).get("sha256") for result in results}
        # Random parts are drawn from the same seed.
        if len(found) > 1:
            raise UserError(
                f"the folds in {folder} were run with different weights ({role}): remove those of the wrong one and run"
                " again, or give another --workdir"
            )
