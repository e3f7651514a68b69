"""What is said of a run: the lines at its start and end, the prediction files, and the content of result.json."""

import csv
import io
import logging
import pathlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxboost
from jaxboost.data.dataset import MULTI_LABEL, Dataset
from jaxboost.evaluation import evaluate, metrics, thresholds
from jaxboost.io import write_text
from jaxboost.models.frozen import count, mib
from jaxboost.runs import workdir
from jaxboost.systems import System

REFERENCE_WARNING = (
    "protocol reference: the epoch is picked on the test split, as in the paper's released code;"
    " the test figures are optimistic and only good for comparison with it"
)

logger = logging.getLogger(__name__)


def log_start(system: System, dataset: Dataset, config: ConfigDict) -> None:
    """Says what is trained on what."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    logger.info("%s: %s; %d classes (%s)", dataset.info.name, sizes, len(dataset.info.classes), dataset.info.task)
    logger.info(
        "%s: %s trainable parameters (%.2f MiB), %s frozen",
        system.title,
        f"{count(system.params):,}",
        mib(system.params),
        f"{count(system.frozen):,}",
    )
    devices = jax.local_devices()
    logger.info("%d x %s, seed %d", len(devices), devices[0].device_kind, config.seed)
    if config.eval.protocol == "reference":
        logger.warning(REFERENCE_WARNING)


def describe_run(
    system: System, dataset: Dataset, config: ConfigDict, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """The part of result.json that says what was run.

    Args:
      fingerprints: of the pretrained parts, by their role, and of a user's own data set as "data" and
        "splits".
    """
    parts = {part.role: {**part.about, "sha256": fingerprints[part.role]} for part in system.pretrained}
    reference = config.eval.protocol == "reference"
    return {
        "dataset": dataset.info.name,
        "task": dataset.info.task,
        "classes": list(dataset.info.classes),
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "seed": config.seed,
        "protocol": config.eval.protocol,
        "warning": REFERENCE_WARNING if reference else None,
        **system.summary,
        "parameters": {
            "trainable": count(system.params),
            "frozen": count(system.frozen),
            "trainable_mib": round(mib(system.params), 2),
        },
        **parts,
        "data_sha256": fingerprints.get("data"),
        "splits_sha256": fingerprints.get("splits"),
        "config": workdir.to_dict(config),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes here, and its device."""
    return {
        "python": platform.python_version(),
        "device": jax.local_devices()[0].device_kind,
        "jaxboost": jaxboost.__version__,
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")},
    }


def score_splits(scores: Mapping[str, np.ndarray], dataset: Dataset, *, resamples: int) -> dict[str, Any]:
    """Figures of each split with 95 % intervals, and what a single given score reaches on the test split.

    Args:
      scores: split -> probabilities (n, classes).
    """
    from sklearn.metrics import roc_auc_score

    result: dict[str, Any] = {}
    task = dataset.info.task
    for name, probabilities in scores.items():
        labels = dataset.splits[name].labels
        result[name] = {
            **metrics.score(labels, probabilities, task),
            "n": len(labels),
            "ci95": metrics.intervals(labels, probabilities, task, resamples=resamples),
        }
    labels = dataset.splits["test"].labels[:, 0]
    result["baselines"] = {
        name: {"auc": float(roc_auc_score(labels, values["test"]))} for name, values in dataset.baselines.items()
    }
    return result


def score_threshold(
    scores: Mapping[str, np.ndarray], dataset: Dataset, selection: str, specificity: float
) -> dict[str, Any] | None:
    """The threshold that a split has for a specificity, and what it gives on all splits; None where none is asked for.

    Args:
      scores: split -> probabilities (n, 2).
      selection: the split that picks it, as it picks the epoch.
    """
    if not specificity:
        return None
    found = {name: (dataset.splits[name].labels[:, 0], values[:, 1]) for name, values in scores.items()}
    value = thresholds.choose_threshold(*found[selection], specificity)
    figures = {name: thresholds.score_at(labels, values, value) for name, (labels, values) in found.items()}
    return {"split": selection, "specificity": specificity, "value": value, **figures}


def write_predictions(
    folder: pathlib.Path, scores: Mapping[str, np.ndarray], dataset: Dataset, config: ConfigDict
) -> None:
    """Writes MedMNIST's standard prediction file of each split; the reference protocol is marked in its name.

    Where samples have names, `{split}.csv` says which is which: file, patient, label, and a probability per class.
    """
    mark = "reference-" if config.eval.protocol == "reference" else ""
    for split, probabilities in scores.items():
        labels = dataset.splits[split].labels
        evaluate.write_predictions(
            folder / "predictions",
            probabilities,
            name=dataset.info.name,
            size=dataset.info.size,
            split=split,
            auc=metrics.auc(labels, probabilities, dataset.info.task),
            acc=metrics.acc(labels, probabilities, dataset.info.task),
            run=f"{mark}seed{config.seed}",
        )
        if dataset.splits[split].names is not None:
            text = _named_predictions(dataset, split, probabilities)
            write_text(folder / "predictions" / f"{mark}{split}.csv", text)


def _named_predictions(dataset: Dataset, split: str, probabilities: np.ndarray) -> str:
    members, classes = dataset.splits[split], dataset.info.classes
    groups = members.names if members.groups is None else members.groups
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "patient_id", "label", *classes])
    for name, group, labels, row in zip(members.names, groups, members.labels, probabilities, strict=True):
        found = np.flatnonzero(labels) if dataset.info.task == MULTI_LABEL else labels
        label = "|".join(classes[number] for number in found)
        writer.writerow([name, group, label, *(f"{value:.9g}" for value in row)])
    return text.getvalue()


def log_result(result: Mapping[str, Any]) -> None:
    """Says the figures of result.json, with what they have to be held against."""
    selection = result["selection"]
    logger.info(
        "epoch %d has the best %s %s, %s",
        selection["epoch"],
        selection["split"],
        selection["metric"].upper(),
        _number(selection["value"]),
    )
    for split in ("val", "test"):
        if split not in result:
            continue
        figures = result[split]
        texts = [
            f"{name.upper()} {_number(figures[name])} [{', '.join(map(_number, figures['ci95'][name]))}]"
            for name in ("acc", "auc")
        ]
        texts += [
            f"{name} {_number(figures[key])}"
            for key, name in (
                ("sensitivity", "sensitivity"),
                ("specificity", "specificity"),
                ("balanced_acc", "balanced ACC"),
                ("avg", "AVG"),
            )
            if key in figures
        ]
        logger.info(
            "%s (n = %d, 95 %% intervals): %s; the majority class alone: ACC %s",
            split,
            figures["n"],
            ", ".join(texts),
            _number(figures["majority_acc"]),
        )
    if threshold := result["threshold"]:
        texts = [f"{name} {_number(value)}" for name, value in threshold["test"].items()]
        logger.info(
            "test, positive from %s on (specificity %s on %s): %s",
            _number(threshold["value"]),
            _number(threshold["specificity"]),
            threshold["split"],
            ", ".join(texts),
        )
    for name, figures in result["baselines"].items():
        logger.info("test: %s alone: AUC %s", name, _number(figures["auc"]))
    if result["warning"]:
        logger.warning(result["warning"])


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
