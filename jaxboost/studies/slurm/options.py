"""What a user asks Slurm for, checked before anything is read or submitted."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.errors import UserError

# Slurm sends SIGTERM so long before the end of a task's time, and up to a minute earlier.
SIGNAL_SECONDS = 120
_LEAST_MINUTES = 5
TASKS = 4  # at the same time, if the user does not say

_TIMES = (
    r"(?P<m>\d+)(:(?P<s>\d+))?",
    r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
    r"(?P<d>\d+)-(?P<h>\d+)(:(?P<m>\d+)(:(?P<s>\d+))?)?",
)
_MINUTES = {"d": 24 * 60, "h": 60, "m": 1, "s": 1 / 60}
# Options of sbatch that are ours: a task is one process, and its end and its log have to be found again.
_OURS = (
    *("array", "chdir", "error", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode"),
    *("output", "requeue", "signal", "wrap"),
)
# Options that have a flag of ours.
_FLAGS = {
    **{"time": "--time", "partition": "--partition", "account": "--account", "mem": "--mem"},
    **{"cpus-per-task": "--cpus", "gpus-per-node": "--gpus", "gpus-per-task": "--gpus"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What each task of the array gets.

    Attributes:
      minutes: time limit.
      tasks: number of tasks that run at the same time.
      partition, account, memory: as sbatch takes them; "": the cluster's default.
      gpus, cpus: numbers; 0: no GPU, and the cluster's default number of CPUs.
      sbatch: further options of sbatch: name without dashes -> value, or True.
      setup: shell lines that a task runs first, such as `module load cuda`.
    """

    minutes: int
    tasks: int = TASKS
    partition: str = ""
    account: str = ""
    memory: str = ""
    gpus: int = 0
    cpus: int = 0
    sbatch: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)
    setup: tuple[str, ...] = ()

    def parameters(self, name: str) -> dict[str, Any]:
        """The parameters of submitit's executor, for an array of this name."""
        further: dict[str, str | bool] = {"signal": f"TERM@{SIGNAL_SECONDS}", "requeue": True, **self.sbatch}
        if self.memory:
            further["mem"] = self.memory
        given = {
            "partition": self.partition or None,
            "account": self.account or None,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus or None,
            "setup": list(self.setup) or None,
            # Since Slurm 22.05 srun does not take it from sbatch.
            "srun_args": [f"--cpus-per-task={self.cpus}"] if self.cpus else None,
        }
        return {
            "job_name": name,
            "time": self.minutes,
            # Clusters that account by wckey refuse one that they do not know.
            "wckey": None,
            "additional_parameters": further,
            **{key: value for key, value in given.items() if value is not None},
        }


def minutes(text: str) -> int:
    """A time limit as Slurm takes it, in minutes, rounded up.

    Raises:
      UserError: it is none, or too short for a task to start and to save.
    """
    if not text:
        raise UserError("--time is missing: give the time limit of a task, such as --time 04:00:00")
    found = next(filter(None, (re.fullmatch(each, text.strip()) for each in _TIMES)), None)
    if found is None:
        raise UserError(
            f"--time {text!r} is no time limit: give minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 04:00:00"
        )
    total = sum(_MINUTES[unit] * int(value) for unit, value in found.groupdict().items() if value)
    if total < _LEAST_MINUTES:
        raise UserError(
            f"--time {text}: give {_LEAST_MINUTES} minutes or more, as Slurm asks a task to save up to 3 minutes before"
            " its end"
        )
    return int(-(-total // 1))


def further(lines: Sequence[str]) -> dict[str, str | bool]:
    """Further options of sbatch, such as `--qos=high`: name -> value, or True.

    Raises:
      UserError: one is no option, is set by this command, or has a flag of its own.
    """
    found: dict[str, str | bool] = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("#SBATCH").strip().removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or (equals and not value):
            raise UserError(f"--sbatch {line!r} is no option of sbatch: give such as --sbatch=--qos=high")
        if name in _FLAGS:
            raise UserError(f"--sbatch {line!r}: give {_FLAGS[name]} instead")
        if name in _OURS:
            raise UserError(f"--sbatch {line!r}: this command sets --{name} itself, leave it out")
        found[name] = value if equals else True
    return found
