"""Runs a study: several arms with several seeds on the same data, compared in one report.

jaxboost study --study ladder --out DIR [--config.section.field=value ...] [--seeds N] [--quick] [--dry_run]

--study takes the name of a packaged study, or the path of a study file. The same command continues a study that was
stopped. Overrides hold for all arms that have the field, such as --config.data.source=folder --config.data.root=FOLDER.
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
from typing import Any

from absl import flags

from jaxboost import io
from jaxboost.cli import app
from jaxboost.errors import UserError

logger = logging.getLogger(__name__)

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
    flags.DEFINE_string("only", "", "do one run, ARM:SEED, as --commands prints them; no report is made")
    flags.DEFINE_bool("worker", False, "help another process with this study; no report is made")
    # absl knows no fields of configs here: they depend on the study.
    sys.argv, overrides = split_overrides(sys.argv)

    app.run(lambda: do(flags.FLAGS, overrides), resumable=True, description=__doc__)


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
        print(estimate.table(estimate.with_seconds(planned, flops=True), jobs=given.jobs))
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
        threading.Thread(target=_follow, args=(os.getppid(),), name="parent", daemon=True).start()
    outcome = runner.run(
        planned,
        stated,
        only=given.only,
        worker=given.worker,
        workers=lambda: _workers(given.jobs, [*same, f"--arms={','.join(given.arms)}", f"--only={given.only}"]),
        jobs=given.jobs,
    )
    if outcome.stopped:
        return
    is_whole = not (given.worker or given.only)
    if is_whole and any(each.state == "finished" for each in planned.refreshed().runs):
        _report(folder)
    if outcome.failed:
        print(f"runs that failed: {', '.join(outcome.failed)}", file=sys.stderr)
        sys.exit(FAILED_EXIT_CODE)


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
