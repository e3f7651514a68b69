"""Where rows of data sets are kept, and how much of the disk they may take.

The folder is `$JAXBOOST_CACHE`, else the user's cache folder. Each data set with its preprocessing has an entry, a
folder in it. All of it can be removed when no run uses it: what is missing is made again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import filelock
import pooch

from jaxboost import launched
from jaxboost.data.rows import marks, notes, part
from jaxboost.io import replacing, user_path

ENVIRONMENT = "JAXBOOST_CACHE"
ON, OFF, RENEW = MODES = ("on", "off", "renew")
MOST_GB = 20.0
ABOUT = marks.ABOUT
# Not a name that users give to folders of their own.
_ROWS = "jaxboost-images"
# In `ABOUT`: only a folder that says so is an entry. Others are never touched.
_MADE_BY = {"made_by": "jaxboost"}
_MOST_ABOUT = 1 << 20
# As the lock of a run: it ends by itself if its owner has ended.
_LEASE = 120.0  # seconds
_LOCK = "rows.lock"
# This much of the disk is left to others.
_LEFT_FREE = 1 << 30
_LONGEST = 40


# In an entry: when its rows were last made again because somebody asked for that.
RENEWED = "renewed.txt"


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


def is_renewed(folder: pathlib.Path) -> bool:
    """Whether the rows of an entry were renewed since this command was started."""
    with contextlib.suppress(OSError, ValueError):
        return float((folder / RENEWED).read_text()) >= launched.seconds()
    return False


def note_renewal(folder: pathlib.Path) -> None:
    """Notes that the rows of an entry are renewed now. What the system refuses is left out."""
    with contextlib.suppress(OSError), replacing(folder / RENEWED) as temporary:
        temporary.write_text(repr(max(time.time(), launched.seconds())))


def disk_of(folder: str) -> list[int]:
    """What tells equal paths on several machines apart: numbers of the file system and of the folder in it.

    A folder on a network file system has the same ones on all machines that mount it.
    """
    status = os.stat(folder)
    system = os.statvfs(folder).f_fsid if hasattr(os, "statvfs") else status.st_dev
    return [system, status.st_ino]


def lock(folder: pathlib.Path) -> filelock.SoftFileLease:
    """The lock of an entry; not acquired."""
    return filelock.SoftFileLease(
        folder / _LOCK, lease_duration=_LEASE, heartbeat_interval=_LEASE / 8, thread_local=False
    )


def describe(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Makes an entry that only this user can read, with a file that says what it is; notes that it is used from now.

    What the system refuses is left out.
    """
    file = folder / ABOUT
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        marks.use(folder)
        # Images of patients.
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        if file.exists():
            os.utime(file)
        else:
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(_MADE_BY | dict(identity), indent=2, sort_keys=True) + "\n")


def make_room(folder: pathlib.Path, needed: int, most: float) -> str:
    """Makes room in `home` for an entry: those that were not used for longest are removed, as many as are needed.

    Entries that other processes use stay. Where removing the others does not make enough room, nothing is removed.

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
    time_now = marks.now(folder)
    removable = {each: size for each, size in sizes.items() if not _in_use(each, time_now)}
    kept = sum(sizes.values()) - sum(removable.values())
    if own + kept + needed > most:
        return (
            f"they take {(own + needed) / 1e9:.3g} GB, those that other processes use {kept / 1e9:.3g} GB, and"
            f" data.cache_gb={most / 1e9:g}: raise it"
        )
    if lacks(folder, needed - sum(removable.values())):
        return lacks(folder, needed)
    total = own + sum(sizes.values())
    for each in sorted(removable, key=_used):
        if total + needed <= most and not lacks(folder, needed):
            break
        if _remove(each, time_now):
            total -= sizes[each]
    if total + needed > most:
        return f"other data sets take {(total - own) / 1e9:.3g} GB, and data.cache_gb={most / 1e9:g}: raise it"
    return lacks(folder, needed)


def lacks(folder: pathlib.Path, needed: int) -> str:
    """Why a disk has no room for `needed` bytes; "" if it has. Some of it is left free."""
    free = shutil.disk_usage(folder).free
    if needed + _LEFT_FREE <= free:
        return ""
    return f"they take {needed / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB left: make room"


def _entries(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if not path.is_symlink() and _is_entry(path))


def _is_entry(folder: pathlib.Path) -> bool:
    """Whether this package has made a folder."""
    with contextlib.suppress(OSError, ValueError):
        file = folder / ABOUT
        if file.stat().st_size <= _MOST_ABOUT:
            found = json.loads(file.read_bytes())
            return isinstance(found, dict) and _MADE_BY.items() <= found.items()
    return False


def _in_use(folder: pathlib.Path, time_now: float) -> bool:
    """Whether another process uses an entry, or makes its rows."""
    with contextlib.suppress(OSError):
        if time_now - (folder / _LOCK).stat().st_mtime < _LEASE:
            return True
    return marks.in_use(folder, time_now)


def _remove(folder: pathlib.Path, time_now: float) -> bool:
    """Removes the files of an entry that this package has made; `ABOUT` last. Returns whether they are gone."""
    lease = lock(folder)
    try:
        lease.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return False
    try:
        # Somebody may have come meanwhile.
        if marks.in_use(folder, time_now):
            return False
        marks.forget(folder)
        marks.remove_old(folder, time_now)
        for pattern in (*part.FILES, *notes.FILES, f".{ABOUT}.*.part", RENEWED, ABOUT):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            lease.release(force=True)
    # A file that is not ours stays, and with it the folder.
    with contextlib.suppress(OSError):
        folder.rmdir()
    return True


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
