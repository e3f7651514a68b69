"""Nearly equal images, found by their pixels: saved anew, resized, brighter, mirrored, turned, inverted, or cut out.

Images of one modality look alike, and most of what they share is coarse. So images are compared by the coefficients of
their discrete cosine transform, as a perceptual hash does, but these are weighted, see `cosines`, and are kept as
numbers: the likeness of two images is the correlation of their vectors. Brightness and contrast do not change it.

Few coefficients of all pairs pick the candidates. They are compared with many coefficients, where the part that one
image shows of the other is fitted first (Gauss-Newton on the edges of the box). docs/leaks.md has the rates.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxboost.data.splits import dct

# Coefficients a side, and the least likeness, of candidates, by spatial dimensions.
_COARSE, _PASSES = {2: 8, 3: 5}, {2: 0.69, 3: 0.85}
# Of the comparison of 2-D candidates: coefficients a side, steps of the fit, and the least likeness that passes.
_STAGES = ((12, 0, 0.3), (8, 3, 0.85))
# Then one of these is enough: coefficients a side, and the least likeness. A copy of few pixels lacks the finest ones.
_FINE, _ENDS = 16, ((16, 0.9), (12, 0.95))
# The least likeness of candidates beyond what all images have in common, which this many show.
_PASSES_BEYOND, _NOTHING_LEFT, _SAMPLE = 0.5, 0.1, 256
_FINE_3D, _ALIKE_3D = 10, 0.95
# Smaller images have too few coefficients to be distinguished, whole and in part.
LEAST_SIZE, _LEAST_SIZE_OF_PARTS = 8, 20
# Parts that one image may show of another: shares of its side, and the step between their places.
_SHARES, _STEP = (0.92, 0.84, 0.77, 0.7), 0.08
# More images are compared as a whole only: the time grows with the square of their number.
MOST_FOR_PARTS = 20_000
# Candidates of one search: some minutes. Images that are alike all over, such as shapes, would take hours.
_MOST_CANDIDATES = {2: 4_000_000, 3: 100_000}
# Where more pairs than this, and more than this share of those that were sampled, are neither equal nor unlike, the
# images are probably shapes, and copies cannot be distinguished from other images.
_BETWEEN, _MOST_BETWEEN, _MOST_SHARE_BETWEEN = 0.75, 20, 0.01
_BLOCK = 2**22  # likenesses in memory at once
_BATCH = 256  # images in memory as float32 at once
_WHOLE = (0.0, 1.0)


class Pair(NamedTuple):
    """Two images, as indices first < second, and how they differ in words ("" where they do not, but in details)."""

    first: int
    second: int
    how: str


@dataclasses.dataclass(frozen=True)
class Search:
    """The pairs in their order, and why there may be more, "" where there are none: a text for `there may be more`.

    Owners whom pairs connect already are not compared, so that a set of n copies gives n - 1 pairs.
    """

    pairs: tuple[Pair, ...]
    gap: str = ""


@dataclasses.dataclass(frozen=True)
class _View:
    """What may have been done to an image: it was turned or mirrored, inverted, or cut to a box."""

    turn: int = 0
    inverted: bool = False
    box: tuple[tuple[float, float], ...] = ()

    @property
    def how(self) -> str:
        words = ("mirrored or turned" if self.turn else "", "inverted" if self.inverted else "")
        return ", ".join(filter(None, words))


class _Candidate(NamedTuple):
    first: int
    second: int
    view: _View


def find(images: np.ndarray, owners: np.ndarray, sides: np.ndarray) -> Search:
    """The pairs of nearly equal images of different owners on different sides.

    Args:
      images: uint8 (n, S, S, C), or (n, S, S, S, 1).
      owners: int (n,); an owner's images are not compared, and owners who are connected by pairs count as one.
      sides: int (n,); pairs on one side are not looked for.
    """
    ndim, size = images.ndim - 2, images.shape[1]
    if size < LEAST_SIZE or len(images) < 2:
        return Search(())
    if not _can_be_told_apart(images):
        return Search((), "most images look alike, as shapes do, and copies cannot be distinguished from other images")
    views = _views(ndim, parts=size >= _LEAST_SIZE_OF_PARTS and len(images) <= MOST_FOR_PARTS)
    targets = np.concatenate([dct.describe(dct.reduced(images[rows]), _COARSE[ndim]) for rows in _batches(len(images))])
    # Only here: it takes half a second to import.
    from scipy.cluster.hierarchy import DisjointSet

    joined = DisjointSet(range(int(owners.max()) + 1))
    pairs: list[Pair] = []
    compared, gap = 0, ""

    def wanted(candidate: _Candidate) -> bool:
        one, other = owners[candidate.first], owners[candidate.second]
        return sides[candidate.first] != sides[candidate.second] and not joined.connected(one, other)

    common = _Common(images, targets, views)
    for found in _in_batches(filter(wanted, _candidates(images, targets, views, common))):
        compared += len(found)
        if compared > _MOST_CANDIDATES[ndim]:
            gap = "more pairs look alike than can be compared closely"
            break
        for candidate, how in _alike(images, found):
            first, second = sorted((candidate.first, candidate.second))
            if joined.merge(owners[first], owners[second]):
                pairs.append(Pair(first, second, how))
    return Search(tuple(sorted(pairs)), gap)


def _can_be_told_apart(images: np.ndarray) -> bool:
    """Whether few pairs of a sample are neither equal nor unlike."""
    ndim = images.ndim - 2
    fine, equal = _ENDS[0] if ndim == 2 else (_FINE_3D, _ALIKE_3D)
    some = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).astype(int))
    vectors = dct.describe(dct.reduced(images[some]), fine)
    mean = vectors.mean(0)
    own = vectors - np.outer(vectors @ mean, mean) / max(float(mean @ mean), 1e-9)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)
    pairs = np.triu_indices(len(some), 1)
    likeness, beyond = (vectors @ vectors.T)[pairs], (own @ own.T)[pairs]
    between = np.count_nonzero((likeness > _BETWEEN) & (likeness < equal) & (beyond > _PASSES_BEYOND))
    return between <= max(_MOST_BETWEEN, _MOST_SHARE_BETWEEN * len(likeness))


@functools.cache
def _views(ndim: int, *, parts: bool) -> tuple[_View, ...]:
    whole = (_WHOLE,) * ndim
    views = [_View(turn, inverted, whole) for inverted in (False, True) for turn in range(8)]
    if parts and ndim == 2:
        spans = {share: np.linspace(0, 1 - share, int(np.ceil((1 - share) / _STEP)) + 1) for share in _SHARES}
        edges = {share: [(low, low + share) for low in lows.tolist()] for share, lows in spans.items()}
        # In proportion, or cut on one axis: what is cut on both in other shares is fitted from these.
        boxes = [box for found in edges.values() for box in itertools.product(found, found)]
        boxes += [box for found in edges.values() for span in found for box in ((span, _WHOLE), (_WHOLE, span))]
        views += [_View(box=box) for box in boxes]
    return tuple(views)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]


def _queries(images: np.ndarray, views: Sequence[_View]) -> np.ndarray:
    """Vectors of the views of each reduced image, float32 (n, views, D)."""
    ndim, size = images.ndim - 1, images.shape[1]
    count = min(_COARSE[ndim], size)
    turned = [dct.describe(dct.turned(images, turn), count) for turn in range(8)]
    boxes = [view.box for view in views if view.box != (_WHOLE,) * ndim]
    found = [-turned[view.turn] if view.inverted else turned[view.turn] for view in views[: len(views) - len(boxes)]]
    rows: dict[tuple[float, float], np.ndarray] = {}
    for down, across in boxes:
        if down not in rows:
            rows[down] = dct.bases(size, np.float64(down[0]), np.float64(down[1]), count) @ images
        base = dct.bases(size, np.float64(across[0]), np.float64(across[1]), count)
        found.append(dct.unit(rows[down] @ base.T, ndim))
    return np.stack(found, 1)


class _Common:
    """What all images have in common, for each view: the plane of the mean vector of the images and that of the view.

    Chest radiographs, or brains in one atlas, are alike because of their common anatomy. Without it copies are still
    alike, and other pairs are not.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, views: Sequence[_View]):
        some = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).astype(int))
        self._enough = len(some) == _SAMPLE
        means = np.stack([np.broadcast_to(targets[some].mean(0), (len(views), targets.shape[1]))] * 2, -1)
        means[..., 1] = _queries(dct.reduced(images[some]), views).mean(0)
        self._planes = np.linalg.qr(means + 1e-6 * np.eye(*means.shape[1:]))[0]  # (views, D, 2)
        self._targets = np.einsum("nd,vdp->vnp", targets, self._planes)

    def beyond(self, queries: np.ndarray, likeness: np.ndarray, number: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Which pairs are alike beyond what is common, bool (m,).

        Args:
          queries: (m, D), of the views `number`.
          likeness: of these to the images `second`.
        """
        if not self._enough:
            return np.ones(len(likeness), bool)
        ours, theirs = np.einsum("md,mdp->mp", queries, self._planes[number]), self._targets[number, second]
        left = np.sqrt(np.maximum(1 - (ours**2).sum(1), 0) * np.maximum(1 - (theirs**2).sum(1), 0))
        # Where nearly nothing is left, nothing can be said.
        return (left < _NOTHING_LEFT) | (likeness - (ours * theirs).sum(1) > _PASSES_BEYOND * left)


def _candidates(
    images: np.ndarray, targets: np.ndarray, views: Sequence[_View], common: _Common
) -> Iterator[_Candidate]:
    """The pairs where a view of the first is like the second, with the view that is most like it."""
    ndim, total = images.ndim - 2, len(images)
    step = max(1, _BLOCK // (len(views) * total))
    space = np.empty((step * len(views), total), np.float32)
    with tqdm(total=total, desc="comparing", unit="image", disable=None) as bar:
        for rows in _batches(total):
            queries = _queries(dct.reduced(images[rows]), views)
            for start in range(0, len(queries), step):
                block = queries[start : start + step].reshape(-1, queries.shape[-1])
                likeness = np.matmul(block, targets.T, out=space[: len(block)])
                # np.nonzero takes as long as the product.
                found = np.flatnonzero(likeness > _PASSES[ndim])
                first, number, second = np.unravel_index(found, (len(block) // len(views), len(views), total))
                scores = likeness.ravel()[found]
                order = np.lexsort((-scores, second, first))
                best = order[np.append(True, np.diff(first[order] * total + second[order]) != 0)[: len(order)]]
                beyond = common.beyond(block[found[best] // total], scores[best], number[best], second[best])
                for row in best[beyond].tolist():
                    yield _Candidate(int(first[row]) + rows.start + start, int(second[row]), views[number[row]])
                bar.update(len(block) // len(views))


def _in_batches(candidates: Iterator[_Candidate]) -> Iterator[list[_Candidate]]:
    while batch := list(itertools.islice(candidates, _BATCH)):
        yield batch


def _alike(images: np.ndarray, candidates: Sequence[_Candidate]) -> Iterator[tuple[_Candidate, str]]:
    """The candidates whose likeness stays when it is looked at closely, and how their images differ."""
    ndim = images.ndim - 2
    first, second = ([getattr(candidate, name) for candidate in candidates] for name in ("first", "second"))
    views = [candidate.view for candidate in candidates]
    grey = dct.reduced(images[first])
    shown = np.stack([dct.turned(image[None], view.turn)[0] for image, view in zip(grey, views, strict=True)])
    shown *= np.array([-1 if view.inverted else 1 for view in views], np.float32).reshape(-1, *[1] * ndim)
    seen = dct.reduced(images[second])
    if ndim == 2:
        boxes = np.array([view.box for view in views])
        kept = np.arange(len(candidates))
        for count, steps, least in _STAGES:
            boxes, likeness = dct.fit(shown[kept], dct.describe(seen[kept], count), boxes, steps)
            kept, boxes = kept[likeness > least], boxes[likeness > least]
            if not len(kept):
                return
        boxes, _ = dct.fit(shown[kept], dct.describe(seen[kept], _FINE), boxes, 3)
        passed = np.zeros(len(kept), bool)
        for count, least in _ENDS:
            passed |= dct.fit(shown[kept], dct.describe(seen[kept], count), boxes, 0)[1] > least
        kept, boxes = kept[passed], boxes[passed]
        cut = (boxes[:, :, 1] - boxes[:, :, 0]).min(1) < 1 - _STEP / 2
    else:
        likeness = (dct.describe(shown, _FINE_3D) * dct.describe(seen, _FINE_3D)).sum(-1)
        kept = np.flatnonzero(likeness > _ALIKE_3D)
        cut = np.zeros(len(kept), bool)
    for row, is_part in zip(kept.tolist(), cut.tolist(), strict=True):
        yield candidates[row], "cut out" if is_part else views[row].how
