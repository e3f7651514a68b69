"""Runs a study: several arms with several seeds on the same data, compared in one report.

jaxboost study --study ladder --out DIR [--config.section.field=value ...] [--seeds N] [--quick] [--dry_run]

--study takes the name of a packaged study, or the path of a study file. The same command continues a study that was
stopped. Overrides hold for all arms that have the field, such as --config.data.source=folder --config.data.root=FOLDER.
With --slurm --time TIME it runs as an array of Slurm jobs.
"""

import contextlib
import logging
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxboost import io, stopping
from jaxboost.cli import app
from jaxboost.errors import UserError
from jaxboost.studies.slurm.task import WAITING_EXIT_CODE

if TYPE_CHECKING:
    from jaxboost.studies.slurm.options import Options

logger = logging.getLogger(__name__)

# A worker may save for so long before a second SIGTERM ends it at once.
_FORWARDED_SECONDS = 60.0
_OVERRIDE = re.compile(r"--?(?:no)?config\.")
FAILED_EXIT_CODE = 1


def run() -> None:
    """The command `jaxboost study`."""
    flags.DEFINE_string("study", "", "name of a packaged study, or path of a study file")
    flags.DEFINE_string("out", "", "folder of the study")
    flags.DEFINE_integer("seeds", 0, "number of seeds; 0: the study's", lower_bound=0)
    flags.DEFINE_list("arms", [], "names of the arms to run; empty: all")
    flags.DEFINE_bool("quick", False, "a trial: one seed and few epochs, which shows that all works")
    flags.DEFINE_bool("dry_run", False, "only print the runs, with what is done and how long they will take")
    flags.DEFINE_bool("commands", False, "only print a command for each run that remains, one a line")
    flags.DEFINE_integer("jobs", 1, "number of processes that share the runs", lower_bound=1)
    flags.DEFINE_enum(
        "seeds_at_once",
        "auto",
        ["auto", "true", "false"],
        "train the seeds of an arm in one program; auto: small models on an accelerator, if --jobs is 1",
    )
    flags.DEFINE_string("only", "", "do one run, ARM:SEED, as --commands prints them; no report is made")
    flags.DEFINE_bool("worker", False, "help another process with this study; no report is made")
    flags.DEFINE_float("patience", None, "seconds after which a worker without a run to start ends", lower_bound=0)
    flags.DEFINE_bool("slurm", False, "submit what remains as one array of Slurm jobs, and show its state")
    flags.DEFINE_string("time", None, "with --slurm: time limit of a task, which goes on after it; such as 04:00:00")
    flags.DEFINE_string("partition", None, "with --slurm: the partition; empty: the cluster's default")
    flags.DEFINE_integer("tasks", None, "with --slurm: most tasks at the same time; not given: 4", lower_bound=1)
    flags.DEFINE_integer("gpus", None, "with --slurm: GPUs of a task; not given: none", lower_bound=0)
    flags.DEFINE_integer("cpus", None, "with --slurm: CPUs of a task; not given: the cluster's default", lower_bound=1)
    flags.DEFINE_string("mem", None, "with --slurm: memory of a task, such as 16G; not given: the cluster's default")
    flags.DEFINE_string("account", None, "with --slurm: the account to charge")
    flags.DEFINE_multi_string("sbatch", None, "with --slurm: any option of sbatch: --sbatch=--qos=high; may repeat")
    flags.DEFINE_multi_string("setup", None, "with --slurm: a shell line before a task: 'module load cuda'; may repeat")
    flags.DEFINE_bool("distributed", False, "not for studies: `jaxboost train` has it")
    # absl knows no fields of configs here: they depend on the study.
    sys.argv, overrides = split_overrides(sys.argv)

    def main() -> None:
        if flags.FLAGS.distributed:
            raise UserError("a study trains each run in one process: leave out --distributed; --jobs does several runs")
        do(flags.FLAGS, overrides)

    app.run(main, resumable=True, description=__doc__)


def do(given: Any, overrides: Sequence[str]) -> None:
    """Does what the flags say.

    Args:
      given: has the flags as attributes.
      overrides: `--config.section.field=value`.

    Raises:
      UserError: a mistake of the user.
      SystemExit: runs failed.
    """
    if not given.study:
        raise UserError("--study is missing: give a name or a file, such as --study ladder")
    if not given.out:
        raise UserError("--out is missing: give the folder of the study")
    if given.jobs > 1:
        # jax reads it when it first uses a GPU. By default one process takes most of the memory for itself.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = _slurm_options(given)
    if given.seeds_at_once == "true" and (given.jobs > 1 or options or given.worker):
        raise UserError("--seeds_at_once=true is for one process: leave out --jobs and --slurm, or give auto")
    from jaxboost.studies import definition, estimate, loading, plan, runner

    name = loading.suited(given.study, plan.texts(overrides))
    study = loading.load_study(name)
    if name != given.study and not given.commands:
        logger.info("the study is %s, which suits what the folder holds", name)
    if given.quick:
        study = study.as_trial()
    folder, values = io.user_path(given.out), plan.parse_overrides(study, overrides)
    planned = definition.with_dtype(plan.make(study, folder, overrides=values, seeds=given.seeds, arms=given.arms))
    stated = definition.check(planned)
    if given.dry_run:
        print(estimate.table(estimate.with_seconds(planned, flops=True), jobs=options.tasks if options else given.jobs))
        return
    # What another process needs to know of the same study.
    same = [f"--study={name}", f"--out={given.out}", *overrides]
    same += [f"--seeds={given.seeds}"] * (given.seeds > 0) + ["--quick"] * given.quick
    if given.commands:
        for each in planned.runs:
            if each.state != "finished":
                print(shlex.join(["jaxboost", "study", *same, f"--only={each.key}"]))
        return
    if given.worker:
        # Whoever started this worker passes SIGTERM on, which a scheduler may have sent to both.
        stopping.expect_forwarded(signal.SIGTERM, _FORWARDED_SECONDS)
        threading.Thread(target=_follow, args=(os.getppid(),), name="parent", daemon=True).start()
    same.append(f"--arms={','.join(given.arms)}")
    if options:
        from jaxboost.studies.slurm import array

        outcome = array.run(planned, stated, same, options)
    else:
        outcome = runner.run(
            planned,
            stated,
            only=given.only,
            worker=given.worker,
            patience=given.patience,
            workers=lambda: _workers(given.jobs, [*same, f"--only={given.only}"]),
            jobs=given.jobs,
            seeds_at_once=given.seeds_at_once,
        )
    if outcome.stopped:
        return
    if given.worker and outcome.waiting:
        sys.exit(WAITING_EXIT_CODE)
    if outcome.waiting:
        print(f"runs that are not done: {', '.join(outcome.waiting)}", file=sys.stderr)
        sys.exit(FAILED_EXIT_CODE)
    is_whole = not (given.worker or given.only)
    if is_whole and any(each.state == "finished" for each in planned.refreshed().runs):
        _report(folder)
    if outcome.failed:
        print(f"runs that failed: {', '.join(outcome.failed)}", file=sys.stderr)
        sys.exit(FAILED_EXIT_CODE)


def _slurm_options(given: Any) -> "Options | None":
    """What is asked of Slurm; None without --slurm.

    Raises:
      UserError: flags that do not go together, or a value that Slurm would not take.
    """
    names = ("time", "partition", "tasks", "gpus", "cpus", "mem", "account", "sbatch", "setup")
    flags_given = {name: value for name in names if (value := getattr(given, name)) is not None}
    if not given.slurm:
        if flags_given:
            raise UserError(f"--{next(iter(flags_given))} is for --slurm: add --slurm, or leave it out")
        return None
    for name in ("only", "worker"):
        if getattr(given, name):
            raise UserError(f"--slurm and --{name} do not go together: leave one of them out")
    if given.jobs > 1:
        raise UserError("--slurm and --jobs do not go together: --tasks is the number of tasks at the same time")
    from jaxboost.studies.slurm import options

    return options.Options(
        minutes=options.minutes(given.time or ""),
        tasks=given.tasks or options.TASKS,
        partition=given.partition or "",
        account=given.account or "",
        memory=given.mem or "",
        gpus=given.gpus or 0,
        cpus=given.cpus or 0,
        sbatch=options.further(given.sbatch or ()),
        setup=tuple(given.setup or ()),
    )


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits off the overrides --config.section.field=value; a value may follow as an argument of its own."""
    rest, overrides = [], []
    words = [*argv]
    while words:
        word = words.pop(0)
        if not _OVERRIDE.match(word):
            rest.append(word)
            continue
        if "=" not in word and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        overrides.append(word)
    return rest, overrides


def _report(folder: pathlib.Path) -> None:
    """Writes record.json and the report."""
    from jaxboost.reporting import report
    from jaxboost.studies import collect, compare, record
    from jaxboost.studies.plan import REPORT

    found = collect.collect(folder)
    with io.writing(folder):
        record.write(found, folder)
    analysis = compare.analyse(found)
    page = report.write_with_pictures(folder, analysis, found, folder / REPORT)
    print(f"{analysis['verdict']['sentence']}\n{page}")


@contextlib.contextmanager
def _workers(jobs: int, arguments: Sequence[str]) -> Iterator[None]:
    """Starts processes that share the runs with this one; at the end of the block they are asked to stop.

    Each process gets its part of the cores: for small models one core is nearly as fast as two.

    Args:
      jobs: number of processes, this one included.
      arguments: of the command `jaxboost study`.
    """
    command = [sys.executable, "-m", "jaxboost", "study", *arguments, "--worker"]
    before = _cores()
    shares = [before[number::jobs] if len(before) >= jobs else before for number in range(jobs)]
    processes = []
    try:
        for share in shares[1:]:
            _take(share)
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        _take(shares[0])
        yield
    finally:
        _take(before)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _follow(parent: int) -> None:
    """Stops this worker when the process that started it is gone: it may have ended without a word to its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _cores() -> list[int]:
    """Numbers of the cores that this process may use; [] on a system that does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _take(cores: Sequence[int]) -> None:
    """All threads of this process, and processes that it starts from now on, use these cores; []: no change."""
    if not cores:
        return
    # Threads that compute may be there already, and keep the cores that they have.
    threads = pathlib.Path("/proc/self/task")
    for number in [int(path.name) for path in threads.iterdir()] if threads.is_dir() else [0]:
        # A thread may have ended, and a container may not allow it.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(number, cores)
