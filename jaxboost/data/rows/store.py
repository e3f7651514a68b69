"""Rows by key: made once, kept in parts (see `part`), and mapped at the next start.

A row belongs to a key, such as a file's name, and a stamp, the state of that file. A row whose stamp is another one now
is made again. Several processes may use a store at the same time: one makes what is missing, the others wait. A process
that is stopped keeps what it has made.
"""

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import filelock
import numpy as np

from jaxboost import stopping
from jaxboost.data.dataset import MappedRows
from jaxboost.data.readers import npz
from jaxboost.data.rows import marks, opening, part, place
from jaxboost.data.rows.notes import Notes
from jaxboost.data.rows.sink import Sink
from jaxboost.io import remedy

# Rows that are compared at each start, in all parts together.
_SAMPLE = 64
# Parts beyond those that the rows need; then they are joined.
_SPARE_PARTS = 32
_ATTEMPTS = 3

logger = logging.getLogger(__name__)


class Made(NamedTuple):
    """A new row: its key, its values, and JSON about it."""

    key: str
    row: np.ndarray
    about: Any = None


Make = Callable[[list[str]], Iterator[Made]]


class Store:
    """The rows in one folder.

    Attributes:
      folder: of the files; None: rows are in memory alone.
      notes: what was found out about the rows.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        *,
        what: str,
        version: str = "",
        room: Callable[[int], str] | None = None,
        only_latest: bool = True,
        renew: bool = False,
    ):
        """Opens nothing yet.

        Args:
          folder: see the class; it need not exist.
          what: the rows, for messages, such as "images".
          version: of whatever makes the rows: those of another version are made again.
          room: makes room for a number of bytes; returns why there is none, or "".
          only_latest: whether rows that are not wanted any more may be removed. False: keys name the content, which
            is never out of date.
          renew: make all rows and notes again, once for all processes of a command (see `jaxboost.launched`).
        """
        self.folder = folder
        self._renew = renew and not (folder and place.is_renewed(folder))
        self.notes = Notes(folder, renew=self._renew)
        self._what, self._version, self._only_latest = what, version, only_latest
        self._room = room or (lambda needed: place.lacks(folder, needed) if folder else "")
        self._parts: list[part.Part] = []
        self._stale: list[pathlib.Path] = []
        # (key, stamp) -> part and row
        self._at: dict[tuple[str, str], tuple[int, int]] = {}
        self._wanted: Mapping[str, str] = {}

    def complete(self, wanted: Mapping[str, str], make: Make) -> None:
        """Makes the rows that are missing.

        If the folder cannot be written, they are in memory until the process ends, and a warning says so.

        Args:
          wanted: key -> stamp.
          make: called with the keys that are missing; yields their rows in any order, and may leave some out. It is
            called again for rows whose file was removed meanwhile.

        Raises:
          UserError: the system does not let a file of the folder be read. The file stays.
        """
        self._wanted = wanted
        if self.folder is None:
            self._fill(list(wanted), make, None)
            return
        marks.use(self.folder)
        if not self._renew:
            self._read()
        if not self._renew and not self._missing():
            self._settle(self.folder)
            return
        with self._alone(self.folder) as folder:
            # Another process of this command may have renewed the rows while this one waited.
            if folder and self._renew and not place.is_renewed(folder):
                self._forget(folder)
            elif folder:
                self._read()
            if missing := self._missing():
                self._fill(missing, make, folder)
                if folder:
                    self._tidy(folder)

    @property
    def is_kept(self) -> bool:
        """Whether all rows are on disk for the next start."""
        places = [self._at.get(each) for each in self._wanted.items()]
        return all(found is not None and self._parts[found[0]].index is not None for found in places)

    def __contains__(self, key: str) -> bool:
        return key in self._wanted and (key, self._wanted[key]) in self._at

    def about(self, key: str) -> Any:
        """The JSON about a row."""
        number, row = self._at[key, self._wanted[key]]
        return self._parts[number].about[row]

    def array(self, keys: Sequence[str]) -> np.ndarray | MappedRows:
        """The rows (n, ...) of some keys; with the threshold of `npz` or more bytes they stay on disk.

        Where some rows have several channels, on their last axis, those of one channel are repeated.
        """
        found = [self._at[key, self._wanted[key]] for key in keys]
        used = list(dict.fromkeys(number for number, _ in found))
        channels = max(self._parts[number].array.shape[-1] for number in used)
        arrays, digests, start_of, start = [], [], {}, 0
        for number in used:
            each = self._parts[number]
            whole = each.array.shape[-1] == channels
            arrays.append(each.array if whole else np.broadcast_to(each.array, (*each.array.shape[:-1], channels)))
            digests.append(each.sha256 if whole else None)
            start_of[number], start = start, start + len(each.array)
        rows = np.array([start_of[number] + row for number, row in found])
        in_order = len(rows) == start and np.array_equal(rows, np.arange(start))
        if len(arrays) == 1 and in_order and not isinstance(arrays[0], np.memmap):
            return arrays[0]
        mapped = MappedRows(arrays, rows, digests=digests)
        return np.asarray(mapped) if mapped.nbytes < npz.LARGE_BYTES else mapped

    def _missing(self) -> list[str]:
        return [key for key, stamp in self._wanted.items() if (key, stamp) not in self._at]

    def _read(self) -> None:
        """Opens the parts that are not open yet. One that is damaged is renamed."""
        for _ in range(_ATTEMPTS):
            known = {each.index: each for each in self._parts}
            self._parts, self._stale, gone = [], [], False
            found = part.indices(self.folder) if self.folder else []
            opening.allow_files(len(found))
            for index in found:
                try:
                    sample = max(1, _SAMPLE // len(found))
                    self._parts.append(known.get(index) or part.open_part(index, self._version, sample=sample))
                except part.StaleError:
                    self._stale.append(index)
                except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                    # Another process may have joined the parts at this moment.
                    if os.path.lexists(index):
                        self._set_aside(index, str(error))
                    else:
                        gone = True
                except (OSError, MemoryError) as error:
                    if isinstance(error, OSError) and error.errno == errno.ESTALE:
                        gone = True
                    else:
                        raise opening.refused(index, error, self._what) from error
            if not gone:
                break
        self._locate()

    def _locate(self) -> None:
        self._at = {
            (key, stamp): (number, row)
            for number, each in enumerate(self._parts)
            for row, (key, stamp) in enumerate(zip(each.keys, each.stamps, strict=True))
        }

    def _set_aside(self, index: pathlib.Path, reason: str) -> None:
        name = part.set_aside(index)
        kept = f"it is kept as {name}, and " if name else ""
        logger.warning("%s is damaged (%s): %sits %s are made again", index, reason, kept, self._what)

    def _forget(self, folder: pathlib.Path) -> None:
        mapped = _is_mapped(folder)
        for index in part.indices(folder):
            part.remove(index, mapped=mapped)
        place.note_renewal(folder)
        self._parts, self._at = [], {}

    def _settle(self, folder: pathlib.Path) -> None:
        """Syncs parts that were not, and removes what other machines use no more; later, if the lock is held."""
        unsynced = [number for number, each in enumerate(self._parts) if each.index and not each.synced]
        if not unsynced and not part.remains(folder):
            return
        lease = place.lock(folder)
        try:
            lease.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            return
        try:
            part.remove_remains(folder, mapped=_is_mapped(folder))
            for number in unsynced:
                with contextlib.suppress(OSError, ValueError):
                    self._parts[number] = part.note_synced(self._parts[number])
        except OSError:
            return
        finally:
            with contextlib.suppress(OSError):
                lease.release(force=True)

    def _fill(self, missing: list[str], make: Make, folder: pathlib.Path | None) -> None:
        sink = Sink(folder, len(missing), what=self._what, version=self._version, room=self._room)
        whole = False
        made = make(missing)
        try:
            for key, row, about in made:
                sink.add(row, key=key, stamp=self._wanted[key], about=about)
            whole = True
        finally:
            # Whatever was made is kept, also after a signal.
            with stopping.deferred():
                if close := getattr(made, "close", None):
                    close()
                # To wait for the disk could take longer than a process has that is to stop.
                self._parts += sink.close(sync=whole)
                self._locate()
        # A signal that came meanwhile was only noted.
        stopping.poll()
        if sink.lost:
            self._fill(sink.lost, make, None)

    def _tidy(self, folder: pathlib.Path) -> None:
        """Removes parts of other versions, and rows that are out of date where these are most rows."""
        mapped = _is_mapped(folder)
        for index in self._stale:
            with contextlib.suppress(OSError):
                part.remove(index, mapped=mapped)
        on_disk = [each for each in self._parts if each.index]
        if len(on_disk) < len(self._parts):
            return
        rows = sum(len(each.array) for each in on_disk)
        used = sum(key in self for key in self._wanted)
        size = sum(each.array.nbytes for each in on_disk)
        if self._only_latest and rows > 2 * used:
            kept = [self._at[key, stamp] for key, stamp in self._wanted.items() if key in self]
        elif len(on_disk) > _SPARE_PARTS + 2 * (size // part.MOST_BYTES + rows // part.MOST_ROWS):
            kept = sorted(self._at.values())
        else:
            return
        sink = Sink(folder, len(kept), what=self._what, version=self._version, room=self._room, in_memory=False)
        for number, row in kept:
            each = on_disk[number]
            facts = dict(key=each.keys[row], stamp=each.stamps[row], about=each.about[row])
            if not sink.add(each.array[row], **facts):
                sink.discard()
                return
        joined = sink.close(sync=True)
        # The disk may be full at the very end.
        if sink.lost or not all(each.index for each in joined):
            sink.discard()
            return
        self._parts = joined
        self._locate()
        for each in on_disk:
            with contextlib.suppress(OSError):
                part.remove(each.index, mapped=mapped)

    @contextlib.contextmanager
    def _alone(self, folder: pathlib.Path) -> Iterator[pathlib.Path | None]:
        """Holds the lock of the folder. Yields None if it cannot be written, after a warning."""
        lease = place.lock(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            marks.use(folder)
            try:
                lease.acquire(timeout=0)
            except filelock.Timeout:
                logger.info("another process makes the %s: waiting for it", self._what)
                lease.acquire()
            marks.remove_old(folder, marks.now(folder))
            part.remove_remains(folder, mapped=_is_mapped(folder))
        except OSError as error:
            logger.warning(
                "the %s are not kept for the next start: %s cannot be written (%s): %s",
                self._what,
                folder,
                error.strerror or error,
                remedy(error),
            )
            yield None
            return
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                lease.release(force=True)


def _is_mapped(folder: pathlib.Path) -> bool:
    """Whether another machine may have mapped the parts in a folder."""
    return marks.in_use(folder, marks.now(folder), elsewhere=True)
