"""Trains several seeds of a config at once, in one program; each has a folder as a run of that seed alone has."""

import contextlib
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from jaxboost import processes, stopping
from jaxboost.config import continuing, validate
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.runs import assembly, datasets, memory, train, workdir
from jaxboost.runs.lock import locked
from jaxboost.systems.start import Shared
from jaxboost.training.clock import Clock
from jaxboost.training.engine import Together
from jaxboost.training.program import make_objective, make_program

logger = logging.getLogger(__name__)


def of_config(config: Config, folder: pathlib.Path) -> dict[pathlib.Path, Config]:
    """Folder -> config of each of the runs that `train.seeds` asks for; `folder`/seed<k> has seed k."""
    numbers = range(config.seed, config.seed + config.train.seeds)
    return {folder / f"seed{number}": with_overrides(config, {"seed": number, "train.seeds": 1}) for number in numbers}


def train_and_evaluate(runs: Mapping[pathlib.Path, Config]) -> dict[pathlib.Path, dict[str, Any]] | None:
    """Trains and evaluates runs that differ in the seed alone, or continues them; finished ones are left as they are.

    Args:
      runs: folder -> config; see `of_config`.

    Returns:
      Folder -> content of result.json; None if a signal stopped the runs.

    Raises:
      UserError: a mistake in the config; or what the seeds do cannot be done at once.
      Stopped: Ctrl-C, when nothing had to be saved.
    """
    for folder, config in runs.items():
        validate(config)
        check(config)
        workdir.check_location(folder, config)
    todo = {folder: config for folder, config in runs.items() if not _is_finished(folder, config)}
    at_once = len(todo) > 1 and train.common_step([*todo]) is not None
    if len(todo) > 1 and not at_once:
        logger.info("the seeds have no checkpoint of the same step: they are trained one after the other")
    contents = {}
    # Finished ones say their figures again.
    for folder in [folder for folder in runs if folder not in todo or not at_once]:
        content = train.train_and_evaluate(runs[folder], folder)
        if content is None:
            return None
        contents[folder] = content
    if not at_once:
        return contents
    with stopping.watch(resumable=True) as stop:
        stopping.say(" before the first step: run the same command again")
        try:
            found = _train(todo)
        except stopping.Stopped:
            # See `train.train_and_evaluate`.
            if stop.exit_code or processes.count() > 1:
                raise
            logger.info(stop.line)
            return None
    return None if found is None else {**contents, **dict(zip(todo, found, strict=True))}


def check(config: Config) -> None:
    """Raises UserError if several seeds of a config cannot be trained at once."""
    fix = "set train.seeds=1, and train the seeds one after the other"
    if processes.count() > 1:
        raise UserError(f"config field train.seeds: several seeds at once are trained by one process: {fix}")
    for name, wrong, why in (
        ("data.folds", config.data.folds > 0, "its folds are trained one after the other"),
        ("data.train_fraction", config.data.train_fraction < 1, "each seed draws other samples"),
        ("train.fsdp", config.train.fsdp, "it splits the weights of one run"),
        ("train.deterministic", config.train.deterministic, "its setting is for a run alone"),
    ):
        if wrong:
            raise UserError(f"config field train.seeds: it does not go together with {name}, as {why}: {fix}")
    tokens = assembly.fixed_tokens(config)
    if tokens is not None and tokens.drawn_by and tokens.most_gb:
        at_each_step = "" if tokens.most_gb == math.inf else "; or set model.cache_gb=0: the encoder runs at each step"
        raise UserError(
            f"config field train.seeds: it does not go together with {tokens.drawn_by}=random, as each seed would keep"
            f" other tokens of its frozen encoder: {fix}{at_each_step}"
        )


def _train(todo: Mapping[pathlib.Path, Config]) -> list[dict[str, Any]] | None:
    """Trains runs that are not finished."""
    peak, shared, runs = memory.Peak(), Shared(), []
    # The time of all is divided among them, from here on.
    clocks = [Clock(lambda: time.monotonic() / len(todo)) for _ in todo]
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(locked(folder)) for folder in todo]
        configs = {folder: train.resolved(config, folder) for folder, config in todo.items()}
        _check_alike(configs)
        stack.enter_context(datasets.shared_in(next(iter(todo))))
        for (folder, config), lock, clock in zip(configs.items(), locks, clocks, strict=True):
            options = dict(check_lock=lock.check, shared=shared, clock=clock)
            if runs:
                runs.append(assembly.assemble_like(runs[0], config, folder, **options))
            else:
                runs.append(assembly.assemble(config, folder, **options))
        first = runs[0]
        program = make_program(
            first.config,
            first.system.graphdef,
            make_objective(first.config, first.dataset.info, first.dataset.splits["train"].labels),
            steps_per_epoch=first.steps_per_epoch,
            on_device=first.program.reading is not None,
            several=True,
        )
        return train.complete(Together(runs, program), peak)


def _check_alike(configs: Mapping[pathlib.Path, Config]) -> None:
    """Raises UserError if a run is finished by now, or goes on with another choice than the first, such as a dtype."""
    first = None
    for folder, config in configs.items():
        # Another process may have finished it while this one waited for the lock.
        if _is_finished(folder, config):
            raise UserError(f"another process has just finished {folder}: run the same command again")
        fields = {name: value for name, value in continuing.flat(config).items() if name != "seed"}
        first = first or fields
        if differing := [name for name, value in fields.items() if first[name] != value]:
            raise UserError(
                f"{folder} was started with {differing[0]}={fields[differing[0]]!r}, and the first seed with"
                f" {first[differing[0]]!r}: train the seeds one after the other, with train.seeds=1"
            )


def _is_finished(folder: pathlib.Path, config: Config) -> bool:
    return workdir.finished_result(folder, train.resolved(config, folder)) is not None
