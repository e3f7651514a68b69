"""Candidates of near duplicates: pairs of images that are similar in few coefficients.

Each view of one image (turned, mirrored, inverted, cropped) is compared with another image as a whole. The content
common to all images does not count.
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

# Coefficients a side, and the smallest similarity, by spatial dimensions.
_COARSE, _MIN_SIMILARITY = {2: 8, 3: 5}, {2: 0.69, 3: 0.85}
# Similarities that differ by less than this may be equal but for rounding.
_ROUNDING = 2.0**-14
# The smallest similarity without the content common to all images, which this many images estimate.
MIN_RESIDUAL, _MIN_LENGTH, SAMPLE = 0.5, 0.1, 256
# Crops that one image may show of another: fractions of its side, and the step between their positions.
_FRACTIONS, STEP = (0.92, 0.84, 0.77, 0.7), 0.08
_MAX_SIMILARITIES = 2**22  # in memory at once
_BATCH = 256  # images in memory as float32 at once
_MAX_SMALL_BYTES = 2**27  # of small images in memory
_WHOLE = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class View:
    """A change of an image: its orientation, see `dct.oriented`, inversion, and crop, (axis, end) as fractions."""

    orientation: int = 0
    inverted: bool = False
    box: tuple[tuple[float, float], ...] = ()

    @property
    def how(self) -> str:
        """The change in words, without the crop."""
        words = ("mirrored or turned" if self.orientation else "", "inverted" if self.inverted else "")
        return ", ".join(filter(None, words))


class Candidate(NamedTuple):
    """Two images, as indices, and the view of the first one that is similar to the second one."""

    first: int
    second: int
    view: View


class SmallImages:
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


@functools.cache
def views_of(ndim: int, *, crops: bool) -> tuple[View, ...]:
    """The views of an image that are compared with other images; with or without `crops`."""
    whole = (_WHOLE,) * ndim
    views = [View(orientation, inverted, whole) for inverted in (False, True) for orientation in range(8)]
    if crops and ndim == 2:
        lows = {size: np.linspace(0, 1 - size, int(np.ceil((1 - size) / STEP)) + 1) for size in _FRACTIONS}
        edges = {size: [(low, low + size) for low in found.tolist()] for size, found in lows.items()}
        # Square crops, and crops of one axis: other crops are fitted, starting from these.
        boxes = [box for found in edges.values() for box in itertools.product(found, found)]
        boxes += [box for found in edges.values() for span in found for box in ((span, _WHOLE), (_WHOLE, span))]
        views += [View(box=box) for box in boxes]
    return tuple(views)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]


def _queries(images: np.ndarray, views: Sequence[View]) -> np.ndarray:
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


def targets_of(images: SmallImages) -> np.ndarray:
    """The feature vectors of whole images, float32 (n, D)."""
    return np.concatenate([dct.features(images[rows], _COARSE[images.ndim]) for rows in _batches(len(images))])


def sample(digests: Sequence[str]) -> np.ndarray:
    """Images that stand for all, as indices: at most `SAMPLE`, each with another content.

    They are chosen by their content, so that few of them are others when some images of many have changed.

    Args:
      digests: of the content of each image.
    """
    return np.unique(np.asarray(digests), return_index=True)[1][:SAMPLE]


class CommonContent:
    """The content common to all images, for each view: the plane of the mean feature vectors of images and of the view.

    Chest radiographs, or brains in one atlas, are similar because of their common anatomy. When it is projected out,
    only copies remain similar.
    """

    def __init__(self, images: SmallImages, targets: np.ndarray, views: Sequence[View], some: np.ndarray):
        """Estimates it.

        Args:
          images, targets, views: see `candidates`.
          some: indices of the images that stand for all, see `sample`.
        """
        self._enough = len(some) >= SAMPLE
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
        return (length < _MIN_LENGTH) | (similarity - (ours * theirs).sum(1) > MIN_RESIDUAL * length)


def candidates(
    images: SmallImages, targets: np.ndarray, views: Sequence[View], common: CommonContent, fresh: np.ndarray
) -> Iterator[Candidate]:
    """Yields pairs of images with the view of the first one that is most similar to the second one, in their order.

    Args:
      images: all images.
      targets: their feature vectors, see `targets_of`.
      views: of each image.
      common: the content that does not count.
      fresh: which images are compared with all, bool (n,); the others are compared with these alone.
    """
    total, chosen = len(images), np.flatnonzero(fresh)
    if not len(chosen):
        return
    space = np.empty(max(_MAX_SIMILARITIES, len(views) * total), np.float32)
    with tqdm(total=total, desc="comparing", unit="image", disable=None) as bar:
        for rows in _batches(total):
            queries = _queries(images[rows], views)
            start = 0
            for with_all, run in itertools.groupby(fresh[rows]):
                stop = start + len(list(run))
                others = np.arange(total) if with_all else chosen
                against = targets if with_all else targets[chosen]
                step = max(1, _MAX_SIMILARITIES // (len(views) * len(others)))
                for low in range(start, stop, step):
                    part = queries[low : min(low + step, stop)]
                    for first, second, number in _alike(part, against, others, common, images.ndim, space):
                        yield Candidate(first + rows.start + low, second, views[number])
                start = stop
            bar.update(len(queries))


def _alike(
    queries: np.ndarray, targets: np.ndarray, others: np.ndarray, common: CommonContent, ndim: int, space: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """Yields similar pairs: row of the queries (m, views, D), index of the other image, number of the best view.

    Args:
      queries: feature vectors of the views.
      targets: those of the other images, (k, D).
      others: the indices of these, int (k,).
      common: see `candidates`.
      ndim: spatial dimensions.
      space: float32, for the similarities of all queries.
    """
    flat, (rows, views), total = queries.reshape(-1, queries.shape[-1]), queries.shape[:2], len(targets)
    similarity = np.matmul(flat, targets.T, out=space[: len(flat) * total].reshape(len(flat), total))
    # Not np.nonzero, which takes as long as the product.
    found = np.flatnonzero(similarity > _MIN_SIMILARITY[ndim])
    first, number, second = np.unravel_index(found, (rows, views, total))
    scores = similarity.ravel()[found]
    # Of equally similar views the first one, whatever else is in the product and changes its rounding.
    order = np.lexsort((number, -np.round(scores / _ROUNDING), second, first))
    best = order[np.append(True, np.diff(first[order] * total + second[order]) != 0)[: len(order)]]
    kept = common.exceeded_by(flat[found[best] // total], scores[best], number[best], others[second[best]])
    for row in best[kept].tolist():
        yield int(first[row]), int(others[second[row]]), int(number[row])
