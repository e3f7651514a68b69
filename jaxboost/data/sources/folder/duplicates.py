"""Equal and nearly equal images of a user's folder.

A patient's images all go to one split. Two nearly equal images of different patients are therefore a leak if these
patients go to different splits. `splits.near_duplicates` finds such pairs before any split is made; data.duplicates
says what to do about them.
"""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder.labels import Row, same_labels
from jaxboost.data.sources.folder.samples import Sample
from jaxboost.data.splits import near_duplicates
from jaxboost.data.splits.near_duplicates import Pair
from jaxboost.data.walk import some

WARN, JOIN, REFUSE = "warn", "join", "refuse"

logger = logging.getLogger(__name__)


def join_copies(
    rows: Sequence[Row], samples: Mapping[Row, Sample], problems: Problems, *, multi_label: bool
) -> list[Row]:
    """Returns `rows`; if they have no patients and some files have equal pixels, these files get one common patient.

    Copies whose patients, labels or splits differ are a problem. The log warns of the others.
    """
    by_digest: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row in samples:
            by_digest[samples[row].digest].append(row)
    harmless, patient_of = [], {}
    for first, *copies in by_digest.values():
        for copy in copies:
            difference = ""
            if copy.patient != first.patient:
                difference = f"{copy.patient!r} and {first.patient!r} are one patient, or one file is wrong"
            elif not same_labels(first, copy, multi_label=multi_label):
                difference = f"their labels differ, {copy.label!r} and {first.label!r}"
            elif copy.split != first.split:
                difference = f"their splits differ, {copy.split} and {first.split}"
            if difference:
                copy.report(problems, f"has the same pixels as {first.file}{first.in_row}: {difference}")
            else:
                harmless.append(f"{first.file} = {copy.file}")
                patient_of[copy] = first.file
    if harmless:
        logger.warning("images with the same pixels, each taken as one patient: %s", some(harmless))
    if not patient_of or rows[0].patient is not None:
        return list(rows)
    return [dataclasses.replace(row, patient=patient_of.get(row, row.file)) for row in rows]


def treat_near_duplicates(
    rows: Sequence[Row],
    images: np.ndarray,
    problems: Problems,
    *,
    mode: str,
    multi_label: bool,
    allow_mixed: bool,
    pooled: bool,
) -> list[Row]:
    """Looks for nearly equal images of different patients and does what data.duplicates says.

    Args:
      rows: all rows.
      images: their images, uint8 (n, S, S, C) or (n, S, S, S, 1).
      problems: receives each pair if the mode is REFUSE. If it is JOIN, it receives the pairs that cannot be joined:
        those in different splits of the folder, and, unless `allow_mixed`, those with different labels.
      mode: WARN, JOIN or REFUSE.
      multi_label: whether a row may have several labels.
      allow_mixed: whether images of one patient may have different labels.
      pooled: whether the folder's own splits are ignored, because a cross-validation divides all images.

    Returns:
      `rows`; if the mode is JOIN, with one patient for each pair.
    """
    _warn_of_limits(images)
    owners = np.unique([_owner(row) for row in rows], return_inverse=True)[1].reshape(-1)
    search = near_duplicates.find(images, owners, _sides(rows, pooled))
    if search.gap and mode == WARN:
        logger.warning("there may be more nearly equal images of different patients than are listed: %s", search.gap)
    elif search.gap:
        problems.add(f"data.duplicates={mode}: {search.gap}: name the patients, or set data.duplicates=warn")
    if not search.pairs:
        return list(rows)
    texts = [_text(rows, pair, multi_label) for pair in search.pairs]
    count = f"{len(texts)} pairs" if len(texts) > 1 else "1 pair"
    if mode == WARN:
        logger.warning(
            "nearly equal images of different patients, in different splits now or when splits are made: %s (%s);"
            " the results may be too good; look at them; data.duplicates=join makes each pair one patient, "
            "data.duplicates=refuse lists all pairs and stops",
            some(texts),
            count,
        )
        return list(rows)
    for pair, text in zip(search.pairs, texts, strict=True):
        one, other = rows[pair.first], rows[pair.second]
        fix = ""
        if mode == REFUSE:
            fix = "delete one, give both one patient, or set data.duplicates=join"
        elif one.split != other.split and not pooled:
            fix = (
                "data.duplicates=join moves no image out of its split: delete one, give both one split, or give no "
                "splits, so that they are made"
            )
        elif not allow_mixed and not same_labels(one, other, multi_label=multi_label):
            fix = "one patient with two labels: correct one, delete one, or set data.allow_mixed_patients=True"
        if fix:
            problems.add(f"nearly equal images of different patients, {text}: {fix}", row=one.number)
    if mode == REFUSE:
        return list(rows)
    logger.warning("nearly equal images, each taken as one patient: %s (%s)", some(texts), count)
    return _joined(rows, search.pairs)


def _warn_of_limits(images: np.ndarray) -> None:
    count, size = images.shape[:2]
    if size < near_duplicates.LEAST_SIZE:
        logger.warning("data.size=%d is too small to look for nearly equal images: none are looked for", size)
    elif images.ndim == 4 and count > near_duplicates.MOST_FOR_PARTS:
        logger.warning(
            "more than %d images: nearly equal ones are looked for, but not images that are a crop of another",
            near_duplicates.MOST_FOR_PARTS,
        )


def _owner(row: Row) -> str:
    return row.file if row.patient is None else row.patient


def _sides(rows: Sequence[Row], pooled: bool) -> np.ndarray:
    """Returns numbers (n,): equal numbers mean that two images can only be in the same split."""
    splits = [row.split for row in rows]
    alone = np.arange(len(rows))
    if pooled or splits[0] is None:
        return alone
    # If there is no split val, it is taken from train, so two images of train may get into different splits.
    fixed = [split for split in dict.fromkeys(splits) if split != "train" or "val" in splits]
    return np.array([-1 - fixed.index(split) if split in fixed else row for row, split in enumerate(splits)])


def _text(rows: Sequence[Row], pair: Pair, multi_label: bool) -> str:
    one, other = rows[pair.first], rows[pair.second]
    remarks = [pair.how] if pair.how else []
    if one.split != other.split:
        remarks.append(f"splits {one.split} and {other.split}")
    if not same_labels(one, other, multi_label=multi_label):
        remarks.append(f"labels {one.label!r} and {other.label!r}")
    return f"{one.file} ~ {other.file}" + (f" ({'; '.join(remarks)})" if remarks else "")


def _joined(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[Row]:
    """Returns `rows` with one patient for each pair, named as the first of its patients in the order of the rows."""
    owners = [_owner(row) for row in rows]
    # Imported here because it takes half a second.
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet(dict.fromkeys(owners))
    for pair in pairs:
        sets.merge(owners[pair.first], owners[pair.second])
    name_of: dict[str, str] = {}
    for owner in owners:
        name_of.setdefault(sets[owner], owner)
    return [dataclasses.replace(row, patient=name_of[sets[owner]]) for row, owner in zip(rows, owners, strict=True)]
