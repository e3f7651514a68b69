"""Whether the nodes can see the folder of a study, as far as this machine can tell."""

import os
import pathlib

from jaxboost.errors import UserError
from jaxboost.studies.slurm import tools

# Disks that each machine has for itself, wherever they are mounted, and folders that are so by custom.
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_OWN = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_MOUNTS = pathlib.Path("/proc/mounts")


def check(folder: pathlib.Path, partition: str) -> None:
    """Raises UserError if a folder is on a disk of this machine alone, and tasks run on other machines.

    Args:
      folder: of the study; it may be missing.
      partition: of the tasks; "": the cluster's default.
    """
    path = os.path.realpath(folder)
    if "%" in path:
        raise UserError(f"{folder}: Slurm takes % in a path for a pattern: give an --out without it")
    why = _why_own(path)
    if why and (nodes := tools.other_machines(partition)):
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        raise UserError(
            f"{folder} is {why}, which the nodes ({nodes[0]}{more}) do not see: give an --out on a disk that they share"
        )


def _why_own(path: str) -> str:
    """Why a path is on a disk of this machine alone; "" if it does not look so."""
    for folder in _OWN:
        if path == folder or path.startswith(folder + "/"):
            return f"in {folder} of this machine"
    return "in the memory of this machine" if _file_system(path) in _IN_MEMORY else ""


def _file_system(path: str) -> str:
    """The type of the file system that a path is on; "" if the system does not tell."""
    try:
        rows = [line.split() for line in _MOUNTS.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    # Spaces in names are written as \\040; the last of two mounts at one place counts.
    mounts = {row[1].encode().decode("unicode_escape"): row[2] for row in rows if len(row) > 2}
    inside = [place for place in mounts if path == place or path.startswith(place.rstrip("/") + "/")]
    return mounts[max(inside, key=len)] if inside else ""
