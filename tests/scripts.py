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


def assert_mistake(process: subprocess.CompletedProcess[str], *words: str) -> None:
    """The process ended as a user's mistake does: exit code 2, and one line on stderr that holds all `words`."""
    assert process.returncode == 2, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
