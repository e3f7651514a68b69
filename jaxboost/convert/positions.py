"""Position embeddings for another image size."""

import numpy as np

# Of the cubic convolution kernel (Keys 1981); torch's choice, where image libraries often take -0.5.
_A = -0.75


def resize(positions: np.ndarray, side: int) -> np.ndarray:
    """Positions (1 + g*g, D) of the CLS token and a g x g grid -> (1 + side*side, D).

    The grid is resized as torch.nn.functional.interpolate(mode="bicubic", align_corners=False) does.
    """
    D = positions.shape[1]
    g = round((len(positions) - 1) ** 0.5)
    if g == side:
        return positions
    grid = positions[1:].astype(np.float64).reshape(g, g, D)
    weights = _bicubic(g, side)
    resized = np.einsum("ri,sj,ijd->rsd", weights, weights, grid, optimize=True).reshape(side * side, D)
    return np.concatenate([positions[:1], resized.astype(positions.dtype)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of the resizing of one axis; what lies beyond an edge is as on it."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centre - (first + tap))
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), _kernel(distance))
    return matrix


def _kernel(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel at distances from 0 to 2."""
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
