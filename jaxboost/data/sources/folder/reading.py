"""Reads the files of a user's folder: each once, on all cores, and kept for the next start."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from jaxboost.data import decoding
from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers import versions
from jaxboost.data.rows import images as kept_images
from jaxboost.data.rows import place
from jaxboost.data.rows.store import Made, Store
from jaxboost.data.sources.folder import masks as masks_module
from jaxboost.data.sources.folder import samples
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.sources.folder.masks import Masks, stem
from jaxboost.data.sources.folder.samples import Facts, Item, Reading
from jaxboost.data.walk import state_of

T = TypeVar("T")
# Spatial dimensions -> threads, if no processes are started. One volume can take some GB.
_THREADS = {2: 8, 3: 2}


def read_all(
    items: Mapping[Entry, Any],
    read: Callable[[Any], T],
    ndim: int,
    problems: Problems,
    *,
    what: str = "reading",
    trained: bool = False,
) -> dict[Entry, T]:
    """Calls `read` for every item, on all cores.

    Args:
      items: what is read for each entry.
      read: reads one item, see `decoding.call`.
      ndim: 2 or 3, which decides the number of processes or threads.
      problems: receives each ProblemError that `read` raises.
      what: names the work in the progress bar.
      trained: whether the files are for a trained model, whose settings cannot be changed.

    Returns:
      The results of the items without problems, in the order of the items.
    """
    found: dict[Entry, T] = {}
    faults: dict[Entry, ProblemError] = {}
    for entry, result in _results(items, read, ndim, what):
        if isinstance(result, ProblemError):
            faults[entry] = result
        else:
            found[entry] = result
    _report(items, faults, problems, trained=trained)
    return {entry: found[entry] for entry in items if entry in found}


def open_store(folder: pathlib.Path, reading: Reading, keeping: place.Keeping, *, masked: bool) -> Store:
    """Opens the store of a folder's images.

    Args:
      folder: the user's folder.
      reading: how its files are read.
      keeping: whether the images are kept on disk.
      masked: whether images are cropped to their masks.
    """
    root = os.path.realpath(folder)
    identity = {"folder": root, "disk": place.disk_of(root), "masked": masked, **dataclasses.asdict(reading)}
    version = versions.identity([samples.__file__, masks_module.__file__])
    return kept_images.open_store(os.path.basename(root), identity, keeping, version=version)


def read_into(
    store: Store,
    folder: pathlib.Path,
    paths: Mapping[Entry, pathlib.Path],
    reading: Reading,
    masks: Masks | None,
    problems: Problems,
) -> dict[Entry, Facts]:
    """Reads the files that are new or changed into a store.

    Args:
      store: see `open_store`.
      folder: the user's folder.
      paths: the file of each entry.
      reading: how they are read.
      masks: the masks of 2-D images; None: whole images are used.
      problems: receives the problems of files.

    Returns:
      What is known of the images of the files without problems. Their images are in the store, see `key_of`.
    """
    items = {entry: Item(path, masks and masks.only(stem(path.name))) for entry, path in paths.items()}
    entry_of = {key_of(folder, path): entry for entry, path in paths.items()}
    assert len(entry_of) == len(items)
    faults: dict[Entry, ProblemError] = {}

    def state(item: Item) -> str:
        mask = f" {masks.state(stem(item.path.name))}" if masks else ""
        return state_of(item.path) + mask

    def make(missing: Sequence[str]) -> Iterator[Made]:
        some = {entry_of[key]: items[entry_of[key]] for key in missing}
        for entry, result in _results(some, functools.partial(samples.read, reading=reading), reading.ndim, "reading"):
            if isinstance(result, ProblemError):
                faults[entry] = result
            else:
                yield Made(key_of(folder, paths[entry]), result.with_channels(reading.ndim), result.facts.to_json())

    # Before the files are read: one that changes meanwhile is read again at the next start.
    states = {key: state(items[entry]) for key, entry in entry_of.items()}
    store.complete(states, make)
    _report(items, faults, problems)
    return {entry: Facts.from_json(store.about(key)) for key, entry in entry_of.items() if key in store}


def key_of(folder: pathlib.Path, path: pathlib.Path) -> str:
    """The key of a file in the store: its path, below the folder if it is there."""
    return os.fspath(path.relative_to(folder)) if path.is_relative_to(folder) else os.path.abspath(path)


def _results(
    items: Mapping[Entry, Any], read: Callable[[Any], T], ndim: int, what: str
) -> Iterator[tuple[Entry, T | ProblemError]]:
    """Yields the result for each item, as they are ready."""
    entries = list(items)
    workers = decoding.workers_for(len(entries), ndim)
    threads = min(_THREADS[ndim], decoding.cores())
    results = decoding.call(read, list(items.values()), workers=workers, threads=threads)
    try:
        for position, result in tqdm(results, total=len(entries), desc=what, unit="image", disable=None):
            yield entries[position], result
    finally:
        results.close()


def _report(
    items: Mapping[Entry, Any], faults: Mapping[Entry, ProblemError], problems: Problems, *, trained: bool = False
) -> None:
    """Adds the problems in the order of the items, not in that of the reading."""
    for entry in items:
        if entry in faults:
            entry.report(problems, faults[entry].for_trained() if trained else str(faults[entry]))
