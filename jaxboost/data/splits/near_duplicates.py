"""Near duplicates, found by their pixels: recompressed, resized, flipped, rotated, inverted or cropped images.

Images of one modality are similar, most of all in their low frequencies. So images are compared by coefficients of
their discrete cosine transform, as in perceptual hashing, but the coefficients are weighted, see `dct`, and not
binarized: the similarity of two images is the cosine similarity of their feature vectors. Brightness and contrast do
not change it.

All pairs are compared with few coefficients, which selects `candidates`. Candidates are compared with many
coefficients, after a fit of the crop of the other image that one image shows. docs/leaks.md has the detection rates.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxboost import io
from jaxboost.data.dataset import MappedRows, row_digests
from jaxboost.data.splits import dct
from jaxboost.data.splits.candidates import (
    MIN_RESIDUAL,
    STEP,
    Candidate,
    CommonContent,
    SmallImages,
    View,
    candidates,
    sample,
    targets_of,
    views_of,
)
from jaxboost.data.splits.known_pairs import Known, Link, nothing_known

# Comparison of 2-D candidates: coefficients a side, steps of the fit, and the smallest similarity that passes.
_STAGES = ((12, 0, 0.3), (8, 3, 0.85))
# Then one of these has to be reached: coefficients a side, and the smallest similarity. A small copy lacks the highest
# frequencies.
_FINE, _ENDS = 16, ((16, 0.9), (12, 0.95))
_FINE_3D, _ALIKE_3D = 10, 0.95
# Smaller images have too few coefficients to be distinguished: whole images, and crops.
_LEAST_SIZE, _LEAST_SIZE_OF_PARTS = 8, 20
# With more images only whole images are compared: the time grows with the square of their number.
MOST_FOR_PARTS = 20_000
# Candidates of one search, which take some minutes. Very similar images, such as shapes, would take hours.
_MAX_CANDIDATES = {2: 4_000_000, 3: 100_000}
# Pairs above this similarity that are no duplicates: with more than this number, and more than this fraction of a
# sample of pairs, the images are probably shapes, where copies cannot be distinguished from other images.
_SIMILAR, _MAX_SIMILAR, _MAX_SIMILAR_FRACTION = 0.75, 20, 0.01
_BATCH = 256  # candidates that are compared closely at once
# A candidate, or a pair that is known already.
_Maybe = tuple[int, int, View | None]


class Pair(NamedTuple):
    """Two images, as indices first < second, and their difference in words; "": only details differ."""

    first: int
    second: int
    how: str


@dataclasses.dataclass(frozen=True)
class Search:
    """The result of a search.

    Patients that pairs already connect are not compared, so n copies give n - 1 pairs.

    Attributes:
      pairs: in the order of the images.
      gap: the reason why there may be more pairs; "": the search was complete.
      links, compared: what the next search may know already, see `known_pairs.Trace`.
    """

    pairs: tuple[Pair, ...]
    gap: str = ""
    links: tuple[Link, ...] = dataclasses.field(default=(), compare=False)
    compared: int = dataclasses.field(default=0, compare=False)


def find(
    images: np.ndarray | MappedRows,
    patients: np.ndarray,
    splits: np.ndarray,
    *,
    digests: Sequence[str] = (),
    known: Known | None = None,
) -> Search:
    """Finds pairs of near duplicates of different patients in different splits.

    Args:
      images: uint8 (n, S, S, C), or (n, S, S, S, 1); those on disk are read in batches.
      patients: int (n,); images of one patient are not compared, and patients connected by pairs count as one.
      splits: int (n,); images in one split are not compared.
      digests: of the content of each image; (): they are computed.
      known: what a search with the same `setting` knows about these images already; None: nothing. The result is the
        same with it and without it.
    """
    ndim, size = images.ndim - 2, images.shape[1]
    if len(np.unique(patients)) < 2 or len(np.unique(splits)) < 2:
        return Search(())
    if size < _LEAST_SIZE:
        return Search((), f"data.size={size} is too small to look for them, which takes {_LEAST_SIZE} or more")
    small, some = SmallImages(images), sample(digests or list(row_digests(images)))
    if not _are_distinguishable(small, some):
        return Search((), "most images look alike, as shapes do, and copies cannot be distinguished from other images")
    gap = _no_parts(len(images), size) if ndim == 2 else ""
    if known is not None and known.compared <= _MAX_CANDIDATES[ndim]:
        links, compared = _compare(small, some, patients, splits, known, crops=not gap)
        # Connected patients are skipped from the next batch on, and a search of all pairs has other batches.
        if compared + len(links) * _BATCH <= _MAX_CANDIDATES[ndim]:
            return Search(_pairs(links), gap, links, compared)
    links, compared = _compare(small, some, patients, splits, nothing_known(len(images)), crops=not gap)
    if compared > _MAX_CANDIDATES[ndim]:
        more = "more pairs look alike than can be compared closely"
        gap = f"{gap}; {more}" if gap else more
    return Search(_pairs(links), gap, links, compared)


def setting(shape: Sequence[int], digests: Sequence[str]) -> str:
    """What the comparison of two images depends on besides them, as a digest: see `find`.

    Args:
      shape: of all images.
      digests: see `find`.
    """
    some = [digests[number] for number in sample(digests)]
    return io.json_sha256([*shape[1:], _no_parts(shape[0], shape[1]), some])


def _compare(
    small: SmallImages, some: np.ndarray, patients: np.ndarray, splits: np.ndarray, known: Known, *, crops: bool
) -> tuple[tuple[Link, ...], int]:
    """Returns the links, in their order, and the number of candidates compared, with that of earlier searches.

    Args:
      small: all images.
      some: indices of those that stand for all.
      patients, splits: see `find`.
      known: the links between images that need no comparison.
      crops: whether crops are looked for.
    """
    # Imported here because it takes half a second.
    from scipy.cluster.hierarchy import DisjointSet

    joined = DisjointSet(range(int(patients.max()) + 1))
    links, compared = [], known.compared
    how_of = {(link.first, link.second): link.how for link in known.links}

    def wanted(pair: _Maybe) -> bool:
        one, other = patients[pair[0]], patients[pair[1]]
        return splits[pair[0]] != splits[pair[1]] and not joined.connected(one, other)

    targets, views = targets_of(small), views_of(small.ndim, crops=crops)
    common = CommonContent(small, targets, views, some)
    new = candidates(small, targets, views, common, known.fresh)
    earlier = ((first, second, None) for first, second in sorted(how_of))
    # In the order of the images: which of the pairs that connect the same patients are found depends on it.
    ordered = heapq.merge(new, earlier, key=lambda pair: pair[:2])
    for found in _in_batches(filter(wanted, ordered)):
        closely = [pair for pair in found if pair[:2] not in how_of]
        compared += len(closely)
        if compared > _MAX_CANDIDATES[small.ndim]:
            break
        how_of |= {candidate[:2]: how for candidate, how in _confirmed(small, closely)} if closely else {}
        for first, second, _ in found:
            if (first, second) in how_of and joined.merge(patients[first], patients[second]):
                links.append(Link(first, second, how_of[first, second]))
    return tuple(links), compared


def _pairs(links: Sequence[Link]) -> tuple[Pair, ...]:
    return tuple(sorted(Pair(*sorted(link[:2]), link.how) for link in links))


def _no_parts(count: int, size: int) -> str:
    """Returns why images are not compared with parts of each other, "" if they are."""
    if size < _LEAST_SIZE_OF_PARTS:
        return f"data.size={size} is too small to find a crop of another image, which takes {_LEAST_SIZE_OF_PARTS}"
    if count > MOST_FOR_PARTS:
        return f"crops of another image are not looked for among more than {MOST_FOR_PARTS} images"
    return ""


def _are_distinguishable(images: SmallImages, some: np.ndarray) -> bool:
    """Whether a sample, as indices, has few pairs that are similar without being duplicates."""
    ndim = images.ndim
    fine, equal = _ENDS[0] if ndim == 2 else (_FINE_3D, _ALIKE_3D)
    vectors = dct.features(images[some], fine)
    mean = vectors.mean(0)
    own = vectors - np.outer(vectors @ mean, mean) / max(float(mean @ mean), 1e-9)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)
    pairs = np.triu_indices(len(some), 1)
    similarity, residual = (vectors @ vectors.T)[pairs], (own @ own.T)[pairs]
    similar = np.count_nonzero((similarity > _SIMILAR) & (similarity < equal) & (residual > MIN_RESIDUAL))
    return similar <= max(_MAX_SIMILAR, _MAX_SIMILAR_FRACTION * len(similarity))


def _in_batches(pairs: Iterator[_Maybe]) -> Iterator[list[_Maybe]]:
    while batch := list(itertools.islice(pairs, _BATCH)):
        yield batch


def _confirmed(images: SmallImages, given: Sequence[Candidate]) -> Iterator[tuple[Candidate, str]]:
    """The candidates that are duplicates at a fine comparison, and how their images differ."""
    ndim = images.ndim
    first, second = ([getattr(candidate, name) for candidate in given] for name in ("first", "second"))
    views = [candidate.view for candidate in given]
    grey = images[first]
    shown = np.stack([dct.oriented(image[None], view.orientation)[0] for image, view in zip(grey, views, strict=True)])
    shown *= np.array([-1 if view.inverted else 1 for view in views], np.float32).reshape(-1, *[1] * ndim)
    seen = images[second]
    if ndim == 2:
        boxes = np.array([view.box for view in views])
        kept = np.arange(len(given))
        for count, steps, least in _STAGES:
            boxes, similarity = dct.fit(shown[kept], dct.features(seen[kept], count), boxes, steps)
            kept, boxes = kept[similarity > least], boxes[similarity > least]
            if not len(kept):
                return
        boxes, _ = dct.fit(shown[kept], dct.features(seen[kept], _FINE), boxes, 3)
        passed = np.zeros(len(kept), bool)
        for count, least in _ENDS:
            passed |= dct.fit(shown[kept], dct.features(seen[kept], count), boxes, 0)[1] > least
        kept, boxes = kept[passed], boxes[passed]
        cut = (boxes[:, :, 1] - boxes[:, :, 0]).min(1) < 1 - STEP / 2
    else:
        similarity = (dct.features(shown, _FINE_3D) * dct.features(seen, _FINE_3D)).sum(-1)
        kept = np.flatnonzero(similarity > _ALIKE_3D)
        cut = np.zeros(len(kept), bool)
    for row, is_part in zip(kept.tolist(), cut.tolist(), strict=True):
        yield given[row], "one is a crop of the other" if is_part else views[row].how
