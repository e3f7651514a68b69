"""Equal and nearly equal images of a user's folder.

A patient's images all go to one split. Two nearly equal images of different patients are therefore a leak if these
patients go to different splits. `splits.near_duplicates` finds such pairs before any split is made; data.duplicates
says what to do about them.
"""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost import io
from jaxboost.data.dataset import MappedRows, row_digests
from jaxboost.data.problems import Problems
from jaxboost.data.readers import versions
from jaxboost.data.rows.store import Store
from jaxboost.data.sources.folder import table_columns
from jaxboost.data.sources.folder.labels import Entry, same_labels
from jaxboost.data.sources.folder.samples import Facts
from jaxboost.data.splits import candidates, dct, known_pairs, near_duplicates
from jaxboost.data.splits.near_duplicates import Pair
from jaxboost.data.walk import some

# With fewer images a search takes less than half a second.
SEARCHES_KEPT = 1000
WARN, JOIN, REFUSE = "warn", "join", "refuse"

logger = logging.getLogger(__name__)


def join_copies(entries: Sequence[Entry], samples: Mapping[Entry, Facts], problems: Problems) -> list[Entry]:
    """Returns `entries`; if they have no patients and some files have equal pixels, these files get one common patient.

    Copies whose patients, labels, splits or clinical columns differ are a problem. The log warns of the others.
    """
    by_digest: dict[str, list[Entry]] = collections.defaultdict(list)
    for entry in entries:
        if entry in samples:
            by_digest[samples[entry].digest].append(entry)
    harmless, patient_of = [], {}
    for first, *copies in by_digest.values():
        for copy in copies:
            difference = ""
            if copy.patient != first.patient:
                difference = f"{copy.patient!r} and {first.patient!r} are one patient, or one file is wrong"
            elif not same_labels(first, copy):
                difference = f"their labels differ, {copy.label!r} and {first.label!r}"
            elif copy.split != first.split:
                difference = f"their splits differ, {copy.split} and {first.split}"
            elif pair := table_columns.differing(copy.cells, first.cells):
                difference = f"their clinical columns differ, {pair[0]!r} and {pair[1]!r}"
            if difference:
                copy.report(problems, f"has the same pixels as {first.file}{first.in_row}: {difference}")
            else:
                harmless.append(f"{first.file} = {copy.file}")
                patient_of[copy] = first.file
    if harmless:
        logger.warning("images with the same pixels, each taken as one patient: %s", some(harmless))
    if not patient_of or entries[0].patient is not None:
        return list(entries)
    return [dataclasses.replace(entry, patient=patient_of.get(entry, entry.file)) for entry in entries]


def treat_near_duplicates(
    entries: Sequence[Entry],
    images: np.ndarray | MappedRows,
    problems: Problems,
    *,
    mode: str,
    allow_mixed: bool,
    store: Store,
) -> list[Entry]:
    """Looks for nearly equal images of different patients and does what data.duplicates says.

    Args:
      entries: all entries.
      images: their images, uint8 (n, S, S, C) or (n, S, S, S, 1).
      problems: receives each pair if the mode is REFUSE. If it is JOIN, it receives the pairs that cannot be joined:
        those in different splits of the folder, and, unless `allow_mixed`, those with different labels.
      mode: WARN, JOIN or REFUSE.
      allow_mixed: whether images of one patient may have different labels.
      store: keeps what the search finds: the search can take longer than the reading.

    Returns:
      `entries`; if the mode is JOIN, with one patient for each pair.
    """
    search = _search(entries, images, store)
    if search.gap and mode == WARN:
        logger.warning("nearly equal images of different patients may have been missed: %s", search.gap)
    elif search.gap:
        problems.add(f"data.duplicates={mode}: {search.gap}: name the patients, or set data.duplicates=warn")
    if not search.pairs:
        return list(entries)
    texts = [_text(entries, pair) for pair in search.pairs]
    count = f"{len(texts)} pairs" if len(texts) > 1 else "1 pair"
    if mode == WARN:
        logger.warning(
            "nearly equal images of different patients, in different splits now or when splits are made: %s (%s);"
            " the results may be too good; look at them; data.duplicates=join makes each pair one patient, "
            "data.duplicates=refuse lists all pairs and stops",
            some(texts),
            count,
        )
        return list(entries)
    for pair, text in zip(search.pairs, texts, strict=True):
        one, other = entries[pair.first], entries[pair.second]
        fix = ""
        if mode == REFUSE:
            fix = "delete one, give both one patient, or set data.duplicates=join"
        elif one.split != other.split:
            fix = (
                "data.duplicates=join moves no image out of its split: delete one, give both one split, or give no "
                "splits, so that they are made"
            )
        elif not allow_mixed and not same_labels(one, other):
            fix = "one patient with two labels: correct one, delete one, or set data.allow_mixed_patients=True"
        if fix:
            problems.add(f"nearly equal images of different patients, {text}: {fix}", row=one.number)
    if mode == REFUSE:
        return list(entries)
    logger.warning("nearly equal images, each taken as one patient: %s (%s)", some(texts), count)
    return _joined(entries, search.pairs)


def _search(entries: Sequence[Entry], images: np.ndarray | MappedRows, store: Store) -> near_duplicates.Search:
    """Searches for pairs. What an earlier search found is kept where images, patients and splits are the same."""
    owners = np.unique([_owner(entry) for entry in entries], return_inverse=True)[1].reshape(-1)
    sides = _sides(entries)
    if len(entries) < SEARCHES_KEPT:
        return near_duplicates.find(images, owners, sides)
    digests, fixed = list(row_digests(images)), _fixed(entries)
    members = [
        io.json_sha256([digest, _owner(entry), entry.split if entry.split in fixed else ""])[:32]
        for digest, entry in zip(digests, entries, strict=True)
    ]
    code = versions.identity(module.__file__ for module in (near_duplicates, candidates, known_pairs, dct))
    setting = near_duplicates.setting(images.shape, digests)

    def search(before: dict[str, Any] | None) -> dict[str, Any]:
        if before and before["images"] == members:
            return before
        known = known_pairs.known(_trace(before), members) if before else None
        found = near_duplicates.find(images, owners, sides, digests=digests, known=known)
        trace = known_pairs.Trace(members, owners.tolist(), found.links, found.compared)
        return dataclasses.asdict(trace) | {"pairs": found.pairs, "gap": found.gap}

    # Of each division into splits: a cross-validation has another one.
    name = f"near-duplicates-{io.json_sha256([setting, sorted(fixed)])[:8]}"
    found = store.notes.updated(name, f"{code} {setting}", search)
    return near_duplicates.Search(tuple(Pair(*pair) for pair in found["pairs"]), found["gap"])


def _trace(note: Mapping[str, Any]) -> known_pairs.Trace:
    links = [known_pairs.Link(*link) for link in note["links"]]
    return known_pairs.Trace(note["images"], note["patients"], links, note["compared"])


def _owner(entry: Entry) -> str:
    return entry.file if entry.patient is None else entry.patient


def _sides(entries: Sequence[Entry]) -> np.ndarray:
    """Returns numbers (n,): equal numbers mean that two images can only be in the same split."""
    fixed = _fixed(entries)
    return np.array(
        [-1 - fixed.index(entry.split) if entry.split in fixed else index for index, entry in enumerate(entries)]
    )


def _fixed(entries: Sequence[Entry]) -> list[str]:
    """Returns the splits whose images stay in them."""
    splits = list(dict.fromkeys(entry.split for entry in entries if entry.split))
    # If there is no split val, it is taken from train, so two images of train may get into different splits.
    return [split for split in splits if split != "train" or "val" in splits]


def _text(entries: Sequence[Entry], pair: Pair) -> str:
    one, other = entries[pair.first], entries[pair.second]
    remarks = [pair.how] if pair.how else []
    if one.split != other.split:
        remarks.append(f"splits {one.split} and {other.split}")
    if not same_labels(one, other):
        remarks.append(f"labels {one.label!r} and {other.label!r}")
    return f"{one.file} ~ {other.file}" + (f" ({'; '.join(remarks)})" if remarks else "")


def _joined(entries: Sequence[Entry], pairs: Sequence[Pair]) -> list[Entry]:
    """Returns `entries` with one patient for each pair, named as the first of its patients, in their order."""
    owners = [_owner(entry) for entry in entries]
    # Imported here because it takes half a second.
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet(dict.fromkeys(owners))
    for pair in pairs:
        sets.merge(owners[pair.first], owners[pair.second])
    name_of: dict[str, str] = {}
    for owner in owners:
        name_of.setdefault(sets[owner], owner)
    return [
        dataclasses.replace(entry, patient=name_of[sets[owner]]) for entry, owner in zip(entries, owners, strict=True)
    ]
