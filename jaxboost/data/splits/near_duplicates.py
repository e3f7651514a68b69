"""Near duplicates, found by their pixels: recompressed, resized, flipped, rotated, inverted or cropped images.

Images of one modality are similar, most of all in their low frequencies. So images are compared by coefficients of
their discrete cosine transform, as in perceptual hashing, but the coefficients are weighted, see `dct`, and not
binarized: the similarity of two images is the cosine similarity of their feature vectors. Brightness and contrast do
not change it.

All pairs are compared with few coefficients, which selects candidates. Candidates are compared with many coefficients,
after a fit of the crop of the other image that one image shows. docs/leaks.md has the detection rates.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxboost.data.dataset import MappedRows
from jaxboost.data.splits import dct

# For candidates: coefficients a side, and the smallest similarity, by spatial dimensions.
_COARSE, _MIN_SIMILARITY = {2: 8, 3: 5}, {2: 0.69, 3: 0.85}
# Comparison of 2-D candidates: coefficients a side, steps of the fit, and the smallest similarity that passes.
_STAGES = ((12, 0, 0.3), (8, 3, 0.85))
# Then one of these has to be reached: coefficients a side, and the smallest similarity. A small copy lacks the highest
# frequencies.
_FINE, _ENDS = 16, ((16, 0.9), (12, 0.95))
# The smallest similarity of candidates without the content common to all images, which this many images estimate.
_MIN_RESIDUAL, _MIN_LENGTH, _SAMPLE = 0.5, 0.1, 256
_FINE_3D, _ALIKE_3D = 10, 0.95
# Smaller images have too few coefficients to be distinguished: whole images, and crops.
_LEAST_SIZE, _LEAST_SIZE_OF_PARTS = 8, 20
# Crops that one image may show of another: fractions of its side, and the step between their positions.
_FRACTIONS, _STEP = (0.92, 0.84, 0.77, 0.7), 0.08
# With more images only whole images are compared: the time grows with the square of their number.
MOST_FOR_PARTS = 20_000
# Candidates of one search, which take some minutes. Very similar images, such as shapes, would take hours.
_MAX_CANDIDATES = {2: 4_000_000, 3: 100_000}
# Pairs above this similarity that are no duplicates: with more than this number, and more than this fraction of a
# sample of pairs, the images are probably shapes, where copies cannot be distinguished from other images.
_SIMILAR, _MAX_SIMILAR, _MAX_SIMILAR_FRACTION = 0.75, 20, 0.01
_MAX_SIMILARITIES = 2**22  # in memory at once
_BATCH = 256  # images in memory as float32 at once
_MAX_SMALL_BYTES = 2**27  # of small images in memory
_WHOLE = (0.0, 1.0)


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
    """

    pairs: tuple[Pair, ...]
    gap: str = ""


@dataclasses.dataclass(frozen=True)
class _View:
    """A change of an image: its orientation, see `dct.oriented`, inversion, and crop, (axis, end) as fractions."""

    orientation: int = 0
    inverted: bool = False
    box: tuple[tuple[float, float], ...] = ()

    @property
    def how(self) -> str:
        """The change in words, without the crop."""
        words = ("mirrored or turned" if self.orientation else "", "inverted" if self.inverted else "")
        return ", ".join(filter(None, words))


class _Candidate(NamedTuple):
    first: int
    second: int
    view: _View


class _Small:
    """The images, small and grey (see `dct.downsampled`): each is made once, unless they would take much memory.

    Attributes:
      ndim: spatial dimensions.
    """

    def __init__(self, images: np.ndarray | MappedRows):
        self._images, self.ndim = images, images.ndim - 2
        self._found: np.ndarray | None = None
        edge = min(dct.SIDE, images.shape[1])
        if len(images) * edge**self.ndim * 4 <= _MAX_SMALL_BYTES:
            self._found = np.empty((len(images), *(edge,) * self.ndim), np.float32)
            for rows in _batches(len(images)):
                self._found[rows] = dct.downsampled(images[rows])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 (m, R, R) or (m, R, R, R)."""
        return dct.downsampled(self._images[rows]) if self._found is None else self._found[rows]


def find(images: np.ndarray | MappedRows, patients: np.ndarray, splits: np.ndarray) -> Search:
    """Finds pairs of near duplicates of different patients in different splits.

    Args:
      images: uint8 (n, S, S, C), or (n, S, S, S, 1); those on disk are read in batches.
      patients: int (n,); images of one patient are not compared, and patients connected by pairs count as one.
      splits: int (n,); images in one split are not compared.
    """
    ndim, size = images.ndim - 2, images.shape[1]
    if len(np.unique(patients)) < 2 or len(np.unique(splits)) < 2:
        return Search(())
    if size < _LEAST_SIZE:
        return Search((), f"data.size={size} is too small to look for them, which takes {_LEAST_SIZE} or more")
    small = _Small(images)
    if not _are_distinguishable(small):
        return Search((), "most images look alike, as shapes do, and copies cannot be distinguished from other images")
    gap = _no_parts(len(images), size) if ndim == 2 else ""
    views = _views(ndim, crops=not gap)
    targets = np.concatenate([dct.features(small[rows], _COARSE[ndim]) for rows in _batches(len(small))])
    # Imported here because it takes half a second.
    from scipy.cluster.hierarchy import DisjointSet

    joined = DisjointSet(range(int(patients.max()) + 1))
    pairs: list[Pair] = []
    compared = 0

    def wanted(candidate: _Candidate) -> bool:
        one, other = patients[candidate.first], patients[candidate.second]
        return splits[candidate.first] != splits[candidate.second] and not joined.connected(one, other)

    common = _CommonContent(small, targets, views)
    for found in _in_batches(filter(wanted, _candidates(small, targets, views, common))):
        compared += len(found)
        if compared > _MAX_CANDIDATES[ndim]:
            more = "more pairs look alike than can be compared closely"
            gap = f"{gap}; {more}" if gap else more
            break
        for candidate, how in _confirmed(small, found):
            first, second = sorted((candidate.first, candidate.second))
            if joined.merge(patients[first], patients[second]):
                pairs.append(Pair(first, second, how))
    return Search(tuple(sorted(pairs)), gap)


def _no_parts(count: int, size: int) -> str:
    """Returns why images are not compared with parts of each other, "" if they are."""
    if size < _LEAST_SIZE_OF_PARTS:
        return f"data.size={size} is too small to find a crop of another image, which takes {_LEAST_SIZE_OF_PARTS}"
    if count > MOST_FOR_PARTS:
        return f"crops of another image are not looked for among more than {MOST_FOR_PARTS} images"
    return ""


def _are_distinguishable(images: _Small) -> bool:
    """Whether a sample has few pairs that are similar without being duplicates."""
    ndim = images.ndim
    fine, equal = _ENDS[0] if ndim == 2 else (_FINE_3D, _ALIKE_3D)
    some = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).astype(int))
    vectors = dct.features(images[some], fine)
    mean = vectors.mean(0)
    own = vectors - np.outer(vectors @ mean, mean) / max(float(mean @ mean), 1e-9)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)
    pairs = np.triu_indices(len(some), 1)
    similarity, residual = (vectors @ vectors.T)[pairs], (own @ own.T)[pairs]
    similar = np.count_nonzero((similarity > _SIMILAR) & (similarity < equal) & (residual > _MIN_RESIDUAL))
    return similar <= max(_MAX_SIMILAR, _MAX_SIMILAR_FRACTION * len(similarity))


@functools.cache
def _views(ndim: int, *, crops: bool) -> tuple[_View, ...]:
    whole = (_WHOLE,) * ndim
    views = [_View(orientation, inverted, whole) for inverted in (False, True) for orientation in range(8)]
    if crops and ndim == 2:
        lows = {size: np.linspace(0, 1 - size, int(np.ceil((1 - size) / _STEP)) + 1) for size in _FRACTIONS}
        edges = {size: [(low, low + size) for low in found.tolist()] for size, found in lows.items()}
        # Square crops, and crops of one axis: other crops are fitted, starting from these.
        boxes = [box for found in edges.values() for box in itertools.product(found, found)]
        boxes += [box for found in edges.values() for span in found for box in ((span, _WHOLE), (_WHOLE, span))]
        views += [_View(box=box) for box in boxes]
    return tuple(views)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]


def _queries(images: np.ndarray, views: Sequence[_View]) -> np.ndarray:
    """The feature vectors of the views of each downsampled image, float32 (n, views, D)."""
    ndim, size = images.ndim - 1, images.shape[1]
    count = min(_COARSE[ndim], size)
    whole = [dct.features(dct.oriented(images, orientation), count) for orientation in range(8)]
    boxes = [view.box for view in views if view.box != (_WHOLE,) * ndim]
    found = [
        -whole[view.orientation] if view.inverted else whole[view.orientation]
        for view in views[: len(views) - len(boxes)]
    ]
    rows: dict[tuple[float, float], np.ndarray] = {}
    for down, across in boxes:
        if down not in rows:
            rows[down] = dct.bases(size, np.float64(down[0]), np.float64(down[1]), count) @ images
        base = dct.bases(size, np.float64(across[0]), np.float64(across[1]), count)
        found.append(dct.normalized(rows[down] @ base.T, ndim))
    return np.stack(found, 1)


class _CommonContent:
    """The content common to all images, for each view: the plane of the mean feature vectors of images and of the view.

    Chest radiographs, or brains in one atlas, are similar because of their common anatomy. When it is projected out,
    only copies remain similar.
    """

    def __init__(self, images: _Small, targets: np.ndarray, views: Sequence[_View]):
        some = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).astype(int))
        self._enough = len(some) == _SAMPLE
        means = np.stack([np.broadcast_to(targets[some].mean(0), (len(views), targets.shape[1]))] * 2, -1)
        means[..., 1] = _queries(images[some], views).mean(0)
        self._planes = np.linalg.qr(means + 1e-6 * np.eye(*means.shape[1:]))[0]  # (views, D, 2)
        self._targets = np.einsum("nd,vdp->vnp", targets, self._planes)

    def exceeded_by(
        self, queries: np.ndarray, similarity: np.ndarray, number: np.ndarray, second: np.ndarray
    ) -> np.ndarray:
        """Which pairs are similar also without the common content, bool (m,).

        Args:
          queries: feature vectors (m, D) of the views.
          similarity: of the queries to the images `second`, (m,).
          number: index of each query's view, int (m,).
          second: index of the image that each query is compared with, int (m,).
        """
        if not self._enough:
            return np.ones(len(similarity), bool)
        ours, theirs = np.einsum("md,mdp->mp", queries, self._planes[number]), self._targets[number, second]
        length = np.sqrt(np.maximum(1 - (ours**2).sum(1), 0) * np.maximum(1 - (theirs**2).sum(1), 0))
        # Very short vectors carry no information, so these pairs stay.
        return (length < _MIN_LENGTH) | (similarity - (ours * theirs).sum(1) > _MIN_RESIDUAL * length)


def _candidates(
    images: _Small, targets: np.ndarray, views: Sequence[_View], common: _CommonContent
) -> Iterator[_Candidate]:
    """Yields pairs of images with the view of the first one that is most similar to the second one."""
    ndim, total = images.ndim, len(images)
    step = max(1, _MAX_SIMILARITIES // (len(views) * total))
    space = np.empty((step * len(views), total), np.float32)
    with tqdm(total=total, desc="comparing", unit="image", disable=None) as bar:
        for rows in _batches(total):
            queries = _queries(images[rows], views)
            for start in range(0, len(queries), step):
                chunk = queries[start : start + step].reshape(-1, queries.shape[-1])
                similarity = np.matmul(chunk, targets.T, out=space[: len(chunk)])
                # Not np.nonzero, which takes as long as the product.
                found = np.flatnonzero(similarity > _MIN_SIMILARITY[ndim])
                first, number, second = np.unravel_index(found, (len(chunk) // len(views), len(views), total))
                scores = similarity.ravel()[found]
                order = np.lexsort((-scores, second, first))
                best = order[np.append(True, np.diff(first[order] * total + second[order]) != 0)[: len(order)]]
                kept = common.exceeded_by(chunk[found[best] // total], scores[best], number[best], second[best])
                for row in best[kept].tolist():
                    yield _Candidate(int(first[row]) + rows.start + start, int(second[row]), views[number[row]])
                bar.update(len(chunk) // len(views))


def _in_batches(candidates: Iterator[_Candidate]) -> Iterator[list[_Candidate]]:
    while batch := list(itertools.islice(candidates, _BATCH)):
        yield batch


def _confirmed(images: _Small, candidates: Sequence[_Candidate]) -> Iterator[tuple[_Candidate, str]]:
    """The candidates that are duplicates at a fine comparison, and how their images differ."""
    ndim = images.ndim
    first, second = ([getattr(candidate, name) for candidate in candidates] for name in ("first", "second"))
    views = [candidate.view for candidate in candidates]
    grey = images[first]
    shown = np.stack([dct.oriented(image[None], view.orientation)[0] for image, view in zip(grey, views, strict=True)])
    shown *= np.array([-1 if view.inverted else 1 for view in views], np.float32).reshape(-1, *[1] * ndim)
    seen = images[second]
    if ndim == 2:
        boxes = np.array([view.box for view in views])
        kept = np.arange(len(candidates))
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
        cut = (boxes[:, :, 1] - boxes[:, :, 0]).min(1) < 1 - _STEP / 2
    else:
        similarity = (dct.features(shown, _FINE_3D) * dct.features(seen, _FINE_3D)).sum(-1)
        kept = np.flatnonzero(similarity > _ALIKE_3D)
        cut = np.zeros(len(kept), bool)
    for row, is_part in zip(kept.tolist(), cut.tolist(), strict=True):
        yield candidates[row], "one is a crop of the other" if is_part else views[row].how
