"""Checks the data and the weights of a study before its first run.

Fingerprints show whether the data changed since its start, and figures about the data go into its report.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost import systems
from jaxboost.config import combinations
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset, DatasetInfo
from jaxboost.data.splits import stratify
from jaxboost.errors import UserError
from jaxboost.runs import datasets
from jaxboost.studies.definition import DataDefinition
from jaxboost.studies.plan import PlannedRun

# Fields of `config.data` that do not tell one data set from another: paths, and how it is divided.
_LEFT_OUT = ("root", "masks", "folds_file", "fold", "train_fraction", "max_pixels", "max_voxels")

# Fields of the sections about the LLM that decide which weights are read.
_WEIGHTS = (
    *("kind", "used", "family", "block", "source", "convert", "layers", "control", "final_norm", "weights"),
    *("vision", "vision_source", "vision_convert"),
)


def check(
    runs: Iterable[PlannedRun], known: Sequence[DataDefinition], folder: pathlib.Path
) -> tuple[DataDefinition, ...]:
    """Loads the data of runs that are to be done, and finds their weights.

    The data are compared with those of the study's earlier starts.

    Args:
      runs: the runs that remain.
      known: the data sets that study.json has.
      folder: of the study.

    Returns:
      All data sets of the study, those that were added now at the end.

    Raises:
      UserError: data cannot be loaded, do not suit an arm, or have changed; or weights are missing. One message has
        the problems of all arms.
    """
    found = {each.about: each for each in known}
    seen: dict[str, Dataset] = {}
    weights: dict[str, str] = {}
    problems: dict[str, list[str]] = {}
    for run in runs:
        text = about(run.config)
        if text not in seen:
            dataset = _with_splits(run.config, folder)
            # Only its description is kept.
            seen[text] = Dataset(info=dataset.info, splits={}, baselines={})
            now = DataDefinition(about=text, fingerprint=fingerprint(dataset, run.config), figures=figures(dataset))
            before = found.setdefault(text, now)
            if before.fingerprint != now.fingerprint:
                raise UserError(_changed(before, now, run.config, folder))
        texts = combinations.data_problems(run.config, seen[text].info)
        texts = texts or _weights_problem(run.config, seen[text].info, weights)
        for problem in texts:
            arms = problems.setdefault(problem, [])
            if run.arm.name not in arms:
                arms.append(run.arm.name)
    if problems:
        named = [f"arm{'s' * (len(arms) > 1)} {', '.join(arms)}: {problem}" for problem, arms in problems.items()]
        raise UserError("; ".join(named))
    return tuple(found.values())


def _weights_problem(config: Config, info: DatasetInfo, known: dict[str, str]) -> list[str]:
    """Finds the pretrained weights of a config, or converts them if it asks for that; returns what is wrong."""
    if "baseline" in config:
        return []
    sections = [config[name].to_dict() for name in ("boost", "pneumollm", "llama") if name in config]
    fields = [config.model.get(name) for name in ("backbone", "weights", "weights_source", "weights_convert")]
    # Most arms have the weights of another arm, and tracing a model takes seconds.
    key = repr([*fields, [{name: each.get(name) for name in _WEIGHTS} for each in sections]])
    if key not in known:
        try:
            systems.prepare(config, info)
            known[key] = ""
        except UserError as error:
            known[key] = str(error)
    return [known[key]] if known[key] else []


def about(config: Config) -> str:
    """Which data set a config names, as text; paths are left out, as data may move."""
    fields = {name: value for name, value in config.data.items() if name not in _LEFT_OUT}
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def fingerprint(dataset: Dataset, config: Config) -> dict[str, str]:
    """SHA-256 digests of the samples and the splits of a user's own data.

    A published data set is identified by its name: of it only the labels in each split are digested.
    """
    if found := datasets.fingerprint(dataset, config):
        return found
    labels = hashlib.sha256()
    for name, split in dataset.splits.items():
        labels.update(f"{name} {split.labels.shape}".encode())
        labels.update(np.ascontiguousarray(split.labels).tobytes())
    return {"labels": labels.hexdigest()}


def figures(dataset: Dataset) -> dict[str, Any]:
    """Entries about a data set for reports, see `record.Record.data`."""
    info = dataset.info
    return {
        "name": info.name,
        "ndim": info.ndim,
        "size": info.size,
        "license": info.license,
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "patients": {
            name: len(np.unique(split.groups)) for name, split in dataset.splits.items() if split.groups is not None
        },
        "prevalence": {name: prevalence(split.labels, info.classes) for name, split in dataset.splits.items()},
    }


def prevalence(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Class -> fraction of the samples that have it, of labels (n, L)."""
    return {name: round(float(has.mean()), 6) for name, has in stratify.members(labels, classes).items()}


def _with_splits(config: Config, folder: pathlib.Path) -> Dataset:
    """The data set with all its training samples, divided as a run divides it; with folds it has one split."""
    whole = config.copy_and_resolve_references()
    whole.data.train_fraction = 1.0
    if config.data.folds:
        return datasets.load(whole)
    return datasets.own_splits(whole, folder / "no run").load()


def _changed(before: DataDefinition, now: DataDefinition, config: Config, folder: pathlib.Path) -> str:
    counts = [_counted(each.figures) for each in (before, now)]
    how = f"{counts[0]} then, {counts[1]} now" if counts[0] != counts[1] else "as many samples, with other content"
    where = f" in {config.data.root}" if config.data.root else ""
    return (
        f"the data {now.figures['name']}{where} have changed since the study in {folder} began ({how}): bring the data"
        " back, or give another --out"
    )


def _counted(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in entries.get("splits", {}).items())
