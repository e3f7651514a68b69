"""One run of a baseline: from a config to result.json, without gradient training."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxboost import io, stopping, systems
from jaxboost.baselines import classifiers, embeddings, features, saved
from jaxboost.baselines.classifiers import Choice
from jaxboost.baselines.problem import Data
from jaxboost.config import combinations
from jaxboost.config.model_fields import ZERO_SHOT
from jaxboost.config.types import Config
from jaxboost.convert import text_encoders
from jaxboost.convert.text_encoders import ClassTexts
from jaxboost.data import columns
from jaxboost.data.dataset import Dataset
from jaxboost.evaluation import metrics, patients, thresholds
from jaxboost.models.frozen import count
from jaxboost.runs import datasets, memory, report, workdir
from jaxboost.runs.result import Parameters, Selection
from jaxboost.systems import start
from jaxboost.systems.baseline import reads_columns
from jaxboost.training import step
from jaxboost.training.cache import keep_compiled_programs

logger = logging.getLogger(__name__)


def complete(
    config: Config, folder: pathlib.Path, splits: datasets.Splits | None, check_lock: Callable[[], None]
) -> dict[str, Any]:
    """Runs a baseline that is not finished; see `train.train_and_evaluate`.

    Args:
      config, folder, splits: see `train.train_and_evaluate`.
      check_lock: see `active_run.ActiveRun`.

    Returns:
      The content of result.json.

    Raises:
      UserError: a mistake in the config, the data or the weights.
      Stopped: a signal came. The same command then goes on with the embeddings that were computed.
    """
    started, peak = time.monotonic(), memory.Peak()
    step.check_batch_size(config.eval.batch_size, "eval.batch_size")
    keep_compiled_programs(True)
    info = datasets.describe(config)
    combinations.check_data(config, info)
    system = systems.prepare(config, info)
    splits = splits or datasets.own_splits(config, folder)
    dataset = columns.encoded(splits.load(), config.data.columns if reads_columns(config) else ())
    patients.check(dataset, unit=config.eval.unit)
    if config.eval.specificity:
        thresholds.check_both_classes(dataset, "val")
    # Before the encoder runs: a damaged folder is told at once.
    of_classes = _class_texts(config, dataset)
    replicated, by_batch = step.make_mesh()
    *weights, fingerprints = start.initialise(system, seed=config.seed, replicated=replicated)
    fingerprints |= datasets.fingerprint(dataset, config)
    with io.writing(splits.folder):
        splits.prepare()
    with io.writing(folder):
        workdir.create(folder, config)
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    logger.info("%s: %s; %d classes (%s)", dataset.info.name, sizes, len(dataset.info.classes), dataset.info.task)
    logger.info("%s: %s frozen parameters", system.title, f"{count(system.frozen):,}")
    encode = embeddings.make_encode(system, (weights[0], weights[1], weights[2]), replicated)
    cache = io.user_path(config.baseline.cache) if config.baseline.cache else splits.folder
    found = _features(config, dataset, encode, by_batch, cache, str(fingerprints.get("encoder")))
    found = {name: features.with_columns(each, dataset.splits[name].columns) for name, each in found.items()}
    choice = _choose(config, dataset, found, of_classes)
    stopping.poll()
    # The only place where the classifier sees the test split.
    scores = {name: choice.classifier.probabilities(found[name]) for name in ("val", "test")}
    check_lock()
    with io.writing(folder):
        sha256 = saved.save(folder, choice.classifier, channels=dataset.info.channels)
        report.write_predictions(folder, scores, dataset, config)
    result = report.make_result(
        system,
        dataset,
        config,
        fingerprints=fingerprints,
        scores=scores,
        selection=Selection(
            split="val", metric=config.eval.metric, value=choice.value, chosen=choice.hyper, sha256=sha256
        ),
        steps=None,
        seconds=round(time.monotonic() - started, 1),
        memory_gb=peak.gigabytes(),
    )
    kind = config.baseline.features
    result = dataclasses.replace(
        result,
        model=config.model.backbone if kind == "encoder" else kind,
        parameters=Parameters(trainable=choice.classifier.numbers, frozen=count(system.frozen)),
        versions=result.versions | {"scikit-learn": metadata.version("scikit-learn")},
    )
    check_lock()
    with io.writing(folder):
        content = workdir.write_result(folder, result)
    report.log_result(result)
    return content


def _features(
    config: Config,
    dataset: Dataset,
    encode: embeddings.Encode,
    by_batch: jax.NamedSharding,
    cache: pathlib.Path,
    fingerprint: str,
) -> dict[str, np.ndarray]:
    """Returns split -> features of the images (n, F)."""
    kind = config.baseline.features
    if kind in features.OF_NO_IMAGE:
        return {name: np.zeros((len(split), 0)) for name, split in dataset.splits.items()}
    if kind == "trivial":
        channels = dataset.info.channels
        return {name: features.trivial(split.images, channels) for name, split in dataset.splits.items()}
    model, splits = config.model, dict(dataset.splits)
    if config.baseline.classifier == ZERO_SHOT:
        # It is fitted to nothing.
        del splits["train"]
    found = embeddings.of_dataset(
        dataclasses.replace(dataset, splits=splits),
        encode,
        batch_size=config.eval.batch_size,
        image_size=model.image_size,
        by_batch=by_batch,
        slices=embeddings.slices_along_axis(config),
        folder=cache,
        # What the encoder computes depends on all of these.
        key=f"{fingerprint} embedding {model.image_size} {tuple(model.mean)} {tuple(model.std)} {model.dtype}",
    )
    return {name: found.get(name, np.zeros((len(split), 0))) for name, split in dataset.splits.items()}


def _class_texts(config: Config, dataset: Dataset) -> ClassTexts | None:
    """What the text encoder made of the classes; None: the classifier reads no prompts."""
    fields = config.baseline
    if fields.classifier != ZERO_SHOT:
        return None
    return text_encoders.load_classes(io.user_path(fields.text), dataset.info.classes)


def _choose(config: Config, dataset: Dataset, found: dict[str, np.ndarray], of_classes: ClassTexts | None) -> Choice:
    """Fits the classifier with the hyper-parameters that are best on validation."""
    train, val, task = dataset.splits["train"], dataset.splits["val"], dataset.info.task
    data = Data(
        features=found["train"],
        labels=train.labels,
        val_features=found["val"],
        val_labels=val.labels,
        task=task,
        classes=len(dataset.info.classes),
        seed=config.seed,
        texts=of_classes,
    )

    def score(probabilities: np.ndarray) -> float:
        counted = patients.counted(val, probabilities, task, unit=config.eval.unit)
        return metrics.score(counted.labels, counted.probabilities, task)[config.eval.metric]

    choice = classifiers.choose(config.baseline.classifier, data, score)
    for hyper, value in choice.tried if len(choice.tried) > 1 else []:
        logger.info("%s: val %s %.4f", report.hyper_text(hyper), config.eval.metric.upper(), value)
    return choice
