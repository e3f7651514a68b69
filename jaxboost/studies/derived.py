"""Evaluates a finished run again with a changed config, such as another function in the place of the block."""

import logging
import pathlib
import time
from typing import Any

from jaxboost import io
from jaxboost.config import continuing, validate
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.models.frozen import count
from jaxboost.runs import assembly, datasets, finished, report, train, workdir
from jaxboost.runs.lock import RunLock
from jaxboost.runs.result import RunResult
from jaxboost.training.checkpoints import checkpoint_folder
from jaxboost.training.engine import Alone

logger = logging.getLogger(__name__)


def evaluate_again(source: pathlib.Path, config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Evaluates the best epoch of a finished run with another config, and writes a folder of its own.

    Nothing is trained: the trained weights and the epoch are those of the run; what is frozen, or has no weights, is
    that of the config. Predictions and result are as those of a run.

    Args:
      source: folder of the finished run.
      config: has to give a model with the same trained weights.
      folder: folder of the new run; it may be missing.

    Returns:
      The content of result.json; if another process has written it meanwhile, that one.

    Raises:
      UserError: the run is not finished, or its weights do not fit the config's model.
      InUseError: another process uses the folder.
    """
    validate(config)
    _, result = finished.read(source)
    lock = RunLock(folder)
    with io.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if (written := workdir.read_result(folder)) is not None:
            return written.to_json()
        return _evaluate(source, result, train.resolved(config, folder), folder)
    finally:
        lock.release()


def _evaluate(source: pathlib.Path, result: RunResult, config: Config, folder: pathlib.Path) -> dict[str, Any]:
    started, selection = time.monotonic(), result.selection
    # The run's table of splits is read, if it drew them.
    loop = assembly.assemble(config, folder, datasets.own_splits(config, source))
    if count(loop.system.params) != result.parameters.trainable:
        raise UserError(
            f"{source} has {result.parameters.trainable:,} trained parameters, and the model of the new config"
            f" {count(loop.system.params):,}: give a variant with the same trained weights"
        )
    _check_same(source, result, loop.progress.fingerprints)
    params, stats = checkpoint_folder.restore_best(
        source / checkpoint_folder.FOLDER,
        selection.step,
        loop.state.params,
        loop.state.stats,
        sha256=selection.sha256,
        fix="bring the folder back from a backup, or train again",
    )
    logger.info("evaluating epoch %d of %s again: %s", selection.epoch, source, loop.system.title)
    names = [name for name in loop.dataset.splits if name != "train"]
    scores = {name: Alone(loop).scores([(params, stats)], name)[0][1] for name in names}
    with io.writing(folder):
        workdir.create(folder, loop.config)
        report.write_predictions(folder, scores, loop.dataset, loop.config)
    again = report.make_result(
        loop.system,
        loop.dataset,
        loop.config,
        fingerprints=loop.progress.fingerprints,
        scores=scores,
        selection=selection,
        steps=result.steps or selection.step,
        seconds=round(time.monotonic() - started, 1),
    )
    with io.writing(folder):
        content = workdir.write_result(folder, again)
    report.log_result(again)
    return content


def _check_same(source: pathlib.Path, result: RunResult, fingerprints: dict[str, str]) -> None:
    """Raises UserError if the data or the pretrained parts are not those of the run."""
    known = {role: part["sha256"] for role, part in result.parts.items() if part}
    known |= {name: digest for name, digest in result.digests.items() if digest}
    if changed := [name for name, digest in fingerprints.items() if known.get(name, digest) != digest]:
        raise UserError(
            f"{source} was trained with other {' and '.join(changed)}: bring them back, or train it again in another"
            " folder"
        )


def with_rate_of(config: Config, source: pathlib.Path) -> Config:
    """The config with the learning rate of the run in `source`, so that its result names it."""
    rate = continuing.flat(finished.read(source)[1].config).get("optim.lr")
    return config if rate is None else with_overrides(config, {"optim.lr": rate})
