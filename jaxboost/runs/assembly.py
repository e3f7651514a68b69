"""The parts of a run: data, model, weights, programs and feeds, from its config; nothing is trained here."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxboost import io, processes, systems
from jaxboost.config import combinations, continuing, validation
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.errors import UserError
from jaxboost.evaluation import patients, thresholds
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays
from jaxboost.runs import datasets, together
from jaxboost.systems import start
from jaxboost.systems.system import FixedTokens
from jaxboost.training import feed, source_tokens, step
from jaxboost.training.active_run import ActiveRun
from jaxboost.training.cache import keep_compiled_programs
from jaxboost.training.checkpoints.checkpointer import Progress
from jaxboost.training.clock import Clock
from jaxboost.training.mixing import Mixing
from jaxboost.training.on_device import rows
from jaxboost.training.program import Program, make_objective, make_program

logger = logging.getLogger(__name__)

PROTOCOLS = {"validation": "val", "reference": "test"}  # protocol -> split that picks the epoch


def assemble(
    config: Config,
    folder: pathlib.Path,
    splits: datasets.Splits | None = None,
    *,
    check_lock: Callable[[], None] = lambda: None,
    shared: start.Shared | None = None,
    clock: Clock | None = None,
) -> ActiveRun:
    """Checks the config, loads the data, and makes the model, its weights and its step functions.

    Args:
      config, folder, splits: see `train_and_evaluate`.
      check_lock: see `ActiveRun`.
      shared: see `start.initialise`.
      clock: of the run; None: a new one.

    Raises:
      UserError: a mistake in the config, the data or the weights.
    """
    clock = clock or Clock()
    step.check_batch_size(config.train.batch_size, "train.batch_size")
    step.check_batch_size(config.eval.batch_size, "eval.batch_size")
    keep_compiled_programs(config.train.compilation_cache)
    info = datasets.describe(config)
    combinations.check_data(config, info)
    system = systems.prepare(config, info)
    # By now a missing block has been converted.
    config = systems.resolved(config)
    augment, image_size = Augment(**config.augment), config.model.image_size
    augment.check(info.ndim)
    splits = splits or datasets.own_splits(config, folder)
    with processes.working("reads the data"):
        dataset = splits.load()
    selection_split = PROTOCOLS[config.eval.protocol]
    steps_per_epoch = check_splits(config, dataset)
    objective = make_objective(config, dataset.info, dataset.splits["train"].labels)
    program = make_program(config, system.graphdef, objective, steps_per_epoch=steps_per_epoch)
    # Made here for its checks: the data may be replaced, or copied to the devices, below.
    source = feed.make(config, dataset, image_size, program, steps_per_epoch=steps_per_epoch)
    all_steps = config.train.epochs * steps_per_epoch
    last_step = min(all_steps, config.train.max_steps or all_steps)
    _warn_of_slow_average(config, last_step)

    with processes.working("reads the weights"):
        params, frozen, stats, fingerprints = start.initialise(
            system, seed=config.seed, replicated=program.replicated, shared=shared
        )
    # Other labels for the same images are another data set.
    fingerprints |= datasets.fingerprint(dataset, config)
    together.check_same_run(dataset, fingerprints)
    if processes.is_first():
        with io.writing(splits.folder):
            splits.prepare()
    fixed = fixed_tokens(config)
    shape = None if fixed is None else _kept_shape(fixed, config, dataset, program, (params, frozen, stats))
    if fixed is not None and shape is not None:
        # Runs of a study share a folder, and kinds of the booster read the first token alone, or all.
        key = f"{fingerprints[fixed.role]} {fixed.key} {shape} {augment.resize}"
        dataset = _encoded(config, dataset, augment, program, (params, frozen, stats), splits.folder, key)
        image_size = None
        source = feed.make(config, dataset, image_size, program, steps_per_epoch=steps_per_epoch)
    on_device = feed.on_device(config, dataset, program.by_batch)
    config = with_overrides(config, {"data.on_device": "true" if on_device else "false"})
    if on_device:
        program = make_program(config, system.graphdef, objective, steps_per_epoch=steps_per_epoch, on_device=True)
        logger.info("the data are on the devices: %.3g MB", rows.megabytes(dataset.splits.values()))
        source = feed.make(config, dataset, image_size, program, steps_per_epoch=steps_per_epoch)
    elif config.train.steps_per_call != 1:
        raise UserError(
            f"config field train.steps_per_call: {config.train.steps_per_call} needs the data on the devices: set"
            " data.on_device=true, or train.steps_per_call=1"
        )
    return ActiveRun(
        config=config,
        folder=folder,
        system=system,
        program=program,
        dataset=dataset,
        feed=source,
        selection_split=selection_split,
        steps_per_epoch=steps_per_epoch,
        last_step=last_step,
        state=program.init_state(params, stats),
        frozen=frozen,
        progress=_first_progress(config, fingerprints),
        clock=clock,
        check_lock=check_lock,
    )


def assemble_like(
    first: ActiveRun,
    config: Config,
    folder: pathlib.Path,
    *,
    check_lock: Callable[[], None],
    shared: start.Shared,
    clock: Clock,
) -> ActiveRun:
    """Makes a run of another seed, which shares the data and the loaded weights of the first.

    Args:
      first: the result of `assemble` for the first seed.
      config, folder: of the run; the config differs in the seed alone.
      check_lock, shared, clock: see `assemble`.

    Raises:
      UserError: the seeds do not have the same data.
    """
    config = with_overrides(config, {"data.on_device": first.config.data.on_device})
    splits = datasets.own_splits(config, folder)
    if not datasets.same_samples(splits.load(), first.dataset):
        raise UserError(
            f"{folder} has other splits than {first.folder}: train them one after the other, with train.seeds=1"
        )
    replicated = first.program.replicated
    params, frozen, stats, found = start.initialise(
        first.system, seed=config.seed, replicated=replicated, shared=shared
    )
    with io.writing(splits.folder):
        splits.prepare()
    return dataclasses.replace(
        first,
        config=config,
        folder=folder,
        feed=first.feed.with_seed(config),
        state=first.program.init_state(params, stats),
        frozen=frozen,
        progress=_first_progress(config, {**first.progress.fingerprints, **found}),
        clock=clock,
        check_lock=check_lock,
    )


def _first_progress(config: Config, fingerprints: Mapping[str, str]) -> Progress:
    fixed = continuing.fixed_fields(continuing.to_dict(config))
    return Progress(fingerprints=fingerprints, best=None, seconds=0.0, config=fixed)


def check_splits(config: Config, dataset: Dataset) -> int:
    """Checks that a config can be trained and evaluated on the splits of a run; images are not read.

    Returns:
      The number of steps in an epoch.

    Raises:
      UserError: it cannot, such as with fewer samples than a batch.
    """
    patients.check(dataset, unit=config.eval.unit)
    if config.eval.specificity:
        thresholds.check_both_classes(dataset, PROTOCOLS[config.eval.protocol])
    found = batches.steps_per_epoch(
        dataset.splits["train"],
        config.train.batch_size,
        last_batch=config.train.last_batch,
        multiple=config.train.epoch_multiple,
    )
    validation.check_steps(config, found)
    return found


def fixed_tokens(config: Config) -> FixedTokens | None:
    """The tokens that a run computes once, if they are not too large; None if the encoder runs at each step."""
    # Randomly changed images must be encoded at each step.
    changes = Augment(**config.augment).random_fields or Mixing(**config.mix).changes_images
    return None if changes else systems.fixed_tokens(config)


def _kept_shape(
    fixed: FixedTokens, config: Config, dataset: Dataset, program: Program, weights: tuple[Tree, Tree, Tree]
) -> tuple[int, ...] | None:
    """The shape (d, W) of an image's tokens; None if those of all images are too large to be kept."""
    images = dataset.splits["train"].images
    batch = (config.eval.batch_size, *(config.model.image_size,) * (images.ndim - 2), images.shape[-1])
    _, *shape = jax.eval_shape(program.encode, *weights, {"image": jax.ShapeDtypeStruct(batch, jnp.uint8)}).shape
    gigabytes = fixed.gigabytes(shape, sum(len(split) for split in dataset.splits.values()))
    if gigabytes <= fixed.most_gb:
        return tuple(shape)
    logger.info(
        "the frozen encoder's tokens of all images would take %.2g GB, more than model.cache_gb=%g: they are computed"
        " at each step",
        gigabytes,
        fixed.most_gb,
    )
    return None


def _encoded(
    config: Config,
    dataset: Dataset,
    augment: Augment,
    program: Program,
    weights: tuple[Tree, Tree, Tree],
    folder: pathlib.Path,
    key: str,
) -> Dataset:
    """Replaces the images of the data set by the frozen encoder's tokens, which are cached in `folder`."""
    return source_tokens.encode(
        dataset,
        lambda batch: arrays.on_host(program.encode(*weights, step.put(arrays.own(batch), program.by_batch))),
        batch_size=config.eval.batch_size,
        image_size=config.model.image_size,
        augment=augment,
        folder=folder,
        key=key,
    )


def _warn_of_slow_average(config: Config, steps: int) -> None:
    """Warns if the initial weights still make up more than a tenth of the moving average that is evaluated."""
    rest = config.train.ema ** (steps // config.train.accumulate)
    if config.train.ema and config.eval.ema and rest > 0.1:
        logger.warning(
            "train.ema=%s: after %d steps, %.0f %% of the evaluated average is still the initial weights: in another"
            " --workdir, lower train.ema or set eval.ema=False",
            config.train.ema,
            steps,
            100 * rest,
        )
