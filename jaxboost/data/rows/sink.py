"""Writes new rows to parts, or keeps them in memory where the disk takes no more."""

import contextlib
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxboost.data.dataset import digest_of
from jaxboost.data.rows import part
from jaxboost.io import remedy

logger = logging.getLogger(__name__)


class _InMemory:
    """A part in memory."""

    def __init__(self, most: int, shape: tuple[int, ...], dtype: np.dtype):
        # Pages that are not touched take no memory.
        self._array = np.empty((most, *shape), dtype)
        self._columns: dict[str, list[Any]] = {"keys": [], "stamps": [], "sha256": [], "about": []}

    def add(self, row: np.ndarray, *, key: str, stamp: str, sha256: str, about: Any) -> None:
        self._array[len(self._columns["keys"])] = row
        for column, fact in zip(self._columns.values(), (key, stamp, sha256, about), strict=True):
            column.append(fact)

    def close(self) -> part.Part:
        count = min(map(len, self._columns.values()))
        columns = {name: column[:count] for name, column in self._columns.items()}
        return part.Part(self._array[:count], **columns)


class Sink:
    """Takes rows, of one or more shapes.

    Attributes:
      lost: keys of rows that it took, and that are nowhere, because somebody has removed their file.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        most: int,
        *,
        what: str,
        version: str,
        room: Callable[[int], str],
        in_memory: bool = True,
    ):
        """Creates no file yet.

        Args:
          folder: of the parts; None: all rows stay in memory.
          most: the most rows that will come.
          what, version, room: see `store.Store`.
          in_memory: whether rows stay in memory if the disk does not take them.
        """
        self._folder, self._most, self._what, self._version = folder, most, what, version
        self._room, self._in_memory = room, in_memory
        self._asked = False
        self._files: dict[tuple[tuple[int, ...], str], part.PartFile] = {}
        self._memory: dict[tuple[tuple[int, ...], str], _InMemory] = {}
        self._done: list[part.Part] = []
        self._count = 0
        self.lost: list[str] = []

    def add(self, row: np.ndarray, *, key: str, stamp: str, about: Any) -> bool:
        """Takes a row. Returns False if it is nowhere, because the disk refuses it and it may not stay in memory."""
        facts = dict(key=key, stamp=stamp, about=about, sha256=digest_of(row))
        kind = (row.shape, row.dtype.str)
        if self._folder and not self._asked:
            self._asked = True
            if reason := self._room(row.nbytes * self._most):
                self._give_up(reason)
        if self._folder:
            try:
                if kind not in self._files:
                    self._files[kind] = part.PartFile(self._folder, *kind[:1], row.dtype, most=self._most)
                self._files[kind].add(row, **facts)
                if self._files[kind].is_full:
                    self._finish(kind, sync=True)
                self._count += 1
                return True
            except OSError as error:
                self._give_up(f"{self._folder} cannot be written ({error.strerror or error}): {remedy(error)}")
        if not self._in_memory:
            return False
        if kind not in self._memory:
            self._memory[kind] = _InMemory(self._most - self._count, *kind[:1], row.dtype)
        self._memory[kind].add(row, **facts)
        return True

    def close(self, *, sync: bool) -> list[part.Part]:
        """Completes the parts, and returns all of them."""
        try:
            for kind in list(self._files):
                self._finish(kind, sync=sync)
        except OSError as error:
            self._give_up(f"{self._folder} cannot be written ({error.strerror or error}): {remedy(error)}")
        return [*self._done, *(each.close() for each in self._memory.values())]

    def discard(self) -> None:
        """Removes all parts."""
        for file in self._files.values():
            file.discard()
        for each in self._done:
            if each.index:
                with contextlib.suppress(OSError):
                    part.remove(each.index)

    def _finish(self, kind: tuple[tuple[int, ...], str], *, sync: bool) -> None:
        if done := self._files[kind].close(self._version, sync=sync):
            self._done.append(done)
        del self._files[kind]

    def _give_up(self, reason: str) -> None:
        """Nothing more is written. Rows of files that cannot be completed stay mapped."""
        self._folder = None
        if self._in_memory:
            logger.warning("the %s are not all kept for the next start, and stay in memory: %s", self._what, reason)
        for file in self._files.values():
            try:
                self._done.append(file.mapped())
            # The file is gone, and with it what its descriptor led to.
            except (OSError, ValueError):
                self.lost += file.keys
        self._files = {}
