"""What is done about nearly equal images of different patients in a user's folder: data.duplicates.

Patients are kept in one split each, so two nearly equal images of two patients are a leak wherever their patients are
split apart. `jaxboost.data.splits.near_duplicates` finds them, before any split is made.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import labels
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.sources.folder.layouts import some
from jaxboost.data.splits import near_duplicates
from jaxboost.data.splits.near_duplicates import Pair

WARN, JOIN, REFUSE = "warn", "join", "refuse"

logger = logging.getLogger(__name__)


def treat(
    rows: Sequence[Row],
    images: np.ndarray,
    problems: Problems,
    *,
    mode: str,
    multi_label: bool,
    allow_mixed: bool,
    pooled: bool,
) -> list[Row]:
    """`rows`, where `mode` is JOIN with one patient for those whose images are nearly equal.

    WARN: the pairs are in the log. REFUSE: they are problems. JOIN: so are pairs in different splits of the folder's
    own, which cannot be joined, and, unless `allow_mixed`, pairs with different labels.

    Args:
      images: of the rows, uint8 (n, S, S, C) or (n, S, S, S, 1).
      pooled: the folder's own splits are not used, because a cross-validation divides all images.
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
    if mode == REFUSE:
        fix = "delete one, give both one patient, or set data.duplicates=join"
        for pair, text in zip(search.pairs, texts, strict=True):
            problems.add(f"nearly equal images of different patients, {text}: {fix}", row=rows[pair.first].number)
        return list(rows)
    _check_joins(rows, search.pairs, texts, problems, multi_label=multi_label, allow_mixed=allow_mixed, pooled=pooled)
    logger.warning("nearly equal images, each taken as one patient: %s (%s)", some(texts), count)
    return _joined(rows, search.pairs)


def _warn_of_limits(images: np.ndarray) -> None:
    count, size = images.shape[:2]
    if size < near_duplicates.LEAST_SIZE:
        logger.warning("data.size=%d is too small for nearly equal images to be found: none are looked for", size)
    elif images.ndim == 4 and count > near_duplicates.MOST_FOR_PARTS:
        logger.warning(
            "more than %d images: nearly equal ones are looked for, but not images that are a part of another",
            near_duplicates.MOST_FOR_PARTS,
        )


def _owner(row: Row) -> str:
    return row.file if row.patient is None else row.patient


def _sides(rows: Sequence[Row], pooled: bool) -> np.ndarray:
    """Numbers (n,) that are equal where two images cannot come to different splits."""
    splits = [row.split for row in rows]
    alone = np.arange(len(rows))
    if pooled or splits[0] is None:
        return alone
    # A folder without val gets it from its train split.
    fixed = [split for split in dict.fromkeys(splits) if split != "train" or "val" in splits]
    return np.array([-1 - fixed.index(split) if split in fixed else row for row, split in enumerate(splits)])


def _text(rows: Sequence[Row], pair: Pair, multi_label: bool) -> str:
    one, other = rows[pair.first], rows[pair.second]
    remarks = [pair.how] if pair.how else []
    if one.split != other.split:
        remarks.append(f"splits {one.split} and {other.split}")
    if not labels.same_labels(one, other, multi_label=multi_label):
        remarks.append(f"labels {one.label!r} and {other.label!r}")
    return f"{one.file} ~ {other.file}" + (f" ({'; '.join(remarks)})" if remarks else "")


def _check_joins(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    texts: Sequence[str],
    problems: Problems,
    *,
    multi_label: bool,
    allow_mixed: bool,
    pooled: bool,
) -> None:
    """Adds a problem for each pair that data.duplicates=join cannot make one patient."""
    for pair, text in zip(pairs, texts, strict=True):
        one, other = rows[pair.first], rows[pair.second]
        problem = ""
        if one.split != other.split and not pooled:
            problem = (
                "data.duplicates=join moves no image out of its split: delete one, give both one split, or give no "
                "splits, for them to be made"
            )
        elif not allow_mixed and not labels.same_labels(one, other, multi_label=multi_label):
            problem = "one patient with two labels: correct one, delete one, or set data.allow_mixed_patients=True"
        if problem:
            problems.add(f"nearly equal images of different patients, {text}: {problem}", row=one.number)


def _joined(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[Row]:
    """`rows`, where the patients of each pair are one, called as the first of them in the order of the rows."""
    owners = [_owner(row) for row in rows]
    # Only here: it takes half a second to import.
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet(dict.fromkeys(owners))
    for pair in pairs:
        sets.merge(owners[pair.first], owners[pair.second])
    name_of: dict[str, str] = {}
    for owner in owners:
        name_of.setdefault(sets[owner], owner)
    return [dataclasses.replace(row, patient=name_of[sets[owner]]) for row, owner in zip(rows, owners, strict=True)]
