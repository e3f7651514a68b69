"""Checks the data and the weights of a study before its first run.

Fingerprints show whether the data changed since its start, and figures about the data go into its report.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxboost import systems
from jaxboost.config import combinations
from jaxboost.config.model_fields import ZERO_SHOT
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset, DatasetInfo, join_splits
from jaxboost.data.splits import near_duplicates, stratify
from jaxboost.errors import UserError
from jaxboost.evaluation.patients import PATIENT
from jaxboost.runs import assembly, datasets
from jaxboost.studies.definition import DataDefinition
from jaxboost.studies.finished_run import FinishedRun
from jaxboost.studies.plan import PlannedRun

# Larger data sets are not searched for near duplicates: it would take minutes.
_MOST_COMPARED = 5000
# Fields of `config.data` that do not tell one data set from another: paths, and how it is divided.
_LEFT_OUT = (
    *("root", "masks", "folds_file", "fold", "train_fraction", "max_pixels", "max_voxels", "cache", "cache_gb"),
)

# Fields of the systems' own sections that decide which weights are read.
_WEIGHTS = (
    *("kind", "used", "family", "block", "source", "convert", "layers", "control", "final_norm", "weights"),
    *("vision", "vision_source", "vision_convert", "text", "context", "qformer", "qformer_source", "qformer_convert"),
    *("question", "adapter"),
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
            seen[text] = _without_images(dataset)
            digests = fingerprint(dataset, run.config)
            if text not in found:
                found[text] = DataDefinition(about=text, fingerprint=digests, figures=figures(dataset))
            elif found[text].fingerprint != digests:
                raise UserError(_changed(found[text].figures, dataset, run.config, folder))
        texts = combinations.data_problems(run.config, seen[text].info)
        texts = texts or _splits_problem(run.config, seen[text])
        texts = texts or _weights_problem(run.config, seen[text].info, weights)
        for problem in texts:
            arms = problems.setdefault(problem, [])
            if run.arm.name not in arms:
                arms.append(run.arm.name)
    if problems:
        named = [f"arm{'s' * (len(arms) > 1)} {', '.join(arms)}: {problem}" for problem, arms in problems.items()]
        raise UserError("; ".join(named))
    return tuple(found.values())


def _without_images(dataset: Dataset) -> Dataset:
    """The data set for checks: the images of several data sets might not fit into memory."""
    splits = {
        name: dataclasses.replace(split, images=np.zeros((len(split), 0), np.uint8))
        for name, split in dataset.splits.items()
    }
    return Dataset(info=dataset.info, splits=splits, baselines={})


def _splits_problem(config: Config, dataset: Dataset) -> list[str]:
    """What does not suit the splits of a run, such as a batch that is larger than the training split."""
    # A baseline has no batches, and folds are divided when they run.
    if "baseline" in config or config.data.folds:
        return []
    try:
        assembly.check_splits(config, datasets.fraction_of(dataset, config))
    except UserError as error:
        return [str(error)]
    return []


def _weights_problem(config: Config, info: DatasetInfo, known: dict[str, str]) -> list[str]:
    """Finds the pretrained weights of a config, or converts them if it asks for that; returns what is wrong."""
    # Of baselines only the prompts are checked, which must be for the classes of the data.
    if "baseline" in config and config.baseline.classifier != ZERO_SHOT:
        return []
    systems_own = ("boost", "pneumollm", "llama", "clip", "blip2", "baseline")
    sections = [config[name].to_dict() for name in systems_own if name in config]
    fields = [config.model.get(name) for name in ("backbone", "weights", "weights_source", "weights_convert")]
    # Most arms have the weights of another arm, and tracing a model takes seconds.
    key = repr([*fields, info.classes, [{name: each.get(name) for name in _WEIGHTS} for each in sections]])
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
    # Studies of earlier versions do not have this field.
    if not fields.get("columns"):
        fields.pop("columns", None)
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
    duplicates = near_duplicate_images(dataset)
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
        **({"excluded": dict(info.excluded)} if info.excluded else {}),
        **({"near_duplicates": duplicates} if duplicates else {}),
    }


def near_duplicate_images(dataset: Dataset) -> str:
    """How many near-duplicate images of different patients are in different splits, in words; "" if not searched."""
    splits = list(dataset.splits.values())
    images = [split.images for split in splits]
    count = sum(map(len, splits))
    if len(splits) < 2 or count > _MOST_COMPARED or any(each.ndim < 4 or each.dtype != np.uint8 for each in images):
        return ""
    owners = [f"{name} {row}" for name, split in dataset.splits.items() for row in range(len(split))]
    if all(split.groups is not None for split in splits):
        owners = np.concatenate([split.groups for split in splits])
    patients = np.unique(owners, return_inverse=True)[1].reshape(-1)
    sides = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    search = near_duplicates.find(join_splits(splits).images, patients, sides)
    return f"{len(search.pairs)} pairs in different splits" + (f"; {search.gap}" if search.gap else "")


def prevalence(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Class -> fraction of the samples that have it, of labels (n, L)."""
    return {name: round(float(has.mean()), 6) for name, has in stratify.members(labels, classes).items()}


def _with_splits(config: Config, folder: pathlib.Path) -> Dataset:
    """The data set with all its training samples, divided as a run divides it; with folds it has one split."""
    whole = with_overrides(config, {"data.train_fraction": 1.0})
    if config.data.folds:
        return datasets.load(whole)
    return datasets.own_splits(whole, folder / "no run").load()


def _changed(before: Mapping[str, Any], now: Dataset, config: Config, folder: pathlib.Path) -> str:
    sizes = {name: len(split) for name, split in now.splits.items()}
    counts = [_counted(each) for each in (before.get("splits", {}), sizes)]
    how = f"{counts[0]} then, {counts[1]} now" if counts[0] != counts[1] else "as many samples, with other content"
    where = f" in {config.data.root}" if config.data.root else ""
    return (
        f"the data {now.info.name}{where} have changed since the study in {folder} began ({how}): bring the data"
        " back, or give another --out"
    )


def _counted(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sizes.items())


def of_record(model: FinishedRun, known: Sequence[DataDefinition]) -> dict[str, Any]:
    """Entries about the data, see `record.Record.data`: those of study.json, else what a run tells.

    Args:
      model: a run of the record.
      known: the data sets of study.json.
    """
    content, source = model.result, model.result["config"]["data"]["source"]
    entries: dict[str, Any] = {
        "name": content["dataset"],
        "source": source or "published",
        "size": content["config"]["data"]["size"],
        "splits": content.get("splits") or {split: len(items.names) for split, items in model.items.items()},
        "patients": {
            split: len(np.unique(items.patients))
            for split, items in model.items.items()
            if (items.patients != items.names).any()
        },
        "prevalence": {split: prevalence(items.labels, content["classes"]) for split, items in model.items.items()},
        "sha256": content.get("data_sha256"),
    }
    if model.per_patient:
        entries["unit"] = PATIENT
    if not source:
        # An earlier version may have had a data set that is not there any more.
        with contextlib.suppress(UserError):
            info = datasets.describe(ConfigDict(_with_tuples(content["config"])))
            entries |= {"ndim": info.ndim, "license": info.license}
    for each in known:
        if each.figures.get("name") == content["dataset"]:
            whole, labels = each.fingerprint.get("data"), each.fingerprint.get("labels")
            # Of a published data set the labels of the splits have a digest, and the images none.
            digest = entries["sha256"] or whole or (f"{labels} (of the labels)" if labels else None)
            return entries | each.figures | {"sha256": digest}
    return entries


def _with_tuples(value: Any) -> Any:
    """Turns lists, as JSON has them, into tuples, as a config has them."""
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value
