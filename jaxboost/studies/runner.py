"""Runs what a study still lacks, one run after the other; several processes may share a study's folder.

No process leads: a run's lock decides which process works on it. A run that is finished is skipped, one that was
stopped is resumed, and one that fails is noted and does not stop the others.
"""

import contextlib
import dataclasses
import gc
import logging
import time
import traceback
from collections.abc import Callable, Sequence

from jaxboost import io, stopping
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.runs import cross_validation, datasets
from jaxboost.runs.lock import InUseError
from jaxboost.studies import at_once, data_check, definition, derived, plan, tuning
from jaxboost.studies.definition import Definition
from jaxboost.studies.plan import CACHE, RATE, Plan, PlannedRun, State
from jaxboost.studies.progress import Bar
from jaxboost.training import log

logger = logging.getLogger(__name__)

_POLL = 2.0  # seconds between two looks at the runs of other processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a study ended.

    Attributes:
      failed: keys of the runs that failed.
      stopped: whether a signal stopped it before its end.
      waiting: keys of the runs that a worker left because they need runs of other processes first.
    """

    failed: tuple[str, ...] = ()
    stopped: bool = False
    waiting: tuple[str, ...] = ()


def run(
    given: Plan,
    stated: Definition,
    *,
    only: str = "",
    worker: bool = False,
    patience: float | None = None,
    workers: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    jobs: int = 1,
    seeds_at_once: str = "auto",
) -> Outcome:
    """Runs what remains of a plan.

    Args:
      given: the plan.
      stated: the definition of the study, see `definition.check`.
      only: key of the one run to do, with the runs that it needs; "": all.
      workers: gives a context manager that starts processes that help, and ends them.
      jobs: number of processes that share the runs, for the time left.
      worker: whether another process started this one to help: it checks nothing again, and ends when there is
        nothing left to start.
      patience: seconds after which a worker without a run to start ends, also if runs remain that need those of other
        processes first; None: it waits for these. More than the time after which a lock of another machine is stale,
        so that the run of a process that was killed is taken over.
      seeds_at_once: see `at_once.pays`. Where several processes share the runs, each trains one at a time.

    Raises:
      UserError: see `prepare`; or a disk is full.
      Stopped: a signal stopped the study where nothing had to be saved.
    """
    runs = needed(given, only) if only else list(given.runs)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping.watch(resumable=True))
        stack.enter_context(datasets.shared(given.folder / CACHE))
        stack.enter_context(log.without_bars())
        if not worker:
            prepare(given, stated, runs)
        bar = stack.enter_context(Bar(given, runs, jobs, silent=worker))
        stack.enter_context(workers())
        failed: list[str] = []
        tried: set[str] = set()
        mode = seeds_at_once if jobs == 1 and not worker else "false"
        if patience is not None:
            # Runs that others need come first, so that fewer processes have nothing to start.
            runs.sort(key=lambda each: each.rate is None)
        idle_since = time.monotonic()
        while runs:
            begun = len(runs)
            for each in list(runs):
                stopping.poll()
                done, state = None, plan.state_of(each)
                if state in ("finished", "failed"):
                    done = _found(each, state)
                elif state != "running":
                    # Those that this one was trained with are found finished next.
                    done = _together(each, runs, given, mode, tried)
                    if not (done or stop.received):
                        done = _attempt(each, given)
                    idle_since = idle_since if done is None else time.monotonic()
                if stop.received:
                    logger.info("runs of the study that remain: %d: run the same command again", len(runs))
                    return Outcome(failed=tuple(failed), stopped=True)
                if done is None:
                    continue
                runs.remove(each)
                failed += [] if done else [each.key]
                bar.show(runs)
            if len(runs) == begun:
                blocked = [each.key for each in runs if plan.state_of(each) != "running"]
                is_over = not blocked if patience is None else time.monotonic() - idle_since > patience
                if worker and is_over:
                    return Outcome(failed=tuple(failed), waiting=tuple(blocked))
                _wait()
    return Outcome(failed=tuple(failed))


def prepare(given: Plan, stated: Definition, runs: Sequence[PlannedRun]) -> None:
    """Checks data and weights of runs, writes study.json, and forgets the failures of earlier starts.

    Args:
      given: the plan.
      stated: see `definition.check`.
      runs: the runs that may be started.

    Raises:
      UserError: data or weights cannot be loaded, do not suit an arm, or have changed; or the folder cannot be written.
    """
    todo = [each for each in runs if each.state != "finished"]
    data = data_check.check(todo, stated.data, given.folder)
    # Another process may have started the study, or another one, while the data were read.
    latest = definition.check(given)
    new = [each for each in data if each.about not in {other.about for other in latest.data}]
    seeds = max(stated.seeds, latest.seeds)
    definition.write(given.folder, dataclasses.replace(latest, seeds=seeds, data=(*latest.data, *new)))
    for each in runs:
        with io.writing(each.failure), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            each.failure.unlink()


def needed(given: Plan, key: str) -> list[PlannedRun]:
    """The run of a key, after the runs that it needs: those that tune its learning rate, and that it evaluates."""
    wanted = given.run(key)
    found = [] if not wanted.follows else [each for each in given.of(wanted.arm.name) if each.rate is not None]
    if wanted.arm.after:
        source = [each for each in given.of(wanted.arm.after) if each.rate is not None or each.seed == wanted.seed]
        found += source
    return [*found, wanted]


def _found(each: PlannedRun, state: State) -> bool:
    """Returns whether a run is finished that this process need not do; else another process tried it, and it failed."""
    if state == "failed":
        logger.error("%s failed: see %s", each.key, each.failure)
    return state == "finished"


def _together(each: PlannedRun, runs: Sequence[PlannedRun], given: Plan, mode: str, tried: set[str]) -> bool | None:
    """Trains a run with the other seeds of its arm, once; see `at_once.attempt`."""
    if mode == "false" or each.arm.name in tried:
        return None
    group = at_once.others(each, runs)
    if len(group) < 2:
        return None
    try:
        config = _config(each, given)
        if config is None or not at_once.pays(mode, config, len(group)):
            return None
    except UserError:
        # The run itself finds the mistake, and it is noted as that run's.
        return None
    tried.add(each.arm.name)
    return at_once.attempt(group, {run.key: found for run in group if (found := _config(run, given))})


def _attempt(each: PlannedRun, given: Plan) -> bool | None:
    """Does a run. Returns True if it is finished, False if it failed, None if it has to be visited again."""
    try:
        if not _do(each, given):
            return None
    except InUseError:
        return None
    except Exception as error:
        if _is_of_disk(error):
            raise
        _note_failure(each, error)
        return False
    with contextlib.suppress(OSError):
        each.failure.unlink(missing_ok=True)
    return True


def _do(each: PlannedRun, given: Plan) -> bool:
    """Returns False if runs that the run needs are not finished, or if a signal stopped it."""
    config = _config(each, given)
    if config is None:
        return False
    if each.arm.after:
        source = source_of(each, given)
        if source is None:
            return False
        logger.info("%s: %s evaluated again, seed %d", each.arm.name, each.arm.after, each.seed)
        derived.evaluate_again(source.folder, derived.with_rate_of(config, source.folder), each.folder)
        return True
    what = f"seed {each.seed}" if each.rate is None else f"learning rate {each.rate:g}"
    logger.info("%s (%s), %s", each.arm.name, each.arm.title, what)
    finished = cross_validation.train_and_evaluate(config, each.folder) is not None
    # Weights of a run are in reference cycles. Programs stay for the next runs, see `make_program`.
    gc.collect()
    return finished


def _config(each: PlannedRun, given: Plan) -> Config | None:
    """The config of a run; None if runs that tune its learning rate are not finished."""
    if not each.follows or each.arm.after:
        return each.config
    chosen = tuning.chosen(given.of(each.arm.name))
    if chosen is None:
        return None
    return with_overrides(each.config, {RATE: float(chosen.rate or 0)})


def source_of(each: PlannedRun, given: Plan) -> PlannedRun | None:
    """The finished run that a run evaluates again; None if it is not finished yet.

    Raises:
      UserError: it failed.
    """
    runs = given.of(each.arm.after)
    if not runs:
        raise UserError(f"arm {each.arm.name} evaluates the runs of {each.arm.after} again: name it in --arms too")
    source = next((run for run in runs if run.rate is None and run.seed == each.seed), None)
    if source is None:
        source = tuning.chosen(runs)
        if source is None:
            return None
    state = plan.state_of(source)
    if state == "failed":
        raise UserError(f"the run {source.key}, which it evaluates again, failed: see {source.failure}")
    return source if state == "finished" else None


def _note_failure(each: PlannedRun, error: Exception) -> None:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = f"{each.key} in {each.folder}\n{' '.join(reason.split())}\n\n" + "".join(traceback.format_exception(error))
    with io.writing(each.failure):
        io.write_text(each.failure, text)
    logger.error("%s failed, the others go on: %s (see %s)", each.key, " ".join(reason.split()), each.failure)


def _is_of_disk(error: BaseException | None) -> bool:
    """Whether a full or broken disk is behind an exception: then no other run could be written either."""
    while error is not None:
        if isinstance(error, Exception) and (found := io.os_error(error)) and io.is_of_disk(found):
            return True
        error = error.__cause__ or error.__context__
    return False


def _wait() -> None:
    deadline = time.monotonic() + _POLL
    while time.monotonic() < deadline:
        stopping.poll()
        time.sleep(0.1)
