"""An array of Slurm jobs without Slurm: what is asked for, what a task does, what the command shows, and mistakes."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import pytest

from jaxboost import stopping
from jaxboost.cli import study as command
from jaxboost.errors import UserError
from jaxboost.runs import lock
from jaxboost.studies import plan
from jaxboost.studies.slurm import array, options, task, tools, visible
from tests.scripts import assert_mistake, run_inside
from tests.studies.small_studies import small_study, write_run


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("5:30", 6), ("04:00:00", 240), ("00:09:01", 10), ("2-0", 2880), ("1-02:30", 1590), ("0-1:0:1", 61)],
)
def test_times(text, expected):
    assert options.minutes(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--time is missing"),
        ("4h", "'4h' is no time limit"),
        ("-5", "is no time limit"),
        ("4", "5 minutes or more"),
    ],
)
def test_times_that_are_none(text, words):
    with pytest.raises(UserError, match=words):
        options.minutes(text)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("qos high", "is no option of sbatch"),
        ("--qos=", "is no option of sbatch"),
        ("--array=0-9", "sets --array itself"),
        ("--signal=USR1", "sets --signal itself"),
        ("--time=1", "give --time instead"),
        ("--gpus-per-task=1", "give --gpus instead"),
    ],
)
def test_options_of_sbatch_that_are_refused(line, words):
    with pytest.raises(UserError, match=words):
        options.further([line])


def test_what_submitit_is_asked_for():
    found = options.further(["--qos=high", "exclusive", "#SBATCH --constraint=a100&ib"])
    assert found == {"qos": "high", "exclusive": True, "constraint": "a100&ib"}
    given = options.Options(
        minutes=60, partition="gpu", gpus=1, cpus=4, memory="16G", sbatch=found, setup=("module load cuda",)
    )
    executor = tools.import_submitit().SlurmExecutor.__new__(tools.import_submitit().SlurmExecutor)
    executor.folder = pathlib.Path("logs")
    executor.parameters = given.parameters("a name")
    lines = executor._make_submission_file_text("COMMAND", "").splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert asked >= {
        *("--signal=TERM@120", "--requeue", "--time=60", "--partition=gpu", "--gpus-per-node=1", "--mem=16G"),
        *("--cpus-per-task=4", "--qos=high", "--exclusive", "--job-name='a name'", "--constraint='a100&ib'"),
    }
    assert not any("wckey" in line for line in asked)
    assert lines.index("module load cuda") < next(number for number, line in enumerate(lines) if "COMMAND" in line)
    # Since Slurm 22.05 srun does not take it from sbatch.
    assert any(line.startswith("srun ") and "--cpus-per-task=4" in line for line in lines)


WORKER = """
import os, signal, sys, time
if os.environ["ENDS"] == "signal":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if os.environ["ENDS"] == "saving":
    # Slurm has sent it to both, and this one saves.
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    for pid in (os.getpid(), os.getppid()):
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.7)
    sys.exit(0 if len(seen) == 1 else 143)
os.kill(os.getpid(), signal.SIGKILL) if os.environ["ENDS"] == "killed" else sys.exit(int(os.environ["ENDS"]))
"""


@pytest.fixture
def drain(monkeypatch, tmp_path):
    """Runs a task whose worker ends in some way; the commands that it gives to Slurm are returned."""
    (tmp_path / "jaxboost.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, value in {"ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3", "JOB_ID": "12"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(task.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(task, "FORWARD_SECONDS", 1.0)
    before = signal.getsignal(signal.SIGTERM)

    def do(ends: str, state: str = "RUNNING") -> tuple[int, list[str]]:
        calls = []

        def run(words):
            calls.append(" ".join(words[:2]) if words[0] == "scontrol" else words[0])
            assert "12_3" in words[-1] + words[2]
            return subprocess.CompletedProcess(words, 0, f"{state}\n", "")

        monkeypatch.setenv("ENDS", ends)
        monkeypatch.setattr(task, "_run", run)
        return task.drain(["--study=x"]), calls

    yield do
    signal.signal(signal.SIGTERM, before)


REQUEUED = ["scontrol requeue"]


@pytest.mark.parametrize(
    ("ends", "state", "expected"),
    [
        ("0", "", (0, [])),
        ("1", "", (1, [])),
        ("75", "", (75, REQUEUED)),
        ("signal", "RUNNING", (0, ["squeue", *REQUEUED])),
        ("saving", "RUNNING", (0, ["squeue", *REQUEUED])),
        # It was cancelled, or Slurm requeues it by itself.
        ("signal", "COMPLETING", (0, ["squeue"])),
    ],
)
def test_when_a_task_is_requeued(drain, ends, state, expected):
    assert drain(ends, state) == expected


@pytest.mark.parametrize(("ends", "code"), [("2", 2), ("killed", -9)])
def test_a_worker_that_cannot_work_fails_its_task(drain, ends, code):
    with pytest.raises(RuntimeError, match=f"exit code {code}"):
        drain(ends)


def test_a_task_alone_has_a_plain_id():
    assert task.job_id({"SLURM_JOB_ID": "7"}) == "7"
    assert task.job_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}) == "7_0"


@pytest.fixture
def queue(monkeypatch):
    """The answers of squeue, one after the other: lists of (state, reason), or None where it does not answer."""
    answers = []

    def tasks(*names):
        answer = answers.pop(0)
        if callable(answer):
            answer = answer()
        if answer is None:
            raise tools.ToolError("squeue: unable to contact the controller")
        return [tools.Task(array="12", state=state, reason=reason) for state, reason in answer]

    monkeypatch.setattr(tools, "tasks", tasks)
    monkeypatch.setattr(array, "_wait", lambda seconds: stopping.poll())
    return answers


def test_the_state_is_shown_until_all_runs_are_done(queue, tmp_path, caplog):
    made = plan.make(small_study(lr_grid=()), tmp_path)

    def finish(*keys):
        for key in keys:
            write_run(made.run(key).config, made.run(key).folder)
        return [("RUNNING", "None")]

    def fail():
        finish("plain:1", "rllm:1", "bare:0")
        made.run("bare:1").failure.parent.mkdir()
        made.run("bare:1").failure.touch()
        return []

    running, queued = ("RUNNING", "None"), ("PENDING", "Priority")
    # At first squeue has no reason yet.
    queue += [
        [("PENDING", "None")] * 2,
        [queued] * 2,
        [running, queued],
        None,
        None,
        lambda: finish("plain:0", "rllm:0"),
        fail,
    ]
    with caplog.at_level("INFO", "jaxboost"):
        outcome = array._watch(made, array.Array(id="12", found=False))
    assert (outcome.failed, outcome.waiting) == (("bare:1",), ())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:6] == [
        "array 12: 0 running, 2 queued; 0 of 6 runs are done, time left not known yet",
        "array 12: 0 running, 2 queued (Priority); 0 of 6 runs are done, time left not known yet",
        "array 12: 1 running, 1 queued (Priority); 0 of 6 runs are done, time left not known yet",
        "squeue does not answer: the state of the tasks is not known",
        "array 12: 1 running, 0 queued; 2 of 6 runs are done, about 40 s left",
        "all runs are done; 6 of 6 runs are done, about 0 s left",
    ]


def test_a_signal_ends_the_command_and_not_the_array(queue, tmp_path, monkeypatch):
    made = plan.make(small_study(), tmp_path)
    monkeypatch.setattr(tools, "check", lambda: None)
    monkeypatch.setattr(visible, "check", lambda *words: None)

    def stop():
        os.kill(os.getpid(), signal.SIGINT)
        return [("RUNNING", "None")]

    queue += [[("RUNNING", "None")], stop]
    with stopping.watch(resumable=True) as signals, pytest.raises(stopping.Stopped):
        # An array is in the queue: nothing is checked or submitted.
        array.run(made, None, [], options.Options(minutes=10))
    assert signals.line == (
        "stopped by Ctrl-C; array 12 goes on: the same command shows it again, `scancel 12` ends it"
    )


def test_a_finished_study_submits_nothing(tmp_path, monkeypatch):
    made = plan.make(small_study(lr_grid=()), tmp_path)
    for run in made.runs:
        write_run(run.config, run.folder)
    for name in ("check", "other_machines", "tasks"):
        monkeypatch.setattr(tools, name, lambda *words: [])
    monkeypatch.setattr(array.runner, "prepare", lambda *words: None)
    outcome = array.run(made.refreshed(), None, [], options.Options(minutes=10))
    assert (outcome.failed, outcome.waiting, outcome.stopped) == ((), (), False)


def test_folders_of_this_machine_alone(monkeypatch, tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("disk / ext4 rw 0 0\nmem /mem\\040ory tmpfs rw 0 0\nserver:/x /mem\\040ory/shared nfs4 rw 0 0\n")
    monkeypatch.setattr(visible, "_MOUNTS", mounts)
    answer = "n1 10.0.0.1\nn2 10.0.0.2\nhere 127.0.0.1\n"
    monkeypatch.setattr(tools, "output", lambda *words: answer)
    for folder, words in (
        ("/tmp/x", "/tmp/x is in /tmp of this machine, which the nodes (n1 and 1 more) do not see"),
        ("/mem ory/x", "/mem ory/x is in the memory of this machine"),
        ("/data/100%", "Slurm takes % in a path for a pattern"),
    ):
        with pytest.raises(UserError) as error:
            visible.check(pathlib.Path(folder), "gpu")
        assert words in str(error.value)
    visible.check(pathlib.Path("/mem ory/shared/x"), "gpu")
    visible.check(pathlib.Path("/home/x"), "gpu")
    answer = "here 127.0.0.1\n"
    visible.check(pathlib.Path("/tmp/x"), "")


def test_what_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="--slurm: sbatch is not found: start this command on a login node"):
        tools.check()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit, or the extra `slurm`"):
        tools.check()
    assert "SUBMITIT_LOG_LEVEL" not in os.environ


def test_results_that_a_network_file_system_shows_late(queue, tmp_path, monkeypatch):
    """The array has left the queue before the last results are seen."""
    made = plan.make(small_study(lr_grid=()), tmp_path)

    def last():
        for run in made.runs:
            write_run(run.config, run.folder)
        return []

    queue += [[("RUNNING", "None")], [], [], last]
    assert array._watch(made, array.Array(id="12", found=False)).waiting == ()
    assert queue == []


def test_a_task_waits_until_the_lock_of_a_killed_one_is_stale():
    assert task.PATIENCE > lock._LEASE


NOT_GIVEN = dict.fromkeys(("time", "partition", "tasks", "gpus", "cpus", "mem", "account", "sbatch", "setup"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partition": "gpu"}, "--partition is for --slurm: add --slurm"),
        ({"gpus": 0}, "--gpus is for --slurm"),
        ({"slurm": True}, "--time is missing"),
        ({"slurm": True, "time": "30", "jobs": 2}, "--slurm and --jobs do not go together"),
        ({"slurm": True, "time": "30", "only": "plain:0"}, "--slurm and --only do not go together"),
    ],
)
def test_flags_that_do_not_go_together(changes, words):
    given = types.SimpleNamespace(**{**NOT_GIVEN, "slurm": False, "jobs": 1, "only": "", "worker": False, **changes})
    with pytest.raises(UserError, match=words):
        command._slurm_options(given)


def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path):
    words = ("-m", "jaxboost", "study", "--study", "ladder", "--out", tmp_path / "out")
    assert_mistake(run_inside(*words, "--slurm", "--time", "4h"), "--time '4h' is no time limit: give minutes,")
    assert_mistake(run_inside(*words, "--partition=gpu"), "--partition is for --slurm: add --slurm, or leave it out")
    assert list(tmp_path.iterdir()) == []
