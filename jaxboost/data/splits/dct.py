"""Feature vectors of images, or of rectangular crops of them: coefficients of their discrete cosine transform (DCT).

Each coefficient is multiplied by its frequency. This flattens the spectrum of natural images, whose amplitudes fall as
1 / f (Field, JOSA A 4, 1987): otherwise the few lowest frequencies would dominate.
"""

import functools
from collections.abc import Sequence

import numpy as np

# Images are downsampled to this edge length.
SIDE = 32
# For the fit of a crop, as fractions of the image's side: the smallest side, and the largest step of an edge.
MIN_CROP, MAX_STEP = 0.65, 0.08
_MOVE = 0.01  # shift of an edge for finite differences


def downsampled(images: np.ndarray) -> np.ndarray:
    """Grey float32 (n, R, R) or (n, R, R, R) with R <= `SIDE`; each pixel is the mean of the area that it covers."""
    # The mean of one channel is that channel; numpy takes ten times longer for it.
    grey = images[..., 0].astype(np.float32) if images.shape[-1] == 1 else images.mean(-1, dtype=np.float32)
    size = grey.shape[1]
    if size <= SIDE:
        return grey
    edges = np.linspace(0, 1, SIDE + 1)
    means = bases(size, edges[:-1], edges[1:], 1)[:, 0]
    return transform(grey, [means] * (grey.ndim - 1))


def bases(size: int, low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """The first `count` cosines on the intervals low..high, float32 (..., count, size).

    The product with the pixels is their DCT-II on the interval; a pixel is weighted by its fraction inside.

    Args:
      size: number of pixels.
      low: lower ends (...), as fractions of the side.
      high: upper ends (...), as fractions of the side.
      count: number of cosines.
    """
    left, right = np.arange(size), np.arange(1, size + 1)
    start, stop = np.asarray(low)[..., None] * size, np.asarray(high)[..., None] * size
    inner, outer = np.minimum(right, stop), np.maximum(left, start)
    inside = np.clip(inner - outer, 0, 1)
    position = ((inner + outer) / 2 - start) / (stop - start)
    cosine = np.cos(np.pi * position).astype(np.float32)
    # By Chebyshev's recurrence: computing cosines would take most of the time of a comparison.
    found = [np.ones_like(cosine), cosine]
    while len(found) < count:
        found.append(2 * cosine * found[-1] - found[-2])
    weight = (inside / (stop - start)).astype(np.float32)
    return np.stack([base * weight for base in found[:count]], -2)


def transform(images: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Multiplies each axis of (n, R, R) by a matrix (K, R) or (n, K, R), giving (n, K, K); volumes likewise."""
    for axis, base in enumerate(matrices, 1):
        moved = np.moveaxis(images, axis, -2)
        flat = moved.reshape(*moved.shape[:1], -1, *moved.shape[-2:]) if images.ndim > 3 else moved
        done = (base[:, None] if base.ndim == 3 and images.ndim > 3 else base) @ flat
        images = np.moveaxis(done.reshape(*moved.shape[:-2], *done.shape[-2:]), -2, axis)
    return images


def normalized(coefficients: np.ndarray, ndim: int) -> np.ndarray:
    """(..., K, K) -> (..., K * K - 1): without the mean, times the frequency, of length 1, or 0 for empty images."""
    count = coefficients.shape[-1]
    # A cosine has half the power of the mean.
    scale = np.where(np.arange(count) > 0, np.sqrt(2), 1)
    grids = np.meshgrid(*[np.arange(count)] * ndim, indexing="ij")
    weights = np.sqrt(sum(grid**2.0 for grid in grids)) * functools.reduce(np.multiply.outer, [scale] * ndim)
    vectors = (coefficients * weights.astype(np.float32)).reshape(*coefficients.shape[:-ndim], -1)[..., 1:]
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths > 1e-3, vectors / np.maximum(lengths, 1e-3), 0).astype(np.float32)


def features(images: np.ndarray, count: int) -> np.ndarray:
    """The feature vectors of whole images from `count` coefficients a side, float32 (n, D)."""
    ndim, size = images.ndim - 1, images.shape[1]
    base = bases(size, np.float64(0), np.float64(1), min(count, size))
    return normalized(transform(images, [base] * ndim), ndim)


def oriented(images: np.ndarray, orientation: int) -> np.ndarray:
    """Applies one of 8 orientations: bit k flips axis k; for 2-D images the third bit swaps the axes first."""
    ndim = images.ndim - 1
    if ndim == 2 and orientation & 4:
        images = images.swapaxes(1, 2)
    return np.flip(images, [axis + 1 for axis in range(ndim) if orientation >> axis & 1])


def fit(images: np.ndarray, targets: np.ndarray, boxes: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Fits crops of images to target features by Gauss-Newton steps on the edges of the crops.

    Args:
      images: (n, R, R).
      targets: feature vectors (n, D).
      boxes: initial crops (n, 2, 2), (axis, end) as fractions of the side.
      steps: number of steps.

    Returns:
      The best crops (n, 2, 2) and the cosine similarity of their features to the targets (n,).
    """
    count = round((targets.shape[1] + 1) ** 0.5)
    best, best_boxes = np.full(len(images), -1.0), boxes
    for step in range(steps + 1):
        here, slopes = _with_slopes(images, boxes, count)
        similarity = (here * targets).sum(-1)
        best_boxes = np.where((similarity > best)[:, None, None], boxes, best_boxes)
        best = np.maximum(similarity, best)
        if step < steps:
            square = slopes @ slopes.swapaxes(1, 2)
            # Damped: an edge in an empty region changes nothing.
            damping = 1e-2 * np.trace(square, axis1=1, axis2=2)[:, None, None] / 4 + 1e-6
            wanted = slopes @ (targets - here)[..., None]
            moves = np.linalg.solve(square + damping * np.eye(4), wanted)[..., 0].reshape(-1, 2, 2)
            boxes = np.clip(boxes + np.clip(moves, -MAX_STEP, MAX_STEP), 0, 1)
            narrow = boxes[..., 1] - boxes[..., 0] < MIN_CROP
            boxes = np.where(narrow[..., None], best_boxes, boxes)
    return best_boxes, best


def _with_slopes(images: np.ndarray, boxes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The feature vectors (n, D) of crops, and their derivatives with respect to the edges (n, 4, D)."""
    # The edges, and each edge moved inwards.
    edges = boxes[:, :, None] + _MOVE * np.array([[0, 0], [1, 0], [0, -1]])
    rows, columns = (bases(images.shape[1], edges[:, axis, :, 0], edges[:, axis, :, 1], count) for axis in (0, 1))
    left = rows @ images[:, None]
    moved = [left @ columns[:, :1].swapaxes(2, 3), left[:, :1] @ columns[:, 1:].swapaxes(2, 3)]
    vectors = normalized(np.concatenate(moved, 1), 2)
    signs = np.array([1, -1, 1, -1], np.float32)[:, None]
    return vectors[:, 0], (vectors[:, 1:] - vectors[:, :1]) * signs / _MOVE
