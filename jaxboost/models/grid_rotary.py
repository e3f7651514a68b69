"""Rotary positions of patches on a grid, as DINOv3's (Siméoni et al. 2025)."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Rotary:
    """The rotation of queries and keys, for each token and each feature of a head.

    Attributes:
      cos, sin: (N, K) in float32; 1 and 0 for tokens that are not rotated.
    """

    cos: jax.Array | np.ndarray
    sin: jax.Array | np.ndarray


def on_grid(side: int, *, first: int, head_dim: int, base: float) -> Rotary:
    """The rotation of F tokens without positions and the patches of a square grid after them, row by row.

    The centre of a patch has coordinates y and x from -1 to 1 over the image, whatever its size. Feature j < K/4 of a
    head has the angle 2 pi y / base^(4j/K), feature K/4 + j that of x, and both halves of the head the same angles.

    Args:
      side: of the grid, in patches.
      first: F.
      head_dim: K, a multiple of 4.
      base: of the frequencies' geometric series.
    """
    frequencies = base ** (-4 * np.arange(head_dim // 4) / head_dim)
    centres = (2 * np.arange(side) + 1) / side - 1
    angles = 2 * np.pi * centres[:, None] * frequencies  # (side, K/4)
    shape = (side, side, head_dim // 4)
    grid = np.concatenate([np.broadcast_to(angles[:, None], shape), np.broadcast_to(angles, shape)], axis=-1)
    rows = np.tile(grid.reshape(side**2, head_dim // 2), 2)
    rows = np.concatenate([np.zeros((first, head_dim)), rows])
    return Rotary(cos=np.cos(rows).astype(np.float32), sin=np.sin(rows).astype(np.float32))


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Queries or keys (B, Q, H, K) of the first Q tokens, rotated in float32; feature i is paired with i + K/2."""
    cos, sin = (table[: x.shape[1], None] for table in (rotary.cos, rotary.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return (x * cos + jnp.concatenate([-b, a], axis=-1) * sin).astype(x.dtype)
