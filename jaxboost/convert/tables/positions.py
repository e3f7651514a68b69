"""Position embeddings for another image size."""

import numpy as np

# How the grid of positions is resized: the first as in transformers and MAE, the second as in timm and DINOv2 with
# registers, which averages if the new grid is coarser.
BICUBIC, ANTIALIASED = "bicubic", "antialiased"
RESIZINGS = (BICUBIC, ANTIALIASED)
# The parameter a of the cubic convolution kernel (Keys 1981): torch's values without and with antialiasing.
_A = {BICUBIC: -0.75, ANTIALIASED: -0.5}


def resize(positions: np.ndarray, side: int, how: str = BICUBIC, *, first: int = 1) -> np.ndarray:
    """Positions (F + g*g, D) of F tokens and a g x g grid after them -> (F + side*side, D).

    Args:
      positions: the embeddings.
      side: of the new grid, in patches.
      how: one of RESIZINGS. The grid is resized as torch.nn.functional.interpolate(mode="bicubic",
        align_corners=False) does, without antialiasing or with it.
      first: F, 1 for CLS.
    """
    D = positions.shape[1]
    g = round((len(positions) - first) ** 0.5)
    if g == side:
        return positions
    grid = positions[first:].astype(np.float64).reshape(g, g, D)
    weights = _bicubic(g, side) if how == BICUBIC else _antialiased(g, side)
    resized = np.einsum("ri,sj,ijd->rsd", weights, weights, grid, optimize=True).reshape(side * side, D)
    return np.concatenate([positions[:first], resized.astype(positions.dtype)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix that resizes one axis; edge values are repeated beyond the edges."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centre - (first + tap))
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), _kernel(distance, _A[BICUBIC]))
    return matrix


def _antialiased(old: int, new: int) -> np.ndarray:
    """As `_bicubic`, with a kernel as wide as the new grid's cells; nothing beyond the edges counts."""
    scale = max(1.0, old / new)
    centre = (np.arange(new)[:, None] + 0.5) * old / new
    distance = np.abs(np.arange(old) + 0.5 - centre) / scale
    matrix = np.where(distance < 2, _kernel(distance, _A[ANTIALIASED]), 0.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _kernel(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel at distances from 0 to 2."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
