"""Runs the project's scripts as a user does: in a process of their own, or in this one where that is not the point."""

import contextlib
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

import absl.logging
from absl.testing import flagsaver

from jaxboost.cli import main
from jaxboost.training import program

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


@contextlib.contextmanager
def _process_settings(folder: pathlib.Path) -> Iterator[None]:
    """Works in `folder`, and gives what a command changes for its process back: flags, logs, warnings."""
    loggers = [logging.getLogger(name) for name in ("", "jaxboost", "asyncio", "absl")]
    names = ("level", "propagate", "handlers", "filters")
    kept = [{name: getattr(logger, name) for name in names} for logger in loggers]
    argv, hook, verbosity = sys.argv, sys.unraisablehook, absl.logging.get_verbosity()
    for logger, values in zip(loggers, kept, strict=True):
        logger.handlers, logger.filters = [*values["handlers"]], [*values["filters"]]
    try:
        with flagsaver.flagsaver(), warnings.catch_warnings(), contextlib.chdir(folder):
            yield
    finally:
        sys.argv, sys.unraisablehook = argv, hook
        absl.logging.set_verbosity(verbosity)
        for logger, values in zip(loggers, kept, strict=True):
            for name, value in values.items():
                setattr(logger, name, value)


def run_inside(*arguments: object, folder: pathlib.Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` as `run_script` does, but in this process, which has imported and compiled already.

    For what a command does and says. Signals, other environments and what libraries print need `run_script`.

    Args:
      *arguments: a script, or "-m" and "jaxboost" and a subcommand; then the command's arguments.
      folder: the working directory.
    """
    # A process of its own would trace its programs itself.
    program.forget()
    words = [str(argument) for argument in arguments]
    script = {"train.py": "train", "convert_weights.py": "convert"}.get(words[0])
    words = [script, *words[1:]] if script else words[2:]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with _process_settings(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(words)
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


# Forks a process for each command of its stdin; what they all import is loaded before, without jax and its threads.
_FORKS = """
import atexit, json, os, runpy, sys, tempfile, traceback
import jaxboost.cli.main, jaxboost.cli.train, jaxboost.cli.convert, jaxboost.config.loading
assert "jax" not in sys.modules
sys.path[0] = ""

def run(script, *arguments):
    sys.argv = [script, *arguments]
    if script == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")

def child(command, out, err):
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    code = 0
    try:
        run(*command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

found = []
for command in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            child(command, out, err)
        _, status = os.waitpid(pid, 0)
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
        found.append((os.waitstatus_to_exitcode(status), *texts))
json.dump(found, sys.stdout)
"""


def run_each(commands: Sequence[Sequence[object]], *, timeout: float = 300) -> list[subprocess.CompletedProcess[str]]:
    """Runs `python COMMAND` for each command as `run_script` does, each in a fork of one process.

    The start of Python and the imports that all commands need are paid once. A command is the path of a script, or
    "-m" and a module, with its arguments.
    """
    texts = [[str(argument) for argument in command] for command in commands]
    process = subprocess.run(
        [sys.executable, "-c", _FORKS],
        input=json.dumps(texts),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert process.returncode == 0, process.stderr
    return [
        subprocess.CompletedProcess(text, *result)
        for text, result in zip(texts, json.loads(process.stdout), strict=True)
    ]


def devices(count: int) -> dict[str, str]:
    """The environment in which jax has so many devices, all of the CPU, and else compiles as in this process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


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
