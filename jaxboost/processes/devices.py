"""Which of the devices of its host a process uses."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from jaxboost.errors import UserError


def visible(environ: Mapping[str, str]) -> list[str]:
    """Names of the NVIDIA GPUs that this process sees, in CUDA's order of the visible ones; [] if none is known.

    The names (UUIDs) are the same in all processes of a host, whatever number each process gives to a GPU.
    """
    wanted = environ.get("JAX_PLATFORMS", "")
    if wanted and not {"cuda", "gpu"}.intersection(wanted.split(",")):
        return []
    if not os.path.exists("/proc/driver/nvidia"):
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return of_variable(
        [line.strip() for line in found.splitlines() if line.strip()], environ.get("CUDA_VISIBLE_DEVICES")
    )


def of_variable(names: Sequence[str], variable: str | None) -> list[str]:
    """The GPUs of `names` that CUDA_VISIBLE_DEVICES leaves; entries are numbers or beginnings of UUIDs."""
    if variable is None:
        return list(names)
    found = []
    for entry in (each.strip() for each in variable.split(",")):
        if entry.isdecimal():
            match = names[int(entry)] if int(entry) < len(names) else None
        else:
            match = next((name for name in names if entry and name.startswith(entry)), None)
        # CUDA ignores what follows an entry that it does not know.
        if match is None:
            break
        found.append(match)
    return found


def share(mine: Sequence[str], on_host: Sequence[Sequence[str]], position: int, host: str) -> list[int] | None:
    """The numbers of the visible devices that a process should use.

    Args:
      mine: names of the devices that it sees.
      on_host: those that each process on its host sees, in their order, also this one.
      position: of this process among them.
      host: for messages.

    Returns:
      None for all that it sees: it is alone on its host, it sees others than they do, or it sees none.

    Raises:
      UserError: the devices cannot be divided.
    """
    count = len(on_host)
    others = {name for number, names in enumerate(on_host) if number != position for name in names}
    if count == 1 or not others.intersection(mine):
        return None
    if any(set(names) != set(mine) for names in on_host) or len(mine) % count:
        seen = ", ".join(str(len(names)) for names in on_host)
        raise UserError(
            f"the {count} processes on {host} see {seen} GPUs, which cannot be divided evenly among them: give each its"
            " own (`srun --gpus-per-task=1`), or start a number of processes that divides the GPUs"
        )
    each = len(mine) // count
    return list(range(position * each, (position + 1) * each))


def local_device_ids(environ: Mapping[str, str], seen: Sequence[Mapping[str, object]], number: int) -> list[int] | None:
    """The value of `jax.distributed.initialize`'s argument of this name for process `number`.

    Args:
      environ: environment variables; JAX_LOCAL_DEVICE_IDS goes first.
      seen: of each process its "host" and its "gpus".
      number: of this process.
    """
    if given := environ.get("JAX_LOCAL_DEVICE_IDS"):
        try:
            return [int(each) for each in given.split(",")]
        except ValueError:
            raise UserError(f"JAX_LOCAL_DEVICE_IDS={given}: give numbers, such as 0,1") from None
    host = seen[number]["host"]
    beside = [each for each in range(len(seen)) if seen[each]["host"] == host]
    gpus: list[list[str]] = [list(seen[each]["gpus"]) for each in beside]  # type: ignore[call-overload]
    position = beside.index(number)
    return share(gpus[position], gpus, position, str(host))
