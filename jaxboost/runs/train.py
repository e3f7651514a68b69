"""Trains and evaluates one run: from a config to result.json in the folder of the run."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost import io, processes, stopping, systems
from jaxboost.config import validate
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.runs import assembly, baseline, datasets, memory, report, together, workdir
from jaxboost.runs.lock import locked
from jaxboost.runs.result import RunResult, Selection
from jaxboost.training import loop
from jaxboost.training.active_run import ActiveRun, timed
from jaxboost.training.checkpoints import checkpoint_folder, stored
from jaxboost.training.checkpoints.checkpointer import Checkpointer
from jaxboost.training.engine import Alone, Engine

logger = logging.getLogger(__name__)


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
                contents = complete(Alone(assembly.assemble(config, folder, splits, check_lock=lock.check)), peak)
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


def complete(engine: Engine, peak: memory.Peak) -> list[dict[str, Any]] | None:
    """Resumes, trains and evaluates the runs of an engine.

    Returns:
      The content of each result.json; None if a signal stopped them.
    """
    first = engine.runs[0]
    report.log_start(first.system, first.dataset, first.config, [run.config.seed for run in engine.runs])
    with contextlib.ExitStack() as stack:
        checkpointers = []
        for run in engine.runs:
            with io.writing(run.folder):
                checkpointers.append(stack.enter_context(Checkpointer(run.folder / checkpoint_folder.FOLDER)))
        _resume(engine.runs, checkpointers)
        engine.begin()
        for run, checkpointer in zip(engine.runs, checkpointers, strict=True):
            if processes.is_first():
                with io.writing(run.folder, checkpointer.kept):
                    workdir.create(run.folder, run.config)
        if not loop.train(engine, checkpointers):
            return None
        stopping.say(" after the last step: run the same command again for the result")
        # A stop from here on loses nothing: the same command repeats the evaluation.
        stopping.poll()
        return _finish(engine, checkpointers, peak)


def _resume(runs: Sequence[ActiveRun], checkpointers: Sequence[Checkpointer]) -> None:
    """Restores the latest checkpoint that all runs have.

    Raises:
      UserError: see `Checkpointer.restore_latest`.
    """
    # A kill may have come between the saves of two runs. A damaged checkpoint is found only when it is read.
    most = common_step([run.folder for run in runs]) if len(runs) > 1 else None
    with timed(runs, "checkpoints"):
        while True:
            for run, checkpointer in zip(runs, checkpointers, strict=True):
                run.resume(checkpointer, most)
            reached = [int(run.state.step) for run in runs]
            if len({*reached}) == 1:
                break
            logger.warning("a checkpoint of one seed is damaged: all go back to step %d", min(reached))
            most = min(reached)
    for run in runs:
        run.say_resumed()


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
    runs, weights = engine.runs, []
    for run in runs:
        run.clock.begin("evaluation")
    with timed(runs, "checkpoints"):
        for run, checkpointer in zip(runs, checkpointers, strict=True):
            best = run.progress.best
            assert best is not None  # The last step is validated.
            weights.append(checkpointer.restore_best(best.step, run.state.params, run.state.stats, best.sha256))
    names = [name for name in runs[0].dataset.splits if name != "train"]
    found = {name: [scores for _, scores in engine.scores(weights, name)] for name in names}
    contents = []
    for index, (run, checkpointer) in enumerate(zip(runs, checkpointers, strict=True)):
        # The result marks the run as finished: everything else must be on the disk before.
        checkpointer.wait()
        scores = {name: each[index] for name, each in found.items()}
        contents.append(
            processes.first(
                "result",
                lambda run=run, checkpointer=checkpointer, scores=scores: _write(run, checkpointer, peak, scores),
            )
        )
    return contents


def _write(
    run: ActiveRun, checkpointer: Checkpointer, peak: memory.Peak, scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Writes predictions and result; of several processes the first does."""
    config, dataset, best = run.config, run.dataset, run.progress.best
    assert best is not None
    run.check_lock()
    with io.writing(run.folder, checkpointer.kept):
        report.write_predictions(run.folder, scores, dataset, config)
    result = report.make_result(
        run.system,
        dataset,
        config,
        fingerprints=run.progress.fingerprints,
        scores=scores,
        selection=Selection(split=run.selection_split, metric=config.eval.metric, **dataclasses.asdict(best)),
        steps=run.last_step,
        seconds=round(run.seconds(), 1),
        seconds_by_part=run.clock.parts(),
        memory_gb=peak.gigabytes(),
    )
    run.check_lock()
    with io.writing(run.folder, checkpointer.kept):
        content = workdir.write_result(run.folder, result)
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
