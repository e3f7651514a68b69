"""Reports of a run: log lines at its start and end, prediction files, and the result."""

import logging
import math
import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Literal

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxboost
from jaxboost import processes
from jaxboost.config import continuing
from jaxboost.data.dataset import Dataset
from jaxboost.evaluation import metrics, patients, prediction_table, thresholds
from jaxboost.io import write_text
from jaxboost.models.frozen import count, mib
from jaxboost.runs import workdir
from jaxboost.runs.result import Figures, Parameters, Part, RunResult, Selection, Threshold
from jaxboost.statistics import intervals
from jaxboost.systems import System

REFERENCE_WARNING = (
    "protocol reference: the epoch is picked on the test split, as in the paper's released code;"
    " the test figures are optimistic and only good for comparison with it"
)
# Field of `Figures` -> its name in the log.
_LOGGED = {
    "acc": "ACC",
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_acc": "balanced ACC",
    "avg": "AVG",
}

logger = logging.getLogger(__name__)


def log_start(system: System, dataset: Dataset, config: ConfigDict, seeds: Sequence[int]) -> None:
    """Logs the model, the data, the devices, and the seeds of the runs that are trained at once."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    logger.info("%s: %s; %d classes (%s)", dataset.info.name, sizes, len(dataset.info.classes), dataset.info.task)
    logger.info(
        "%s: %s trainable parameters (%.2f MiB), %s frozen",
        system.title,
        f"{count(system.params):,}",
        mib(system.params),
        f"{count(system.frozen):,}",
    )
    devices, together = jax.devices(), processes.count()
    shared = f" in {together} processes" if together > 1 else ""
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    logger.info("%d x %s%s, %s", len(devices), devices[0].device_kind, shared, named)
    if config.eval.protocol == "reference":
        logger.warning(REFERENCE_WARNING)


def make_result(
    system: System,
    dataset: Dataset,
    config: ConfigDict,
    *,
    fingerprints: Mapping[str, str],
    scores: Mapping[str, np.ndarray],
    selection: Selection,
    steps: int | None,
    seconds: float,
    seconds_by_part: Mapping[str, float] | None = None,
    memory_gb: float | None = None,
) -> RunResult:
    """Creates the result of a run.

    Args:
      system: the model.
      dataset: the data set with its splits.
      config: config of the run.
      fingerprints: role -> fingerprint of each pretrained part; for a user's own data set also "data" and "splits".
      scores: split -> probabilities (n, classes), for all splits except "train".
      selection: the best epoch.
      steps: number of training steps; None if there were none.
      seconds: duration of the run.
      seconds_by_part: the same by part, see `Clock.parts`; None or {}: not known.
      memory_gb: the most memory that it held; None if it is not known.
    """
    parts = {part.role: Part(**part.about, sha256=fingerprints[part.role]) for part in system.pretrained}
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    # All figures are over images or over patients, as the config says.
    dataset, scores = patients.pooled(dataset, scores, unit=config.eval.unit)
    figures = _figures(scores, dataset, resamples=config.eval.bootstrap)
    return RunResult(
        dataset=dataset.info.name,
        task=dataset.info.task,
        classes=dataset.info.classes,
        splits=sizes,
        seed=config.seed,
        protocol=config.eval.protocol,
        warning=REFERENCE_WARNING if config.eval.protocol == "reference" else None,
        model=config.model.backbone,
        boost=system.boost,
        width=system.width,
        encoder=parts.get("encoder"),
        block=parts.get("block"),
        vision=parts.get("vision"),
        llama=parts.get("llama"),
        text=parts.get("text"),
        question=parts.get("question"),
        qformer=parts.get("qformer"),
        parameters=Parameters(
            trainable=count(system.params),
            frozen=count(system.frozen),
            trainable_mib=round(mib(system.params), 2),
        ),
        data_sha256=fingerprints.get("data"),
        splits_sha256=fingerprints.get("splits"),
        columns_sha256=fingerprints.get("columns"),
        columns=tuple(dataset.info.columns) or None,
        config=continuing.to_dict(config),
        versions=versions(),
        selection=selection,
        val=figures.get("val"),
        test=figures["test"],
        baselines=_baselines(dataset),
        threshold=_threshold(scores, dataset, selection.split, config.eval.specificity),
        steps=steps,
        seconds=seconds,
        seconds_by_part={name: round(value, 2) for name, value in (seconds_by_part or {}).items()} or None,
        memory_gb=memory_gb,
    )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages, and the kind of device."""
    return {
        "python": platform.python_version(),
        "device": jax.local_devices()[0].device_kind,
        "jaxboost": jaxboost.__version__,
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")},
    }


def write_predictions(
    folder: pathlib.Path, scores: Mapping[str, np.ndarray], dataset: Dataset, config: ConfigDict
) -> None:
    """Writes the prediction files of each split to `folder`/predictions.

    These are MedMNIST's standard file, and `{split}.csv` with file, patient, label and the probability of each class.
    Samples without names are called `test/0`, ... With the protocol `reference` the file names contain "reference-".

    Args:
      folder: folder of the run.
      scores: split -> probabilities (n, classes).
      dataset: the data set with its labels.
      config: config of the run.
    """
    info, mark = dataset.info, "reference-" if config.eval.protocol == "reference" else ""
    for split, probabilities in scores.items():
        labels = dataset.splits[split].labels
        prediction_table.write_medmnist(
            folder / workdir.PREDICTIONS,
            probabilities,
            name=info.name,
            size=info.size,
            split=split,
            auc=metrics.auc(labels, probabilities, info.task),
            acc=metrics.acc(labels, probabilities, info.task),
            run=f"{mark}seed{config.seed}",
        )
        text = prediction_table.named_table(dataset, split, probabilities)
        write_text(folder / workdir.PREDICTIONS / f"{mark}{split}.csv", text)


def log_result(result: RunResult) -> None:
    """Logs the metrics of a result, next to baselines for comparison."""
    selection = result.selection
    what = f"epoch {selection.epoch}" if selection.chosen is None else hyper_text(selection.chosen)
    logger.info(
        "%s has the best %s %s, %s",
        what or "the classifier",
        selection.split,
        selection.metric.upper(),
        _number(selection.value),
    )
    for split, figures in (("val", result.val), ("test", result.test)):
        if figures is None:
            continue
        found = {name: getattr(figures, name) for name in _LOGGED}
        texts = [
            f"{_LOGGED[name]} {_number(value)}{_interval(figures.ci95.get(name))}"
            for name, value in found.items()
            if value is not None
        ]
        logger.info(
            "%s (n = %d, 95 %% intervals): %s; the majority class alone: ACC %s",
            split,
            figures.n,
            ", ".join(texts),
            _number(figures.majority_acc),
        )
    if threshold := result.threshold:
        logger.info(
            "test, positive from %s on (specificity %s on %s): %s",
            _number(threshold.value),
            _number(threshold.specificity),
            threshold.split,
            ", ".join(f"{name} {_number(value)}" for name, value in threshold.test.items()),
        )
    for name, baseline in result.baselines.items():
        logger.info("test: %s alone: AUC %s", name, _number(baseline["auc"]))
    if result.seconds_by_part:
        shares = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds_by_part.items())
        logger.info("%.1f seconds: %s", result.seconds, shares)
    if result.warning:
        logger.warning(result.warning)


def hyper_text(hyper: Mapping[str, float]) -> str:
    """Hyper-parameters as a line of the log has them: "C=0.01"."""
    return ", ".join(f"{name}={value:g}" for name, value in hyper.items())


def _figures(scores: Mapping[str, np.ndarray], dataset: Dataset, *, resamples: int) -> dict[str, Figures]:
    """Returns split -> metrics with 95 % intervals."""
    found = {}
    for name, probabilities in scores.items():
        split, task = dataset.splits[name], dataset.info.task
        limits, methods = intervals.split_intervals(
            split.labels, probabilities, task, groups=split.groups, resamples=resamples
        )
        values = metrics.score(split.labels, probabilities, task)
        found[name] = Figures(**values, n=len(split), ci95=limits, ci_method=methods)
    return found


def _baselines(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Returns the test AUC of each baseline score of the data set, such as the volume of a nodule."""
    if not dataset.baselines:
        return {}
    from sklearn.metrics import roc_auc_score

    labels = dataset.splits["test"].labels[:, 0]
    return {name: {"auc": float(roc_auc_score(labels, values["test"]))} for name, values in dataset.baselines.items()}


def _threshold(
    scores: Mapping[str, np.ndarray], dataset: Dataset, selection: Literal["val", "test"], specificity: float
) -> Threshold | None:
    """Chooses the operating point on the split that picks the epoch, and computes its metrics on all splits.

    Args:
      scores: split -> probabilities (n, 2).
      dataset: the data set with its labels.
      selection: the split that picks the epoch.
      specificity: the smallest accepted specificity; 0: choose no operating point and return None.
    """
    if not specificity:
        return None
    found = {name: (dataset.splits[name].labels[:, 0], values[:, 1]) for name, values in scores.items()}
    labels, positive = found[selection]
    value = thresholds.choose_threshold(labels, positive, specificity)
    figures = {name: thresholds.score_at(labels, values, value) for name, (labels, values) in found.items()}
    return Threshold(
        split=selection, specificity=specificity, value=value, val=figures.get("val"), test=figures["test"]
    )


def _interval(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f" [{', '.join(map(_number, limits))}]"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "undefined"
