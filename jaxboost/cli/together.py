"""The flags with which several processes train one run together."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict

from jaxboost import processes
from jaxboost.cli import app
from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.processes import joining, launch

# May differ between hosts: the data themselves are compared.
_OWN_PATHS = ("data.root",)
_SECONDS = {
    "start_timeout": "for all processes to come",
    "heartbeat_timeout": "after which a process that is silent counts as ended",
    "stuck_timeout": "after which a process that does not go on while others wait for it counts as ended",
}


class Together:
    """Declares the flags; `joined` reads them."""

    def __init__(self) -> None:
        self._distributed = flags.DEFINE_bool(
            "distributed",
            False,
            "train one run with all processes that srun, mpirun, Kubernetes or a TPU environment has started, or that"
            " the next three flags describe",
        )
        self._coordinator = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, the same in each process")
        self._count = flags.DEFINE_integer("process_count", 0, "number of processes; 0: from the environment")
        self._id = flags.DEFINE_integer("process_id", -1, "number of this process, from 0; -1: from the environment")
        defaults = joining.Options()
        self._seconds = {
            name: flags.DEFINE_float(name, getattr(defaults, name), f"--distributed: seconds {text}")
            for name, text in _SECONDS.items()
        }

    def is_wanted(self) -> bool:
        """Whether --distributed was given."""
        return self._distributed.value

    @contextlib.contextmanager
    def joined(self) -> Iterator[Callable[[ConfigDict, pathlib.Path], None]]:
        """Joins the processes for the `with` block, see `joining.joined`; nothing without --distributed.

        Yields:
          A function of the config and the folder of the run: checks that they are equal in all processes, and starts
          JAX.

        Raises:
          UserError: wrong flags, or the processes do not come together.
        """
        if not self.is_wanted():
            self._check_unused()
            yield lambda config, folder: None
            return
        for name, flag in self._seconds.items():
            if not flag.value > 0:
                raise UserError(f"--{name}={flag.value:g}: give more than 0 seconds")
        found = launch.find(
            os.environ, coordinator=self._coordinator.value, process_count=self._count.value, process_id=self._id.value
        )
        options = joining.Options(**{name: flag.value for name, flag in self._seconds.items()})
        if found.index:
            app.log_only_warnings(f"process {found.index}: ")
        with joining.joined(found, options, app.in_words) as start_jax:

            def start(config: ConfigDict, folder: pathlib.Path) -> None:
                _check_same(config, folder)
                start_jax()

            yield start

    def _check_unused(self) -> None:
        used = [name for name in ("coordinator", "process_count", "process_id") if flags.FLAGS[name].present]
        if used:
            raise UserError(f"--{used[0]} has no effect without --distributed: give that too, or leave it out")


def _check_same(config: ConfigDict, folder: pathlib.Path) -> None:
    if "baseline" in config and processes.count() > 1:
        raise UserError("a baseline is computed by one process: leave out --distributed")
    fields = continuing.flat(continuing.to_dict(config))
    fields = {name: value for name, value in fields.items() if name not in _OWN_PATHS}
    fix = "give every process the same command"
    processes.check_same("the command", {"--workdir": str(folder), **fields}, fix)
