"""The command `jaxboost study`: what it prints, the commands for schedulers, its exit code and its report."""

import os
import shlex
import signal
import sys
import threading
import types

import pytest

from jaxboost.cli import study as command
from jaxboost.errors import UserError
from jaxboost.studies import estimate, loading, plan, runner
from jaxboost.studies.slurm import array as slurm_array
from tests.scripts import run_each
from tests.studies.small_studies import small_study, write_run

FILE = """
import dataclasses
from tests.studies.small_studies import BARE, PLAIN, RLLM, small_study
def get_study():
    fails = dataclasses.replace(PLAIN, name="fails", overrides={{"boost.kind": "none", "train.batch_size": 8}})
    return small_study({root!r}, arms=(PLAIN, RLLM, BARE, fails), lr_grid=(1e-3, 1e-4))
"""


# Whether jax takes most of a GPU's memory at its start.
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


@pytest.fixture
def study(tmp_path, few_lidc_root):
    """Does the command in this process, with flags and overrides."""
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(root=str(few_lidc_root)))

    def do(*overrides, **changes):
        flags = dict.fromkeys(("time", "partition", "tasks", "gpus", "cpus", "mem", "account", "sbatch", "setup"))
        flags |= dict.fromkeys(("quick", "dry_run", "commands", "worker", "slurm"), False)
        flags |= {"patience": None, "seeds_at_once": "auto"}
        flags |= {"study": str(file), "out": str(tmp_path / "out"), "seeds": 0, "arms": [], "jobs": 1, "only": ""}
        command.do(types.SimpleNamespace(**flags | changes), overrides)

    return do


def test_dry_run(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "_from_flops", lambda run: estimate._Seconds(once=0.0, own=60.0))
    study(dry_run=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["arm", "run", "state", "time"]
    assert [line[0] for line in lines[1:-1]] == ["plain"] * 2 + ["rllm"] * 3 + ["bare"] * 2 + ["fails"] * 2
    assert {"waiting"} == {line[2 if "lr=" in line[1] else 3] for line in lines[1:-1]}
    assert " ".join(lines[-1]) == "9 runs, 0 finished, 9 to do: about 9 min"
    assert not (tmp_path / "out").exists()


def test_commands(study, tmp_path, capsys):
    """One of the printed commands is run as a user does."""
    study("--config.eval.bootstrap=10", commands=True, seeds=1)
    found = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    keys = [words[-1].removeprefix("--only=") for words in found]
    assert keys == ["plain:0", "rllm:lr=0.0001", "rllm:lr=0.001", "bare:0", "fails:0"]
    assert {tuple(words[:2]) for words in found} == {("jaxboost", "study")}
    # It cannot be locked.
    lock = tmp_path / "out" / "runs" / "fails" / "seed0" / "run.lock"
    lock.mkdir(parents=True)
    os.utime(lock, (0, 0))
    (fails,) = run_each([["-m", *found[-1]]])
    # A run that failed gives exit code 1, and says where to look.
    assert (fails.returncode, fails.stderr.strip()) == (1, "runs that failed: fails:0")
    assert f"see {tmp_path / 'out' / 'failures' / 'fails_seed0.txt'}" in fails.stdout
    assert not (tmp_path / "out" / "record.json").exists()

    written = plan.make(loading.load_study(str(tmp_path / "mine.py")), tmp_path / "out", overrides={}).run("plain:0")
    write_run(written.config, written.folder)
    study("--config.eval.bootstrap=10", commands=True, seeds=1)
    assert [line.rpartition("=")[2] for line in capsys.readouterr().out.splitlines()] == [
        *("0.0001", "0.001", "bare:0", "fails:0")
    ]
    words = r"holds another study, which differs in eval\.bootstrap \(10 there, 20 now\) of arm plain"
    with pytest.raises(UserError, match=words):
        study(commands=True, seeds=1)


@pytest.mark.parametrize(("missing", "words"), [("study", "--study is missing"), ("out", "--out is missing")])
def test_missing_flags(study, missing, words):
    with pytest.raises(UserError, match=words):
        study(**{missing: ""})


def test_the_study_that_a_folder_chooses_is_passed_on(study, tmp_path, monkeypatch, capsys):
    """Another process need not choose again, and --commands prints nothing else."""
    for file in ("a/1.png", "b/2.png"):
        (tmp_path / "images" / file).parent.mkdir(parents=True)
        (tmp_path / "images" / file).touch()
    overrides = ("--config.data.source=folder", f"--config.data.root={tmp_path / 'images'}")
    study(*overrides, study="ladder", commands=True, quick=True)
    found = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert {tuple(words[:3]) for words in found} == {("jaxboost", "study", "--study=ladder:2d")}
    assert "--only=pneumollm:0" in [words[-1] for words in found]
    passed = {}
    monkeypatch.setattr(runner, "run", lambda planned, stated, **given: passed.update(given) or runner.Outcome())
    started = []
    monkeypatch.setattr(command, "_workers", lambda jobs, words: started.append((jobs, words)))
    # Set first, so that it is removed again at the end.
    monkeypatch.setenv(PREALLOCATE, "")
    monkeypatch.delenv(PREALLOCATE)
    study(*overrides, study="ladder", quick=True, only="plain:0")
    assert PREALLOCATE not in os.environ
    study(*overrides, study="ladder", quick=True, jobs=3, only="plain:0", arms=["plain", "rllm"])
    assert os.environ[PREALLOCATE] == "false"
    passed["workers"]()
    assert (passed["jobs"], passed["only"], passed["worker"]) == (3, "plain:0", False)
    out = f"--out={tmp_path / 'out'}"
    # Processes that help with one run do no other.
    words = ["--study=ladder:2d", out, *overrides, "--quick", "--arms=plain,rllm", "--only=plain:0"]
    assert started == [(3, words)]


def test_what_a_worker_leaves_is_its_exit_code(study, monkeypatch, capsys):
    """A task of an array then comes back; for the command that submitted it, it is a failure without a report."""
    left = runner.Outcome(waiting=("rllm:1",))
    monkeypatch.setattr(runner, "run", lambda planned, stated, **given: left)
    monkeypatch.setattr(command, "_report", lambda folder: pytest.fail("a report"))
    with pytest.raises(SystemExit) as stop:
        study(worker=True, patience=150.0)
    assert stop.value.code == 75
    monkeypatch.setattr(slurm_array, "run", lambda planned, stated, words, options: left)
    with pytest.raises(SystemExit) as stop:
        study(slurm=True, time="30")
    assert (stop.value.code, capsys.readouterr().err) == (1, "runs that are not done: rllm:1\n")


def test_overrides_are_split_off():
    argv = ["study", "--study=x", "--config.a.b=1", "--config.c", "-2", "--noconfig.d", "--quick", "-config.e=3"]
    argv.append("--config.f")
    rest, overrides = command.split_overrides(argv)
    assert rest == ["study", "--study=x", "--quick"]
    assert overrides == ["--config.a.b=1", "--config.c=-2", "--noconfig.d", "-config.e=3", "--config.f"]


def test_the_report_is_made_from_the_record(tmp_path, monkeypatch, capsys):
    made = plan.make(small_study(lr_grid=()), tmp_path)
    for run in made.runs:
        write_run(run.config, run.folder)
    written = []
    compare, reporting, report = (types.ModuleType(name) for name in ("compare", "reporting", "report"))
    analysis = {"verdict": {"sentence": "Not shown."}}
    compare.analyse = lambda found: analysis

    def write(runs, analysis, found, folder):
        written.append((runs, analysis, len(found.runs), folder))
        return folder / "report.html"

    report.write_with_pictures = write
    reporting.report = report
    monkeypatch.setitem(sys.modules, "jaxboost.studies.compare", compare)
    monkeypatch.setattr("jaxboost.studies.compare", compare, raising=False)
    monkeypatch.setitem(sys.modules, "jaxboost.reporting", reporting)
    monkeypatch.setitem(sys.modules, "jaxboost.reporting.report", report)
    from jaxboost.studies import definition

    definition.write(tmp_path, definition.check(made))
    command._report(tmp_path)
    assert written == [(tmp_path, analysis, 6, tmp_path / "report")]
    assert capsys.readouterr().out == f"Not shown.\n{tmp_path / 'report' / 'report.html'}\n"
    assert (tmp_path / "record.json").exists()


@pytest.fixture
def started(monkeypatch):
    """Words and signals of the processes that would be started, and the cores that are taken, in order."""
    events = []

    class Process:
        def __init__(self, words, stdout):
            events.append(words)

        def terminate(self):
            events.append("terminate")

        def wait(self):
            events.append("wait")

    monkeypatch.setattr(command.subprocess, "Popen", Process)
    monkeypatch.setattr(command.os, "sched_setaffinity", lambda number, cores: events.append([*cores]), raising=False)
    # No threads.
    monkeypatch.setattr(command.pathlib.Path, "is_dir", lambda self: False)
    return events


WORKER = [sys.executable, "-m", "jaxboost", "study", "--study=x", "--out=y", "--worker"]


@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ((0, 1), 2, ((1,), (0,))),
        ((0, 2, 4, 5, 7), 2, ((2, 5), (0, 4, 7))),
        ((0, 1, 2), 3, ((1,), (2,), (0,))),
        # More processes than cores: each may use all of them.
        ((3, 5), 3, ((3, 5), (3, 5), (3, 5))),
    ],
)
def test_workers_get_their_part_of_the_cores(monkeypatch, started, cores, jobs, shares):
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda number: set(cores), raising=False)
    with command._workers(jobs, ["--study=x", "--out=y"]):
        # Processes inherit the cores that this one has when it starts them.
        expected = [event for share in shares[:-1] for event in ([*share], WORKER)]
        assert started == [*expected, [*shares[-1]]]
        started.clear()
    assert started == [[*cores], *["terminate"] * (jobs - 1), *["wait"] * (jobs - 1)]


def test_workers_on_a_system_that_does_not_share_cores(monkeypatch, started):
    monkeypatch.delattr(command.os, "sched_getaffinity", raising=False)
    with command._workers(3, ["--study=x", "--out=y"]):
        assert started == [WORKER, WORKER]
    assert started[2:] == ["terminate", "terminate", "wait", "wait"]


def test_workers_are_stopped_after_an_error(monkeypatch, started):
    monkeypatch.setattr(command, "_cores", lambda: [0, 1])
    with pytest.raises(ZeroDivisionError), command._workers(2, ["--study=x", "--out=y"]):
        raise ZeroDivisionError
    assert started[-3:] == [[0, 1], "terminate", "wait"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not share cores")
def test_threads_that_are_there_already_move_too():
    before, done = command._cores(), threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        command._take(before[-1:])
        assert os.sched_getaffinity(thread.native_id) == os.sched_getaffinity(0) == {before[-1]}
    finally:
        command._take(before)
        done.set()
        thread.join()
    assert command._cores() == before


def test_a_worker_ends_with_the_process_that_started_it(monkeypatch):
    parents, sent = iter([7, 7, 1]), []
    monkeypatch.setattr(command.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(command.time, "sleep", lambda seconds: sent.append(seconds))
    monkeypatch.setattr(command.os, "kill", lambda *words: sent.append(words))
    command._follow(7)
    assert sent == [1, 1, (os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize("changes", [{"jobs": 2}, {"worker": True}])
def test_seeds_at_once_are_of_one_process(study, changes):
    with pytest.raises(UserError, match="--seeds_at_once=true is for one process: leave out --jobs and --slurm"):
        study(seeds_at_once="true", **changes)


def test_a_study_has_its_own_number_of_seeds(study):
    with pytest.raises(UserError, match=r"--config\.train\.seeds: give the number of seeds with --seeds"):
        study("--config.train.seeds=5")
