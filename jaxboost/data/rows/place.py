"""Where rows of data sets are kept, and how much of the disk they may take.

The folder is `$JAXBOOST_CACHE`, else the user's cache folder. Each data set with its preprocessing has an entry, a
folder in it. All of it can be removed at any time: what is missing is made again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pooch

from jaxboost.io import replacing, user_path

ENVIRONMENT = "JAXBOOST_CACHE"
ON, OFF, RENEW = MODES = ("on", "off", "renew")
MOST_GB = 100.0
ABOUT = "about.json"
_ROWS = "images"
# This much of the disk is left to others.
_LEFT_FREE = 1 << 30
_LONGEST = 40


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How the images of a data set are kept, see the config fields `data.cache` and `data.cache_gb`.

    Attributes:
      mode: ON; OFF: they are in memory alone; RENEW: they are made again, and kept.
      most_gb: the most that all data sets may take, in GB (1e9 bytes).
    """

    mode: str = ON
    most_gb: float = MOST_GB


def home() -> pathlib.Path:
    """The folder of all entries."""
    named = os.environ.get(ENVIRONMENT)
    return (user_path(named) if named else pathlib.Path(pooch.os_cache("jaxboost"))) / _ROWS


def entry(name: str, identity: Mapping[str, Any]) -> pathlib.Path:
    """The folder of an entry.

    Args:
      name: for people who look into the folder.
      identity: what tells one entry from another, JSON.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    shown = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:_LONGEST].strip("._-")
    return home() / (f"{shown}-{digest}" if shown else digest)


def describe(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Writes into an entry what it is, or notes that it was used now. What the system refuses is left out."""
    file = folder / ABOUT
    with contextlib.suppress(OSError):
        if file.exists():
            os.utime(file)
        else:
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n")


def make_room(folder: pathlib.Path, needed: int, most: float) -> str:
    """Makes room in `home` for an entry: those that were not used for longest are removed.

    Args:
      folder: of the entry.
      needed: bytes that will be added to it.
      most: bytes that all entries may take.

    Returns:
      Why there is no room; "" if there is.
    """
    sizes = {each: _size(each) for each in _entries(folder.parent)}
    own = sizes.pop(folder, 0)
    if own + needed > most:
        return f"they take {(own + needed) / 1e9:.3g} GB, and data.cache_gb={most / 1e9:g}: raise it"
    total = own + sum(sizes.values())
    for each in sorted(sizes, key=_used):
        if total + needed <= most and not lacks(folder, needed):
            break
        shutil.rmtree(each, ignore_errors=True)
        total -= sizes[each]
    return lacks(folder, needed)


def lacks(folder: pathlib.Path, needed: int) -> str:
    """Why a disk has no room for `needed` bytes; "" if it has. Some of it is left free."""
    free = shutil.disk_usage(folder).free
    if needed + _LEFT_FREE <= free:
        return ""
    return f"they take {needed / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB left: make room"


def _entries(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _size(folder: pathlib.Path) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for each in found:
            total += each.stat(follow_symlinks=False).st_size
    return total


def _used(folder: pathlib.Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / ABOUT).stat().st_mtime
    return 0.0
