"""Slurm's own commands: what they print, or one line that says why they did not."""

import dataclasses
import importlib
import os
import shutil
import socket
import subprocess
import types
from collections.abc import Sequence

from jaxboost.errors import UserError

_LOGS = "SUBMITIT_LOG_LEVEL"
_SECONDS = 60  # for an answer of the controller
# States of squeue in which a task does not work yet, or not for now.
_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


class ToolError(UserError):
    """A command of Slurm failed; the message has its own words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task of an array that is in the queue.

    Attributes:
      array: id of its array.
      state: as squeue says it, such as "PENDING".
      reason: why it waits, such as "Resources"; "None" if it does not.
    """

    array: str
    state: str
    reason: str

    @property
    def queued(self) -> bool:
        """Whether it waits for its start."""
        return self.state in _QUEUED


def check() -> None:
    """Raises UserError if Slurm's commands, or submitit, are missing."""
    for name in ("sbatch", "srun", "squeue"):
        if shutil.which(name) is None:
            raise UserError(f"--slurm: {name} is not found: start this command on a login node of a Slurm cluster")
    import_submitit()


def import_submitit() -> types.ModuleType:
    """The package submitit.

    Raises:
      UserError: it is not installed.
    """
    # While it is imported it would set up logs of its own, for which it closes those of the whole process.
    before = os.environ.get(_LOGS)
    os.environ[_LOGS] = "NOCONFIG"
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise UserError("--slurm needs submitit: pip install submitit, or the extra `slurm` of jaxboost") from None
    finally:
        os.environ.pop(_LOGS)
        if before is not None:
            os.environ[_LOGS] = before


def output(*words: str) -> str:
    """What a command of Slurm prints.

    Raises:
      ToolError: it failed, or did not answer.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{words[0]} does not answer: {error}") from None
    if done.returncode:
        raise ToolError(f"{words[0]}: {in_words(done.stderr) or f'it ended with exit code {done.returncode}'}")
    return done.stdout


def in_words(stderr: str) -> str:
    """The message of a command of Slurm: its lines without the repeated `sbatch: error:`."""
    lines = [line.rpartition("error: ")[2].strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))


def tasks(*names: str) -> list[Task]:
    """The tasks of arrays of these names that are in the queue, of all users that one may see.

    Raises:
      ToolError: squeue failed.
    """
    # Commas separate names, and %F is the same for all tasks of an array.
    text = output("squeue", "--noheader", "--array", f"--name={','.join(names)}", "--format=%F|%T|%r")
    found = [line.strip().split("|", 2) for line in text.splitlines() if line.count("|") == 2]
    return [Task(array=array, state=state, reason=reason) for array, state, reason in found]


def other_machines(partition: str) -> list[str]:
    """Names of a partition's nodes that are not this machine; "": of all nodes.

    Raises:
      ToolError: sinfo failed.
    """
    chosen = [f"--partition={partition}"] if partition else []
    rows = [line.split() for line in output("sinfo", "--noheader", *chosen, "--format=%n %o").splitlines()]
    here = (socket.gethostname(), socket.gethostname().partition(".")[0], "localhost")
    return sorted({row[0] for row in rows if row and not _is_here(row, here)})


def _is_here(row: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a node's name and address, which may be the same, are those of this machine."""
    return any(word in names or word.startswith("127.") or word == "::1" for word in row)
