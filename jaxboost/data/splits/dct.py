"""Images as vectors of the coefficients of their discrete cosine transform, whole or of a part, and parts that fit.

Each coefficient is multiplied by its frequency, which evens out the spectrum of natural images: their amplitudes fall
as 1 / f (Field, JOSA A 4, 1987), so that without it the few coarsest coefficients would decide alone.
"""

import functools
from collections.abc import Sequence

import numpy as np

# Images are reduced to this many pixels a side.
SIDE = 32
# Of a part that is fitted: the least share of the image's side, and the longest step of an edge.
LEAST_SHARE, LONGEST_STEP = 0.65, 0.08
_MOVE = 0.01  # of an edge, to see how much it changes


def reduced(images: np.ndarray) -> np.ndarray:
    """Grey float32 (n, R, R) or (n, R, R, R) of at most `SIDE` pixels a side, each a mean of what it covers."""
    grey = images.mean(-1, dtype=np.float32)
    size = grey.shape[1]
    if size <= SIDE:
        return grey
    edges = np.linspace(0, 1, SIDE + 1)
    means = bases(size, edges[:-1], edges[1:], 1)[:, 0]
    return transform(grey, [means] * (grey.ndim - 1))


def bases(size: int, low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """The first `count` cosines on the spans low..high (shares of the side), float32 (..., count, size).

    The product with the pixels is their transform (DCT-II) on the span; a pixel counts by its part inside.
    """
    left, right = np.arange(size), np.arange(1, size + 1)
    start, stop = np.asarray(low)[..., None] * size, np.asarray(high)[..., None] * size
    inner, outer = np.minimum(right, stop), np.maximum(left, start)
    inside = np.clip(inner - outer, 0, 1)
    place = ((inner + outer) / 2 - start) / (stop - start)
    cosine = np.cos(np.pi * place).astype(np.float32)
    # The higher ones by Chebyshev's recurrence: cosines would take most of the time of a comparison.
    found = [np.ones_like(cosine), cosine]
    while len(found) < count:
        found.append(2 * cosine * found[-1] - found[-2])
    share = (inside / (stop - start)).astype(np.float32)
    return np.stack([base * share for base in found[:count]], -2)


def transform(images: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """(n, R, R) -> (n, K, K) by a matrix (K, R), or (n, K, R), for each axis; likewise of volumes."""
    for axis, base in enumerate(matrices, 1):
        moved = np.moveaxis(images, axis, -2)
        flat = moved.reshape(*moved.shape[:1], -1, *moved.shape[-2:]) if images.ndim > 3 else moved
        done = (base[:, None] if base.ndim == 3 and images.ndim > 3 else base) @ flat
        images = np.moveaxis(done.reshape(*moved.shape[:-2], *done.shape[-2:]), -2, axis)
    return images


def unit(coefficients: np.ndarray, ndim: int) -> np.ndarray:
    """(..., K, K) -> (..., K * K - 1): without the mean, each times its frequency, of length 1 or 0."""
    count = coefficients.shape[-1]
    # A cosine has half the power of the mean.
    scale = np.where(np.arange(count) > 0, np.sqrt(2), 1)
    grids = np.meshgrid(*[np.arange(count)] * ndim, indexing="ij")
    weights = np.sqrt(sum(grid**2.0 for grid in grids)) * functools.reduce(np.multiply.outer, [scale] * ndim)
    vectors = (coefficients * weights.astype(np.float32)).reshape(*coefficients.shape[:-ndim], -1)[..., 1:]
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths > 1e-3, vectors / np.maximum(lengths, 1e-3), 0).astype(np.float32)


def describe(images: np.ndarray, count: int) -> np.ndarray:
    """Vectors of whole images, float32 (n, D)."""
    ndim, size = images.ndim - 1, images.shape[1]
    base = bases(size, np.float64(0), np.float64(1), min(count, size))
    return unit(transform(images, [base] * ndim), ndim)


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    """One of 8: each axis mirrored or not; of 2-D images two axes, and these exchanged or not."""
    ndim = images.ndim - 1
    if ndim == 2 and turn & 4:
        images = images.swapaxes(1, 2)
    return np.flip(images, [axis + 1 for axis in range(ndim) if turn >> axis & 1])


def fit(images: np.ndarray, targets: np.ndarray, boxes: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (n, 2, 2) near those given whose vectors are most like `targets` (n, D), and their likeness (n,)."""
    count = round((targets.shape[1] + 1) ** 0.5)
    best, best_boxes = np.full(len(images), -1.0), boxes
    for step in range(steps + 1):
        here, slopes = _with_slopes(images, boxes, count)
        likeness = (here * targets).sum(-1)
        best_boxes = np.where((likeness > best)[:, None, None], boxes, best_boxes)
        best = np.maximum(likeness, best)
        if step < steps:
            square = slopes @ slopes.swapaxes(1, 2)
            # A little of the identity: where an image is empty, an edge changes nothing.
            damping = 1e-2 * np.trace(square, axis1=1, axis2=2)[:, None, None] / 4 + 1e-6
            wanted = slopes @ (targets - here)[..., None]
            moves = np.linalg.solve(square + damping * np.eye(4), wanted)[..., 0].reshape(-1, 2, 2)
            boxes = np.clip(boxes + np.clip(moves, -LONGEST_STEP, LONGEST_STEP), 0, 1)
            narrow = boxes[..., 1] - boxes[..., 0] < LEAST_SHARE
            boxes = np.where(narrow[..., None], best_boxes, boxes)
    return best_boxes, best


def _with_slopes(images: np.ndarray, boxes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors (n, D) of the boxes of `images`, and how they change with each edge (n, 4, D)."""
    # The edges as they are, and each moved inwards.
    edges = boxes[:, :, None] + _MOVE * np.array([[0, 0], [1, 0], [0, -1]])
    rows, columns = (bases(images.shape[1], edges[:, axis, :, 0], edges[:, axis, :, 1], count) for axis in (0, 1))
    left = rows @ images[:, None]
    moved = [left @ columns[:, :1].swapaxes(2, 3), left[:, :1] @ columns[:, 1:].swapaxes(2, 3)]
    vectors = unit(np.concatenate(moved, 1), 2)
    signs = np.array([1, -1, 1, -1], np.float32)[:, None]
    return vectors[:, 0], (vectors[:, 1:] - vectors[:, :1]) * signs / _MOVE
