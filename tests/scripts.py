"""Runs the project's scripts as a user does: in a process of their own."""

import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[1]


def run_script(
    *arguments: object, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` in the repository's root; stdout and stderr are kept as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def devices(count: int) -> dict[str, str]:
    """The environment in which jax has so many devices of the CPU, and else compiles as in this process."""
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"}


def interrupted_training(call: int, checkpoint: str, action: str) -> str:
    """A program for `run_script("-c", ...)`: train.py, to which something happens between two of its steps.

    Its arguments are the run's folder and then those of train.py.

    Args:
      call: the training batch before which it happens, counted from 1 over all runs of the process.
      checkpoint: below the run's folder; it is waited for.
      action: statements of Python.
    """
    return f"""
import os, pathlib, resource, runpy, signal, sys, time
from jaxboost.training import step

workdir, put, calls = pathlib.Path(sys.argv.pop(1)), step.put, []

def put_or_not(*arguments):
    calls.append(1)
    if len(calls) == {call}:
        while not (workdir / {checkpoint!r}).exists():
            time.sleep(0.05)
        {action}
    return put(*arguments)

step.put = put_or_not
sys.argv[0] = "train.py"
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def assert_mistake(process: subprocess.CompletedProcess[str], *words: str) -> None:
    """The process ended as a user's mistake does: exit code 2, and one line on stderr that holds all `words`."""
    assert process.returncode == 2, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
