"""Opens a finished run: rebuilds its model with the weights of the best epoch, for predictions."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxboost import io, systems
from jaxboost.baselines import embeddings, saved
from jaxboost.config.backbone import ndim_of
from jaxboost.data import columns as clinical
from jaxboost.data.columns import Column
from jaxboost.data.dataset import DatasetInfo, MappedRows, Split
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.readers import arrays
from jaxboost.data.sources.folder.inputs import Preprocessing
from jaxboost.errors import UserError, check_choice
from jaxboost.evaluation import evaluate
from jaxboost.evaluation.prediction_table import Labels
from jaxboost.inference import exported, recorded
from jaxboost.inference import images as given_images
from jaxboost.inference.baseline_run import BaselineRun
from jaxboost.models.frozen import Tree, merge
from jaxboost.runs import finished, workdir
from jaxboost.runs.result import RunResult
from jaxboost.systems import System, start
from jaxboost.tasks import TASKS
from jaxboost.training import step
from jaxboost.training.cache import keep_compiled_programs
from jaxboost.training.checkpoints import checkpoint_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The model of a run with the weights of its best epoch, created by `open_run`.

    Attributes:
      folder: folder of the run.
      config: content of config.json, limited to the fields that a prediction needs.
      result: content of result.json.
      labels: task, class names and threshold: what the outputs mean.
      preprocessing: how images are read and resized.
      system: see `systems.prepare`.
      weights: (trained, frozen, statistics), on all local devices.
      replicated, by_batch: see `step.make_mesh`.
    """

    folder: pathlib.Path
    config: ConfigDict
    result: RunResult
    labels: Labels
    preprocessing: Preprocessing
    system: System
    weights: tuple[Tree, Tree, Tree]
    replicated: jax.NamedSharding
    by_batch: jax.NamedSharding

    @property
    def batch_size(self) -> int:
        """The batch size that the run was evaluated with."""
        return self.config.eval.batch_size

    @property
    def unit(self) -> str:
        """What the run counted, "image" or "patient", see `eval.unit`."""
        return self.config.eval.unit

    @property
    def columns(self) -> tuple[Column, ...]:
        """The clinical columns that the model reads; () if it reads none."""
        return self.result.columns or ()

    def predict(
        self, images: np.ndarray, *, columns: Mapping[str, Any] | None = None, batch_size: int = 0
    ) -> np.ndarray:
        """Probabilities float32 (n, classes), in the order of `labels.classes`.

        The images are resized and normalised as in the run's evaluation. If the run was trained on images that were
        cropped to lung masks (`preprocessing.masked`), crop the images likewise.

        Args:
          images: uint8 (n, S, S), (n, S, S, 1) or (n, S, S, 3), or volumes (n, S, S, S) or (n, S, S, S, 1); S is the
            run's `data.size`.
          columns: clinical columns, name -> n values, see `data.columns.of_values`; needed if the run was trained with
            `data.columns`, and not read otherwise.
          batch_size: images per batch, rounded up to a multiple of the number of devices; 0: the run's eval.batch_size.

        Raises:
          UserError: the images have another type or shape, columns are missing or wrong, or the batch size is negative.
        """
        images = given_images.checked(images, self.preprocessing, batch_size)
        values = clinical.of_values(self.columns, columns, len(images))
        return self.apply(self._probabilities, images, batch_size, columns=values)

    def features(
        self, images: np.ndarray, *, columns: Mapping[str, Any] | None = None, batch_size: int = 0
    ) -> np.ndarray:
        """Returns the input of the model's last linear layer, float32 (n, width). The arguments are those of `predict`.

        That is the pooled and normalised CLS token after the boost (R-LLM), the pooled feature of a ResNet, the mean of
        LLaMA's output tokens (PneumoLLM), the LLM's output at its last token (LaVIN, BLIP-2), or CLIP's embedding of
        the image, of length 1 (CoOp, CoCoOp); behind it the features of clinical columns.
        """
        images = given_images.checked(images, self.preprocessing, batch_size)
        values = clinical.of_values(self.columns, columns, len(images))
        return self.apply(self._features, images, batch_size, columns=values)

    def apply(
        self,
        function: Callable[[evaluate.Batch], Any],
        images: np.ndarray | MappedRows,
        batch_size: int = 0,
        *,
        columns: np.ndarray | None = None,
    ) -> Any:
        """The outputs of a function of a batch, as the model reads it, for all images.

        A batch has "image", uint8, and "columns", float32 (B, F), if columns are given.

        Args:
          function: gives an array (B, ...) or a tree of arrays; see `evaluate.run_batches`.
          images, batch_size: see `predict`.
          columns: features of clinical columns, float32 (n, F), or None.
        """
        images = given_images.checked(images, self.preprocessing, batch_size)
        return evaluate.run_batches(function, self._batches(images, columns, batch_size), self.by_batch)

    def _batches(
        self, images: np.ndarray | MappedRows, columns: np.ndarray | None, batch_size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        devices = self.by_batch.mesh.size
        # The pipeline requires labels; they are not used.
        width = TASKS[self.labels.task].labels_per_example(len(self.labels.classes))
        return batches.eval_batches(
            Split(images=images, labels=np.zeros((len(images), width), np.int64), columns=columns),
            batch_size=-(-(batch_size or self.batch_size) // devices) * devices,
            image_size=self.preprocessing.image_size,
            augment=Augment(resize=self.preprocessing.resize),
        )

    @functools.cached_property
    def _probabilities(self) -> Callable[[evaluate.Batch], jax.Array]:
        # The step of the run's own evaluation, so that the figures are the same.
        labels = self.labels
        objective = step.Objective(task=labels.task, classes=len(labels.classes), loss=self.config.train.loss)
        evaluated = step.make_eval_step(self.system.graphdef, objective, self.replicated)(*self.weights)
        return lambda batch: evaluated(batch)[1]

    @functools.cached_property
    def _features(self) -> Callable[[evaluate.Batch], jax.Array]:
        graphdef = self.system.graphdef
        precomputed = jax.jit(lambda *weights: merge(graphdef, *weights).precompute())(*self.weights)

        @functools.partial(jax.jit, out_shardings=self.replicated)
        def features(weights: tuple[Tree, Tree, Tree], precomputed: Any, batch: evaluate.Batch) -> jax.Array:
            model = merge(graphdef, *weights)
            return model.features(batch["image"], precomputed, **step.columns_of(batch)).astype(jnp.float32)

        return lambda batch: features(self.weights, precomputed, batch)


def open_run(
    folder: str | os.PathLike[str], moved: Sequence[str] = ()
) -> FinishedRun | BaselineRun | exported.ExportedModel:
    """Opens a finished run, or an export, for predictions. The run of a baseline is a `BaselineRun`.

    Example::

      run = jaxboost.open_run("runs/quickstart/seed0")
      probabilities = run.predict(images)  # uint8 (n, S, S, C) or (n, S, S, S, 1) -> (n, classes)
      features = run.features(images)  # -> (n, width), the input of the last linear layer; an export has none

    Args:
      folder: folder of a run, of one fold of a cross-validation, or of an export. `jaxboost.exported.load` opens an
        export without the code of models and training.
      moved: frozen weights of a run that have moved, as "FIELD=DIR", for example "boost.block=blocks/llama-7b".

    Raises:
      UserError: the folder is neither, the run is not finished or is a whole cross-validation, a file was altered, or
        weights are missing or have changed.
    """
    folder = io.user_path(folder)
    if not exported.is_export(folder):
        return _open(folder, moved)
    exported.check_not_moved(folder, moved)
    return exported.load(folder)


def _open(folder: pathlib.Path, moved: Sequence[str]) -> FinishedRun:
    config, result = finished.read(folder)
    _replace(config, moved)
    info = DatasetInfo(
        name=result.dataset,
        task=result.task,
        classes=result.classes,
        channels=1,
        ndim=ndim_of(config),
        size=config.data.size,
        columns=result.columns or (),
    )
    threshold = None if result.threshold is None else result.threshold.value
    labels = Labels(classes=info.classes, task=info.task, threshold=threshold)
    if "baseline" in config:
        return _open_baseline(folder, config, result, info, labels)
    best = folder / checkpoint_folder.FOLDER / checkpoint_folder.BEST / str(result.selection.step)
    if not os.path.isdir(best):
        raise UserError(
            f"{folder}: the weights of the best epoch are missing ({best}): restore a backup, or train again"
        )
    keep_compiled_programs(config.train.compilation_cache)
    # The parts that were trained come from the checkpoint.
    trained = {role: _with_tuples(part) for role, part in result.parts.items() if part}
    recorded.check_trained(folder, config, trained)
    built = systems.prepare(config, info, recorded=systems.Recorded(parts=trained, width=result.width))
    recorded.check_size(folder, built, result)
    replicated, by_batch = step.make_mesh()
    params, frozen, stats, fingerprints = start.initialise(built, seed=config.seed, replicated=replicated)
    recorded.check_fingerprints(folder, built, fingerprints, result)
    params, stats = checkpoint_folder.restore_best(
        folder / checkpoint_folder.FOLDER,
        int(best.name),
        params,
        stats,
        sha256=result.selection.sha256,
        fix="bring the folder back from a backup, or train again",
    )
    return FinishedRun(
        folder=folder,
        config=config,
        result=result,
        labels=labels,
        preprocessing=_preprocessing(config, info.ndim),
        system=built,
        weights=(params, frozen, stats),
        replicated=replicated,
        by_batch=by_batch,
    )


def _open_baseline(
    folder: pathlib.Path, config: ConfigDict, result: RunResult, info: DatasetInfo, labels: Labels
) -> BaselineRun:
    keep_compiled_programs(True)
    parts = {role: _with_tuples(part) for role, part in result.parts.items() if part}
    recorded.check_trained(folder, config, parts)
    built = systems.prepare(config, info, recorded=systems.Recorded(parts=parts))
    replicated, by_batch = step.make_mesh()
    *weights, fingerprints = start.initialise(built, seed=config.seed, replicated=replicated)
    recorded.check_fingerprints(folder, built, fingerprints, result)
    classifier, channels = saved.load(
        folder,
        kind=config.baseline.classifier,
        task=info.task,
        classes=len(info.classes),
        hyper=result.selection.chosen or {},
        sha256=result.selection.sha256,
    )
    return BaselineRun(
        folder=folder,
        config=config,
        result=result,
        labels=labels,
        preprocessing=_preprocessing(config, info.ndim),
        classifier=classifier,
        channels=channels,
        encode=embeddings.make_encode(built, (weights[0], weights[1], weights[2]), replicated),
        by_batch=by_batch,
    )


def _with_tuples(value: Any) -> Any:
    """Turns lists, as JSON has them, into tuples, as a config has them."""
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _replace(config: ConfigDict, moved: Sequence[str]) -> None:
    known = [
        name
        for name in workdir.WEIGHT_FOLDERS
        # What a zero-shot run needs of the text encoder is in its own folder.
        if name != "baseline.text" and name.split(".")[1] in config.get(name.split(".")[0], {})
    ]
    for entry in moved:
        field, equals, value = entry.partition("=")
        if not (equals and value):
            raise UserError(f"--set {entry}: give FIELD=DIR, such as {known[-1]}=blocks/llama-7b")
        check_choice(field, known, "--set")
        config.update_from_flattened_dict({field: value})


def _preprocessing(config: ConfigDict, ndim: int) -> Preprocessing:
    data = config.data
    return Preprocessing(
        ndim=ndim,
        size=data.size,
        window=tuple(data.window),
        spacing=data.spacing,
        masked=bool(data.masks),
        image_size=config.model.image_size,
        resize=config.augment.resize if "augment" in config else 0,
        nan=arrays.nan_value(data.nan),
        max_pixels=data.max_pixels,
        max_voxels=data.max_voxels,
    )
