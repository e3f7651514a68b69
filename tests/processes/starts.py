"""Starts commands as processes of their own that share what is slow about a start: Python and its imports."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from tests.scripts import REPOSITORY

# Forks a process for each request of its stdin.
_FORKS = """
import importlib, json, os, signal, sys, traceback
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
signal.signal(signal.SIGINT, signal.default_int_handler)

def child(request):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    code = 1
    try:
        exec(request["before"], {})
        if request["words"]:
            from jaxboost.cli import main
            main.main(request["words"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        _, status = os.waitpid(request["wait"], 0)
        answer = os.waitstatus_to_exitcode(status)
    else:
        answer = os.fork()
        if answer == 0:
            child(request)
    print(json.dumps(answer), flush=True)
"""


@dataclasses.dataclass
class Started:
    """A process: its pid, and the files of its stdout and stderr."""

    pid: int
    out: pathlib.Path
    err: pathlib.Path

    def lines(self) -> list[str]:
        """The lines of stderr."""
        return self.err.read_text().splitlines()


class Forks:
    """A process that has imported what its forks need, and no more; see `forks`."""

    def __init__(self, process: subprocess.Popen[str], folder: pathlib.Path):
        self._process, self._folder, self._count = process, folder, 0

    def start(
        self,
        words: Sequence[object] = (),
        *,
        before: str = "",
        env: Mapping[str, str] | None = None,
        cwd: object = None,
    ) -> Started:
        """Starts `jaxboost WORDS` in a fork, after the program `before`."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        request = {"words": [*map(str, words)], "before": before, "env": dict(env or {})}
        pid = self._ask({**request, "cwd": str(cwd or REPOSITORY), "out": str(out), "err": str(err)})
        return Started(pid, out, err)

    def wait(self, *started: Started) -> list[int]:
        """The exit codes of processes, when they have ended."""
        return [self._ask({"wait": each.pid}) for each in started]

    def _ask(self, request: Mapping[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def forks(folder: pathlib.Path, *modules: str) -> Iterator[Forks]:
    """A process that forks after it has imported `modules`; `folder` gets what the forks print."""
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKS, json.dumps(["jaxboost.cli.main", *modules])],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONWARNINGS": "ignore:This process:DeprecationWarning"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forks(process, folder)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(what, seconds: float = 60) -> None:
    """Waits until `what()` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
