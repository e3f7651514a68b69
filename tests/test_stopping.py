"""Signals, closed pipes and launchers, on small programs that start as the scripts do."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxboost import stopping
from jaxboost.cli import app
from jaxboost.errors import UserError
from tests.scripts import REPOSITORY, assert_mistake, run_script

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

PROGRAM = """
import gc, hashlib, logging, os, signal, sys, threading, time
from jaxboost import stopping
from jaxboost.cli import app

# Heard, though the tests may run in the background of a script; but for one that is to be ignored.
for number in stopping.SIGNALS:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.{hangup})

logger = logging.getLogger("jaxboost.test")

def later(seconds, *signals):
    def send():
        for number in signals:
            time.sleep(seconds)
            os.kill(os.getpid(), number)
    threading.Thread(target=send, daemon=True).start()

def main():
{body}

app.run(main, resumable={resumable})
"""


def run(body: str, *, resumable: bool = False, hangup: str = "SIG_DFL", **options) -> subprocess.CompletedProcess[str]:
    body = textwrap.indent(textwrap.dedent(body), "    ")
    program = PROGRAM.format(body=body, resumable=resumable, hangup=hangup)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        text=True,
        timeout=60,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    ("name", "resumable", "code"),
    [
        ("SIGTERM", True, 0),
        ("SIGHUP", True, 0),
        ("SIGINT", True, 130),
        ("SIGTERM", False, 143),
        ("SIGHUP", False, 129),
        ("SIGINT", False, 130),
    ],
)
def test_a_signal_is_one_line_and_cleans_up(name, resumable, code):
    done = run(
        f"""
        try:
            later(0.1, signal.{name})
            time.sleep(30)
        finally:
            print("temporary files are removed")
        """,
        resumable=resumable,
    )
    assert done.returncode == code
    assert done.stderr == ""
    cleaned, line = done.stdout.splitlines()
    assert cleaned == "temporary files are removed"
    assert line.startswith(f"stopped by {'Ctrl-C' if name == 'SIGINT' else name}")
    assert ("run the same command again" in line) == resumable


@pytest.mark.parametrize("code", [0, 1])
def test_a_stopped_command_does_not_wait_for_threads(code):
    """XLA may still compile in one, for minutes. `run` has a limit of 60 seconds."""
    done = run(
        f"""
        threading.Thread(target=time.sleep, args=(100,)).start()
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        print("saved")
        sys.exit({code})
        """,
        resumable=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "saved\n", "")


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup, and as of Ctrl-C in the background of a shell's script."""
    done = run(
        """
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
        print("went on")
        """,
        hangup="SIG_IGN",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_a_deferred_signal_is_only_noted():
    done = run(
        """
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(stopping.GRACE_SECONDS + 0.5)
            print("saved", stopping.received(), flush=True)
            stopping.poll()
        """,
        resumable=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["saved SIGTERM", "stopped by SIGTERM: run the same command again"]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_ends_at_once(name, code):
    done = run(
        f"""
        with stopping.deferred():
            later(0.5, signal.{name}, signal.{name})
            # The main thread is not in Python, and comes to no signal.
            hashlib.pbkdf2_hmac("sha512", b"", b"", 1 << 30)
        """,
        resumable=True,
    )
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert "stopped at once by a second signal" in line


def test_a_signal_that_a_parent_passes_on_is_no_second_one():
    done = run(
        """
        stopping.expect_forwarded(signal.SIGTERM, 60)
        with stopping.deferred():
            later(0.4, signal.SIGTERM, signal.SIGTERM)
            time.sleep(1.2)
            print("saved")
        """,
        resumable=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


def test_a_signal_twice_in_a_moment_is_one():
    """Ctrl-C goes to all processes of a terminal, and some that start others pass it on as well."""
    done = run(
        """
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            print("saved")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


def test_work_outside_of_python_is_ended_where_nothing_is_lost():
    start = time.monotonic()
    done = run(
        """
        later(0.1, signal.SIGTERM)
        stopping.say(" before the first step: run the same command again")
        hashlib.pbkdf2_hmac("sha512", b"", b"", 1 << 30)
        """,
        resumable=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped by SIGTERM before the first step: run the same command again\n"
    assert done.stderr == ""
    assert time.monotonic() - start < 50


def test_a_signal_in_a_callback_of_the_collector_is_not_lost():
    done = run(
        """
        gc.callbacks.append(lambda phase, info: os.kill(os.getpid(), signal.SIGTERM) if phase == "start" else None)
        gc.collect()
        gc.callbacks.clear()
        while True:
            time.sleep(0.01)
        """,
        resumable=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "stopped by SIGTERM: run the same command again\n"


def test_a_signal_while_modules_are_loaded(tmp_path):
    """Where compiled ones make another error of an exception: here one that makes an error of any."""
    (tmp_path / "slow_module.py").write_text(
        "import time\ntry:\n    time.sleep(30)\nexcept BaseException as error:\n    raise ImportError from error\n"
    )
    done = run(
        f"""
        sys.path.insert(0, {str(tmp_path)!r})
        later(0.1, signal.SIGINT)
        import slow_module
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "stopped by Ctrl-C\n", "")


def test_a_forked_child_does_not_stop_its_parent():
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for a fork beside threads
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
        time.sleep(0.5)
        print("went on", stopping.received())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "15\nwent on \n", "")


def test_in_other_threads_and_libraries_signals_stay_as_they_are():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    with stopping.watch() as outer:
        assert signal.getsignal(signal.SIGTERM) not in (before[signal.SIGTERM], None)
        with stopping.watch(resumable=True) as inner:
            assert inner is outer
        with pytest.raises(stopping.Stopped, match="stopped by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stopping.Stopped):
            stopping.poll()
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before
    stopping.poll()
    assert stopping.received() == ""


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_reader_that_is_gone_ends_a_command_quietly():
    pipe = closed_pipe()
    done = run("print('figures')", stdout=pipe)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("target", ["closed pipe", "/dev/full"])
def test_a_log_that_cannot_be_written_does_not_end_the_work(target):
    descriptor = closed_pipe() if target == "closed pipe" else os.open(target, os.O_WRONLY)
    done = run(
        """
        for number in range(3):
            logger.info("step %d", number)
        print("done", file=sys.stderr)
        """,
        stdout=descriptor,
    )
    os.close(descriptor)
    assert done.returncode == 0
    warning, end = done.stderr.splitlines()
    assert "logging stops: stdout cannot be written (" in warning
    assert end == "done"


@pytest.mark.parametrize(
    ("name", "words"),
    [("ENOSPC", "make room"), ("EFBIG", "ulimit -f"), ("EROFS", "read-only"), ("EDQUOT", "quota")],
)
def test_a_disk_that_refuses_is_one_line_wherever_it_is_met(name, words):
    done = run(
        f"""
        import errno
        raise OSError(errno.{name}, os.strerror(errno.{name}), "some/file")
        """
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: some/file cannot be written (")
    assert words in line


def test_other_errors_keep_their_traceback():
    done = run("open('there/is/none')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, ["task 1 of 2 that srun started", "srun -n 1", "--array"]),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
            ["task 0 of 4 that mpirun started", "mpirun -n 1"],
        ),
        ({"PMI_SIZE": "3", "PMI_RANK": "2"}, ["task 2 of 3 that mpiexec started"]),
        ({"WORLD_SIZE": "8", "RANK": "7"}, ["task 7 of 8 that torchrun started", "`python`"]),
        # A batch script with several tasks, an array, one task of a step, and variables that say nothing.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, None),
        ({"SLURM_ARRAY_TASK_COUNT": "9", "SLURM_ARRAY_TASK_ID": "3"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"WORLD_SIZE": "8"}, None),
        ({"SLURM_STEP_NUM_TASKS": "x", "SLURM_PROCID": ""}, None),
        ({}, None),
    ],
)
def test_one_of_several_tasks_is_refused(environment, words, monkeypatch):
    for names in app._LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if words is None:
        app.check_single_task()
        return
    with pytest.raises(UserError) as error:
        app.check_single_task()
    for word in (*words, "--distributed", "--independent_tasks", "--workdir"):
        assert word in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="names of processes in /proc")
def test_the_name_of_the_process_has_no_space():
    """Slurm's proctrack/linuxproc, and other readers of /proc/PID/stat, would not find the process."""
    program = """
import sys
from jaxboost.cli import app
sys.argv = ["jaxboost train"]
app.run(lambda: print(open("/proc/self/comm").read()))
"""
    process = run_script("-c", program)
    assert process.stdout.split() == ["jaxboost-train"], process.stderr


def test_train_under_a_launcher(tmp_path):
    """The processes of a step: before anything is loaded or written."""
    environment = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    arguments = ("train.py", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}")
    assert_mistake(run_script(*arguments, env=environment), "task 0 of 2 that srun started", "srun -n 1")
    assert list(tmp_path.iterdir()) == []
