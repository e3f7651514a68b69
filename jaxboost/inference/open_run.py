"""A finished run, rebuilt from its folder: its model with the weights of the best epoch, to predict with."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxboost import schema
from jaxboost.config import continuing, validation
from jaxboost.data.dataset import MULTI_LABEL, DatasetInfo, Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.readers import arrays
from jaxboost.data.sources.folder.inputs import Preparation
from jaxboost.errors import UserError, check_choice
from jaxboost.evaluation import evaluate
from jaxboost.evaluation.prediction_table import Labels, threshold_from_json
from jaxboost.models.classifier import BACKBONES
from jaxboost.models.frozen import Tree, count
from jaxboost.runs import datasets, workdir
from jaxboost.runs.result_schema import Config, LlamaArguments
from jaxboost.systems import encoders, experiment, systems
from jaxboost.systems.experiment import Experiment
from jaxboost.systems.pretrained import RANDOM, ROLES
from jaxboost.training import loop, step
from jaxboost.training.checkpoints import checkpoint_folder

# Where frozen weights may lie elsewhere than when the run was made: the weights are held to their fingerprint.
PLACES = ("model.weights", "boost.block", "pneumollm.vision", "llama.block")
# Fields of the section model that R-LLM alone has.
_OF_BOOSTED = ("weights", "weights_source", "weights_convert", "frozen", "drop_path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run's model and weights.

    Attributes:
      folder: of the run.
      config, result: its config.json, and its result.json.
      labels, preparation: what the outputs mean, and how the inputs are made.
      experiment: see `systems.prepare`.
      weights: (trained, frozen, statistics), on all local devices.
      replicated, by_batch: see `step.make_mesh`.
    """

    folder: pathlib.Path
    config: ConfigDict
    result: dict[str, Any]
    labels: Labels
    preparation: Preparation
    experiment: Experiment
    weights: tuple[Tree, Tree, Tree]
    replicated: jax.NamedSharding
    by_batch: jax.NamedSharding

    @property
    def batch_size(self) -> int:
        """That the run was evaluated with."""
        return self.config.eval.batch_size

    def probabilities(self, images: np.ndarray, *, batch_size: int = 0) -> np.ndarray:
        """(n, classes) of uint8 images (n, S, S, C) or volumes (n, S, S, S, 1) as `inputs.read` gives them.

        Args:
          batch_size: images at once, rounded up to a multiple of the devices; 0: as the run was evaluated.
        """
        devices = self.by_batch.mesh.size
        size = -(-(batch_size or self.batch_size) // devices) * devices
        # The evaluation step gives losses too; the labels that they are of do not matter.
        columns = len(self.labels.classes) if self.labels.task == MULTI_LABEL else 1
        split = Split(images=images, labels=np.zeros((len(images), columns), np.int64))
        return evaluate.predict(
            self._step,
            split,
            batch_size=size,
            image_size=self.config.model.image_size,
            augment=Augment(resize=self.config.augment.resize),
            by_batch=self.by_batch,
        )[1]

    @functools.cached_property
    def _step(self) -> Callable[[step.Batch], tuple[jax.Array, jax.Array]]:
        objective = step.Objective(task=self.labels.task, classes=len(self.labels.classes), loss=self.config.train.loss)
        return step.make_eval_step(self.experiment.graphdef, objective, self.replicated)(*self.weights)


def open_run(folder: pathlib.Path, places: Sequence[str] = ()) -> FinishedRun:
    """The finished run in `folder`.

    Args:
      places: "FIELD=DIR", where the frozen weights of a config field of PLACES are now.

    Raises:
      UserError: it is no run, is not finished or is a whole cross-validation; weights are missing or are others.
    """
    config, result = _read(folder)
    _replace(config, places)
    info = DatasetInfo(
        name=result["dataset"],
        task=result["task"],
        classes=tuple(result["classes"]),
        channels=1,
        ndim=2 if "pneumollm" in config else BACKBONES[config.model.backbone].ndim,
        size=config.data.size,
        n_samples={},
        license="",
    )
    best = folder / checkpoint_folder.FOLDER / checkpoint_folder.BEST / str(result["selection"]["step"])
    if not best.is_dir():
        raise UserError(f"{folder}: the weights of the best epoch are missing, {best}: they were moved or removed")
    loop.keep_compiled_programs(config.train.compilation_cache)
    # What was trained on comes from the checkpoint as a whole.
    trained = {role: _with_tuples(result[role]) for role in ROLES if result.get(role)}
    _check_trained(folder, config, trained)
    built = systems.prepare(config, info, trained=trained)
    _check_size(folder, built, result)
    replicated, by_batch = step.make_mesh()
    params, frozen, stats, fingerprints = experiment.initialise(built, seed=config.seed, replicated=replicated)
    _check_fingerprints(folder, built, fingerprints, result)
    params, stats = checkpoint_folder.restore_best(
        folder / checkpoint_folder.FOLDER,
        int(best.name),
        params,
        stats,
        sha256=result["selection"].get("sha256", ""),
        fix="bring the folder back from a backup, or train again",
    )
    return FinishedRun(
        folder=folder,
        config=config,
        result=result,
        labels=Labels(classes=info.classes, task=info.task, threshold=threshold_from_json(result["threshold"])),
        preparation=_preparation(config, info.ndim),
        experiment=built,
        weights=(params, frozen, stats),
        replicated=replicated,
        by_batch=by_batch,
    )


def _read(folder: pathlib.Path) -> tuple[ConfigDict, dict[str, Any]]:
    """The run's config, as far as a prediction needs it, and its result."""
    if not folder.is_dir():
        raise UserError(f"--run {folder}: there is no such folder: give that of a finished run, or of an export")
    contents: dict[str, dict[str, Any]] = {}
    for name in (workdir.CONFIG, workdir.RESULT):
        if (folder / name).exists():
            try:
                contents[name] = workdir.read(folder / name)
            except ValueError as error:
                raise UserError(
                    f"{folder / name} is damaged ({error}): give the run's training command again, it writes the file"
                    " anew from the checkpoints"
                ) from error
    if workdir.CONFIG not in contents and contents:
        raise UserError(
            f"{folder / workdir.CONFIG} is missing: give the run's training command again, it writes the file anew"
        )
    if workdir.CONFIG not in contents:
        raise UserError(f"--run {folder} is neither a run nor an export: it has no config.json and no export.json")
    result = contents.get(workdir.RESULT)
    where = str(folder / workdir.CONFIG)
    parsed = schema.parse(Config, contents[workdir.CONFIG], where=where, fix="bring it back from a backup")
    config = ConfigDict(_without_none(dataclasses.asdict(parsed)))
    validation.check_numbers(config)
    if ("boost" in config) == ("pneumollm" in config and "llama" in config):
        raise UserError(f"{where} is not the config of a run: it should have either boost, or pneumollm and llama")
    if "boost" in config:
        lacking = [name for name in _OF_BOOSTED if name not in config.model]
        if lacking:
            raise UserError(f"{where} is not the config of a run: model lacks {', '.join(lacking)}")
        check_choice(config.model.backbone, BACKBONES, f"{where}: model.backbone")
    if config.data.folds and config.data.fold == datasets.ALL_FOLDS:
        raise UserError(f"--run {folder} is a whole cross-validation: give one of its folds, such as {folder}/fold0")
    if result is None:
        raise UserError(f"--run {folder} is not finished, it has no result.json: run its training command again")
    saved = continuing.held(contents[workdir.CONFIG]), continuing.held(result["config"])
    if "folds" in result or (differing := continuing.differing(*saved)):
        what = "is that of a cross-validation" if "folds" in result else f"differs in {', '.join(differing)}"
        raise UserError(
            f"{where} was altered, the config in {workdir.RESULT} {what}: bring it back from a backup, or train again"
        )
    return config, result


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    """Without the sections and fields that the run's system does not have."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if value is not None
    }


def _check_trained(folder: pathlib.Path, config: ConfigDict, trained: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where the arguments of a pretrained part in result.json do not fit its model."""
    where = f"{folder / workdir.RESULT}: the arguments of"
    fix = "bring it back from a backup, or train again"
    if (block := trained.get("block")) and config.boost.trainable:
        parsed = schema.parse(LlamaArguments, block.get("arguments"), where=f"{where} block", fix=fix)
        if parsed.heads % parsed.kv_heads or block.get("layers") is None:
            raise UserError(f"{where} block do not fit together: {fix}")
    if encoder := trained.get("encoder"):
        arguments = encoder.get("arguments") or {}
        differing = encoders.differing(config.model.backbone, arguments)
        eps = arguments.get("eps")
        if not (isinstance(eps, int | float) and 0 < eps <= 1):
            differing.append(f"eps {eps}, not a small number")
        if encoder["source"] != RANDOM and differing:
            raise UserError(f"{where} encoder are not those of {config.model.backbone}: {', '.join(differing)}: {fix}")


def _check_size(folder: pathlib.Path, built: Experiment, result: dict[str, Any]) -> None:
    """Raises UserError where the model is not of the size that the result is of, before anything large is made."""
    for name, weights in (("trainable", built.params), ("frozen", built.frozen)):
        if (found := count(weights)) != result["parameters"][name]:
            raise UserError(
                f"{folder}: config.json gives a model of {found:,} {name} parameters, result.json is of one with"
                f" {result['parameters'][name]:,}: one of them was altered, bring it back from a backup"
            )


def _with_tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _replace(config: ConfigDict, places: Sequence[str]) -> None:
    known = [name for name in PLACES if name.split(".")[1] in config.get(name.split(".")[0], {})]
    for place in places:
        field, equals, value = place.partition("=")
        if not (equals and value):
            raise UserError(f"--set {place}: give FIELD=DIR, such as {known[-1]}=weights/block")
        check_choice(field, known, "--set")
        config.update_from_flattened_dict({field: value})


def _check_fingerprints(
    folder: pathlib.Path, built: Experiment, fingerprints: dict[str, str], result: dict[str, Any]
) -> None:
    """Raises UserError where frozen weights are not the run's."""
    for part in built.pretrained:
        expected, found = (result.get(part.role) or {}).get("sha256", ""), fingerprints[part.role]
        if found == expected:
            continue
        where = f"{folder} was made with the {part.role} {expected[:12] or 'of none'}, not {found[:12]}"
        if part.about["source"] == RANDOM:
            raise UserError(
                f"{where}: random frozen weights can come out otherwise on another device or version, and the run's"
                f" were made on {result['versions']['device']} with jax {result['versions']['jax']}: predict there,"
                " or export the run there"
            )
        raise UserError(f"{where}: give the folder of the former with --set, for its config's field")


def _preparation(config: ConfigDict, ndim: int) -> Preparation:
    data = config.data
    return Preparation(
        ndim=ndim,
        size=data.size,
        window=tuple(data.window),
        spacing=data.spacing,
        masked=bool(data.masks),
        image_size=config.model.image_size,
        resize=config.augment.resize,
        nan=arrays.nan_value(data.nan),
        max_pixels=data.max_pixels,
        max_voxels=data.max_voxels,
    )
