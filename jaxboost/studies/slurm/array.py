"""Submits what remains of a study as one array, and watches it until all runs are done.

The array is found again by its name, which is made from the study and its folder. So a second command does not submit
it twice, also if the first was ended in the moment after the submission.
"""

import contextlib
import dataclasses
import hashlib
import io as streams
import logging
import os
import pathlib
import re
import time
from collections import Counter
from collections.abc import Sequence

from jaxboost import io, stopping
from jaxboost.errors import UserError
from jaxboost.runs.lock import InUseError, locked
from jaxboost.studies import plan, runner
from jaxboost.studies.definition import Definition
from jaxboost.studies.plan import Plan, PlannedRun
from jaxboost.studies.progress import Bar
from jaxboost.studies.runner import Outcome
from jaxboost.studies.slurm import task, tools, visible
from jaxboost.studies.slurm.options import Options

logger = logging.getLogger(__name__)

FOLDER = "slurm"
# Seconds between two looks at the queue: short at first, then what clusters bear.
_FIRST_LOOK, _LAST_LOOK, _GROWTH = 1.0, 20.0, 1.3
# A network file system may show the last results up to a minute late.
_LATE = 70.0  # seconds
# Reasons for which a task may wait for ever, in words.
_REASONS = {
    "PartitionTimeLimit": "--time is longer than the partition allows",
    "PartitionNodeLimit": "the partition has too few nodes",
    "AssocGrpGRES": "the account's GPUs are used up",
    "JobHeldUser": "it is held: scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "launch failed requeued held": "its node could not start it",
    "BadConstraints": "no node has what it asks for",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """An array that is in the queue: its id, and whether it was there before."""

    id: str
    found: bool


def run(given: Plan, stated: Definition, words: Sequence[str], options: Options) -> Outcome:
    """Submits what remains, unless an array of the study is in the queue, and watches until all runs are done.

    Args:
      given: the plan.
      stated: see `definition.check`.
      words: arguments of `jaxboost study` that give the same plan.
      options: what the tasks get.

    Returns:
      How it ended; `waiting` has the runs that an array left which was cancelled, or failed.

    Raises:
      UserError: see `runner.prepare`; Slurm refuses the array; or the nodes do not see the folder.
      Stopped: a signal stopped this command; the array goes on.
    """
    tools.check()
    visible.check(given.folder, options.partition)
    if not _remaining(given.runs):
        runner.prepare(given, stated, given.runs)
        return Outcome()
    array = _present(given)
    if array is None:
        runner.prepare(given, stated, given.runs)
        array = _submitted(given, words, options)
    if array.found:
        logger.info("array %s of this study is in the queue already: nothing is submitted", array.id)
    again = f"; array {array.id} goes on: the same command shows it again, `scancel {array.id}` ends it"
    with stopping.watch(resumable=True):
        stopping.say(again)
        return _watch(given, array)


def job_name(given: Plan) -> str:
    """The name of a study's array, which no other folder's has."""
    digest = hashlib.sha256(os.path.realpath(given.folder).encode()).hexdigest()[:10]
    # squeue takes several names with commas.
    return f"jaxboost-{re.sub(r'[^A-Za-z0-9_.-]', '_', given.study.name)}-{digest}"


def _present(given: Plan) -> Array | None:
    """The newest array of the study that is in the queue; None if there is none."""
    ids = [each.array for each in tools.tasks(job_name(given))]
    return Array(id=max(ids, key=lambda text: (len(text), text)), found=True) if ids else None


def _submitted(given: Plan, words: Sequence[str], options: Options) -> Array:
    """Submits an array; another command may have done it meanwhile."""
    folder = given.folder / FOLDER
    try:
        with locked(folder):
            if (array := _present(given)) is not None:
                return array
            count = min(options.tasks, len(_remaining(given.runs)))
            array = Array(id=_sbatch(folder, words, options.parameters(job_name(given)), count), found=False)
    except InUseError:
        raise UserError(f"another command submits the study in {given.folder} at this moment: try again") from None
    logger.info("submitted array %s: %d tasks, whose logs are %s", array.id, count, folder / f"{array.id}_*")
    return array


def _sbatch(folder: pathlib.Path, words: Sequence[str], parameters: dict[str, object], count: int) -> str:
    """Submits `count` tasks, and returns the id of their array."""
    submitit = tools.import_submitit()
    refused = submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError
    # Of a job that this command may be part of, nothing should be inherited; what a user or a site set, should.
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**parameters)
    try:
        # submitit prints what sbatch says, and raises it.
        with submitit.helpers.clean_env(), contextlib.redirect_stderr(streams.StringIO()), io.writing(folder):
            os.environ.update(kept)
            jobs = executor.map_array(task.drain, [list(words)] * count)
    except refused as error:
        raise UserError(f"sbatch refuses the array: {tools.in_words(str(error))}") from None
    return jobs[0].job_id.partition("_")[0]


def _remaining(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    return [each for each in runs if each.state != "finished"]


def _watch(given: Plan, array: Array) -> Outcome:
    """Waits until all runs are done, and shows the state meanwhile."""
    runs, failed, pause = list(given.runs), list[str](), _FIRST_LOOK
    with Bar(given, runs) as bar:
        unreachable, last_seen = False, time.monotonic()
        while True:
            # In this order: a task that ends between the two looks has written its results.
            found = None
            with contextlib.suppress(tools.ToolError):
                found = tools.tasks(job_name(given))
            states = {each.key: plan.state_of(each) for each in runs}
            # The tasks do no failed run again.
            failed += [key for key, state in states.items() if state == "failed"]
            runs = [each for each in runs if states[each.key] not in ("finished", "failed")]
            if not runs:
                bar.show_state(runs, "all runs are done", 1)
                return Outcome(failed=tuple(failed))
            if found is None and not unreachable:
                logger.warning("squeue does not answer: the state of the tasks is not known")
            unreachable = found is None
            if found or unreachable:
                last_seen = time.monotonic()
            if found:
                bar.show_state(runs, _in_words(array, found, len(failed)), sum(not each.queued for each in found))
            elif time.monotonic() - last_seen > _LATE:
                logger.error(_ended(given, array, runs))
                return Outcome(failed=tuple(failed), waiting=tuple(each.key for each in runs))
            _wait(pause)
            pause = min(_LAST_LOOK, pause * _GROWTH)


def _in_words(array: Array, found: Sequence[tools.Task], failed: int) -> str:
    queued = Counter(each.reason for each in found if each.queued)
    text = f"array {array.id}: {len(found) - queued.total()} running, {queued.total()} queued"
    # At first there is no reason yet.
    reasons = [f"{name}: {_REASONS[name]}" if name in _REASONS else name for name in sorted(queued) if name != "None"]
    if reasons:
        text += f" ({', '.join(reasons)})"
    return text + (f", {failed} runs failed" if failed else "")


def _ended(given: Plan, array: Array, runs: Sequence[PlannedRun]) -> str:
    """What to do about runs that are not done although the array has left the queue.

    Raises:
      UserError: no task could write its log.
    """
    folder = given.folder / FOLDER
    text = f"array {array.id} has ended, and {len(runs)} of {len(given.runs)} runs are not done"
    if not list(folder.glob(f"{array.id}_*_log.out")):
        raise UserError(
            f"{text}; no task wrote a log into {folder}: it was cancelled before its start, or the nodes do not see"
            f" this folder or cannot write into it (`scontrol show job {array.id}` may say more)"
        )
    return f"{text}: see {folder / f'{array.id}_*_log.err'} and .out; the same command submits what remains"


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stopping.poll()
        time.sleep(0.1)
