"""Joins the processes of a launch, starts JAX on all of them, and ends them together."""

import contextlib
import ctypes
import dataclasses
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jaxboost
from jaxboost import stopping
from jaxboost.errors import UserError
from jaxboost.processes import devices, group, hub, member
from jaxboost.processes.group import Group
from jaxboost.processes.launch import Launch

# What libraries say when the other side of a collective has gone.
_OF_OTHERS = re.compile(r"gloo|nccl|coordination|connection|peer|barrier|UNAVAILABLE|DEADLINE|ABORTED|heartbeat", re.I)
_WORD_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time limits, in seconds.

    Attributes:
      start_timeout: for all processes to come.
      heartbeat_timeout: a process that is silent for longer has ended.
      stuck_timeout: so has one that does not go on for longer while others wait for it.
    """

    start_timeout: float = 120.0
    heartbeat_timeout: float = 30.0
    stuck_timeout: float = 600.0


@contextlib.contextmanager
def joined(
    launch: Launch, options: Options, in_words: Callable[[BaseException], str | None]
) -> Iterator[Callable[[], None]]:
    """Connects the processes of a launch for the `with` block, at whose end all of them end.

    If one fails, all end with its message: with exit code 2 after a mistake of the user, else with 1. If one is
    stopped by a signal, all stop. A process that is killed, or stuck, is noticed by the others.

    Args:
      launch: the launch.
      options: time limits.
      in_words: the line with which the command reports an error that is a user's mistake; None for other errors.

    Yields:
      A function that starts JAX on all processes.

    Raises:
      UserError: the processes do not find each other in time.
    """
    if launch.count == 1:
        yield lambda: group.announce("%s: the only process", socket.gethostname())
        return
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping.watch(resumable=True))
        # JAX's own shutdown waits for processes that may be gone.
        stop.leaves = True
        door = None
        if launch.index == 0:
            door = hub.Hub(
                hub.listen(launch),
                launch,
                version=jaxboost.__version__,
                start_timeout=options.start_timeout,
                patience=options.heartbeat_timeout,
                stuck=options.stuck_timeout,
            )
            door.start()
        together = Group(launch.index, launch.count)
        connection, reader, together.names = member.connect(
            launch, start_timeout=options.start_timeout, version=jaxboost.__version__
        )
        together.member = member.Member(
            connection,
            reader,
            together.names,
            patience=options.heartbeat_timeout,
            hear=together.hear,
            point=together.point,
        )
        stack.callback(group.enter, group.current())
        group.enter(together)
        stack.enter_context(stopping.together(together.passes, together.member.end))
        if door is not None:
            stack.callback(door.wait)
        try:
            yield lambda: _start_jax(launch, options)
            # Also after a signal: whoever comes here has stopped together with the others, or has finished.
            group.gather("end", None)
            together.member.end("done")
        except stopping.Ended:
            raise
        except stopping.Stopped:
            together.member.end("stopped", code=stop.exit_code, signal=stop.number)
            raise
        except BaseException as error:
            _fail(together, error, in_words, options)
            raise


def _fail(
    together: Group, error: BaseException, in_words: Callable[[BaseException], str | None], options: Options
) -> None:
    """Tells the others about an error, unless it follows from the end of another process.

    Raises:
      Ended: it does.
      Stopped: it does, and a signal has ended the other process.
    """
    line = in_words(error)
    assert together.member is not None
    if line is None:
        # The word of the other's end may come a moment after what follows from it.
        seconds = options.heartbeat_timeout + _WORD_SECONDS if _OF_OTHERS.search(str(error)) else _WORD_SECONDS
        deadline = time.monotonic() + seconds
        while together.verdict is None and not together.left and time.monotonic() < deadline:
            time.sleep(0.05)
        if together.verdict is not None:
            raise stopping.Ended(together.verdict[0]) from error
        if together.left:
            together.member.end("stopped", signal=together.left)
            stopping.stop(together.left)
    mine = (line or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", 2 if line else 1)
    # From here on the verdict is this process's own.
    together.verdict = together.verdict or mine
    together.member.end("failed", *mine)


def _start_jax(launch: Launch, options: Options) -> None:
    """Starts JAX on all processes of the launch, and prints a line for each.

    Raises:
      UserError: it does not start, or the processes have different numbers of devices.
    """
    # Imported here: a mistake in the config is reported before jax loads.
    import jax

    versions = {name: metadata.version(name) for name in ("jaxboost", "jax", "jaxlib", "orbax-checkpoint")}
    group.check_same("the versions", versions, "install the same everywhere")
    host = socket.gethostname()
    seen: list[dict[str, Any]] = group.gather("gpus", {"host": host, "gpus": devices.visible(os.environ)})
    ids = devices.local_device_ids(os.environ, seen, launch.index)
    port = group.first("port", _free_port)
    # Our own watch sees a lost process first, and names it; JAX's would abort this process.
    patience = int(2 * options.heartbeat_timeout + 60)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM from us.
    jax.config.update("jax_enable_preemption_service", False)
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    address = f"[{launch.host}]:{port}" if ":" in launch.host else f"{launch.host}:{port}"
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=launch.count,
            process_id=launch.index,
            local_device_ids=ids,
            # Its Slurm would give each process the device of its local number, which the process may not see.
            cluster_detection_method="deactivate",
            initialization_timeout=int(options.start_timeout),
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=patience,
        )
        mine = jax.local_devices()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"JAX cannot connect the processes through {address} ({reason}): see whether the hosts reach each other on"
            " all ports, or give another --coordinator"
        ) from error
    if launch.index:
        _hold_aborts()
    names = ", ".join(str(device) for device in mine)
    group.announce("%s: %s", group.name_of(launch.index), names)
    counts = {"devices": len(mine), "kind": mine[0].device_kind}
    group.check_same("the devices", counts, "give each process as many devices of the same kind")


def _hold_aborts() -> None:
    """Lets an abort wait for 6 seconds.

    JAX aborts a process as soon as process 0 is gone, with a trace of C++. Our own threads notice it at the same time,
    and end the process with a line and an exit code; this gives them the time.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # The handler gets the number of the signal, which is 6: sleep(6).
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
