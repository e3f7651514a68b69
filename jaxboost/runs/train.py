"""Trains and evaluates one run: from a config to result.json in the folder of the run."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost import io, processes, stopping, systems
from jaxboost.config import combinations, continuing, validate, validation
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.errors import UserError
from jaxboost.evaluation import patients, thresholds
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays
from jaxboost.runs import baseline, datasets, memory, report, together, workdir
from jaxboost.runs.lock import locked
from jaxboost.runs.result import RunResult, Selection
from jaxboost.systems import start
from jaxboost.systems.system import FixedTokens
from jaxboost.training import feed, source_tokens, step, steps
from jaxboost.training.cache import keep_compiled_programs
from jaxboost.training.checkpoints import checkpoint_folder, stored
from jaxboost.training.checkpoints.checkpointer import Checkpointer, Progress
from jaxboost.training.clock import Clock
from jaxboost.training.engine import Alone, Engine
from jaxboost.training.loop import Loop, timed
from jaxboost.training.mixing import Mixing
from jaxboost.training.on_device import rows
from jaxboost.training.program import Program, make_objective, make_program

logger = logging.getLogger(__name__)

PROTOCOLS = {"validation": "val", "reference": "test"}  # protocol -> split that picks the epoch


def train_and_evaluate(
    config: Config, folder: pathlib.Path, splits: datasets.Splits | None = None
) -> dict[str, Any] | None:
    """Trains and evaluates a config, or continues the run that `folder` already holds.

    All mistakes of the user are found before anything is written to `folder`, except the lock, which is removed again.

    Args:
      config: config of the run.
      folder: folder of the run; it may be missing.
      splits: splits of a fold, if the run is part of a cross-validation; None for the splits of the data set.

    Returns:
      The content of result.json; None if SIGTERM, SIGHUP or (after a step) Ctrl-C stopped the run before its end.

    Raises:
      UserError: a mistake in the config, or a folder that cannot be written or that another process uses.
      Stopped: Ctrl-C, when nothing had to be saved.
    """
    validate(config)
    if "train" in config and config.train.seeds > 1:
        raise UserError(
            f"config field train.seeds: {config.train.seeds} runs need several folders: `jaxboost train` makes them;"
            " here set train.seeds=1"
        )
    workdir.check_location(folder, config)
    config = resolved(config, folder)
    finished = _finished_for_all(folder, config)
    if finished and workdir.has_config(folder):
        return _finished(config, finished, folder, splits)
    with stopping.watch(resumable=True) as stop:
        stopping.say(" before the first step: run the same command again")
        try:
            with locked(folder) as lock:
                # Another process may have finished the run while this one waited.
                if finished := _finished_for_all(folder, config):
                    content = _finished(config, finished, folder, splits)
                    if not workdir.has_config(folder) and processes.is_first():
                        # A prediction needs it.
                        with io.writing(folder):
                            workdir.create(folder, config)
                    return content
                if "baseline" in config:
                    return baseline.complete(config, folder, splits, lock.check)
                peak = memory.Peak()
                contents = complete(Alone(assemble(config, folder, splits, check_lock=lock.check)), peak)
                return None if contents is None else contents[0]
        except stopping.Stopped:
            # Of several processes, the others have to hear that this one ends without them.
            if stop.exit_code or processes.count() > 1:
                raise
            logger.info(stop.line)
            return None


def resolved(config: Config, folder: pathlib.Path) -> Config:
    """Returns the config as config.json of the run in `folder` has it, see `systems.resolved`."""
    return systems.resolved(config, lambda: workdir.config_in(folder, quiet=True))


def assemble(
    config: Config,
    folder: pathlib.Path,
    splits: datasets.Splits | None = None,
    *,
    check_lock: Callable[[], None] = lambda: None,
    shared: start.Shared | None = None,
    clock: Clock | None = None,
) -> Loop:
    """Checks the config, loads the data, and makes the model, its weights and its step functions.

    Args:
      config, folder, splits: see `train_and_evaluate`.
      check_lock: see `Loop`.
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
    shape = None if fixed is None else _kept_shape(fixed, config, dataset, program, (params, frozen))
    if fixed is not None and shape is not None:
        # Runs of a study share a folder, and kinds of the booster read the first token alone, or all.
        key = f"{fingerprints[fixed.role]} {fixed.key} {shape} {augment.resize}"
        dataset = _encoded(config, dataset, augment, program, (params, frozen), splits.folder, key)
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
    return Loop(
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
    first: Loop,
    config: Config,
    folder: pathlib.Path,
    *,
    check_lock: Callable[[], None],
    shared: start.Shared,
    clock: Clock,
) -> Loop:
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
    fixed: FixedTokens, config: Config, dataset: Dataset, program: Program, weights: tuple[Tree, Tree]
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
    weights: tuple[Tree, Tree],
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


def complete(engine: Engine, peak: memory.Peak) -> list[dict[str, Any]] | None:
    """Resumes, trains and evaluates the runs of an engine.

    Returns:
      The content of each result.json; None if a signal stopped them.
    """
    first = engine.loops[0]
    report.log_start(first.system, first.dataset, first.config, [loop.config.seed for loop in engine.loops])
    with contextlib.ExitStack() as stack:
        checkpointers = []
        for loop in engine.loops:
            with io.writing(loop.folder):
                checkpointers.append(stack.enter_context(Checkpointer(loop.folder / checkpoint_folder.FOLDER)))
        _resume(engine.loops, checkpointers)
        engine.begin()
        for loop, checkpointer in zip(engine.loops, checkpointers, strict=True):
            if processes.is_first():
                with io.writing(loop.folder, checkpointer.kept):
                    workdir.create(loop.folder, loop.config)
        if not steps.train(engine, checkpointers):
            return None
        stopping.say(" after the last step: run the same command again for the result")
        # A stop from here on loses nothing: the same command repeats the evaluation.
        stopping.poll()
        return _finish(engine, checkpointers, peak)


def _resume(loops: Sequence[Loop], checkpointers: Sequence[Checkpointer]) -> None:
    """Restores the latest checkpoint that all runs have.

    Raises:
      UserError: see `Checkpointer.restore_latest`.
    """
    # A kill may have come between the saves of two runs. A damaged checkpoint is found only when it is read.
    most = common_step([loop.folder for loop in loops]) if len(loops) > 1 else None
    with timed(loops, "checkpoints"):
        while True:
            for loop, checkpointer in zip(loops, checkpointers, strict=True):
                loop.resume(checkpointer, most)
            reached = [int(loop.state.step) for loop in loops]
            if len({*reached}) == 1:
                break
            logger.warning("a checkpoint of one seed is damaged: all go back to step %d", min(reached))
            most = min(reached)
    for loop in loops:
        loop.say_resumed()


def common_step(folders: Sequence[pathlib.Path]) -> int | None:
    """The latest step of which all runs have a checkpoint, 0 if none of them has one; None: there is no such step."""
    found = [{*stored.steps(folder / checkpoint_folder.FOLDER / checkpoint_folder.LATEST)} for folder in folders]
    if not any(found):
        return 0
    return max(set.intersection(*found), default=None)


def _finish(engine: Engine, checkpointers: Sequence[Checkpointer], peak: memory.Peak) -> list[dict[str, Any]]:
    """Evaluates the best epochs, and writes predictions and results.

    The only place that evaluates the test split, unless the protocol is `reference`.
    """
    loops, weights = engine.loops, []
    for loop in loops:
        loop.clock.begin("evaluation")
    with timed(loops, "checkpoints"):
        for loop, checkpointer in zip(loops, checkpointers, strict=True):
            best = loop.progress.best
            assert best is not None  # The last step is validated.
            weights.append(checkpointer.restore_best(best.step, loop.state.params, loop.state.stats, best.sha256))
    names = [name for name in loops[0].dataset.splits if name != "train"]
    found = {name: [scores for _, scores in engine.scores(weights, name)] for name in names}
    contents = []
    for index, (loop, checkpointer) in enumerate(zip(loops, checkpointers, strict=True)):
        # The result marks the run as finished: everything else must be on the disk before.
        checkpointer.wait()
        scores = {name: each[index] for name, each in found.items()}
        contents.append(
            processes.first(
                "result",
                lambda loop=loop, checkpointer=checkpointer, scores=scores: _write(loop, checkpointer, peak, scores),
            )
        )
    return contents


def _write(
    loop: Loop, checkpointer: Checkpointer, peak: memory.Peak, scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Writes predictions and result; of several processes the first does."""
    config, dataset, best = loop.config, loop.dataset, loop.progress.best
    assert best is not None
    loop.check_lock()
    with io.writing(loop.folder, checkpointer.kept):
        report.write_predictions(loop.folder, scores, dataset, config)
    result = report.make_result(
        loop.system,
        dataset,
        config,
        fingerprints=loop.progress.fingerprints,
        scores=scores,
        selection=Selection(split=loop.selection_split, metric=config.eval.metric, **dataclasses.asdict(best)),
        steps=loop.last_step,
        seconds=round(loop.seconds(), 1),
        seconds_by_part=loop.clock.parts(),
        memory_gb=peak.gigabytes(),
    )
    loop.check_lock()
    with io.writing(loop.folder, checkpointer.kept):
        content = workdir.write_result(loop.folder, result)
    report.log_result(result)
    return content


def _finished_for_all(folder: pathlib.Path, config: Config) -> RunResult | None:
    """The result of a finished run; None if it is new or unfinished. All processes that train together see the same.

    Raises:
      UserError: see `workdir.finished_result`; or only some of them see a result.
    """
    found = workdir.finished_result(folder, config)
    together.check_same_view(folder, found is not None)
    return found


def _finished(
    config: Config, result: RunResult, folder: pathlib.Path, splits: datasets.Splits | None
) -> dict[str, Any]:
    """Logs the figures of a finished run, and returns the content of its result.json."""
    systems.check_same_weights(config, result.parts, folder)
    datasets.check_same_data(config, result, folder, splits)
    if result.selection.step is not None and processes.is_first():
        checkpoint_folder.tidy(folder / checkpoint_folder.FOLDER, result.selection.step)
    logger.info("%s is finished:", folder)
    report.log_result(result)
    return result.to_json()


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
