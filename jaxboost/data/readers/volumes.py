"""Reads one volume, NIfTI or .npy, and resamples it to the cubic grid of the model; see docs/volumes.md.

A NIfTI file is turned and mirrored, without interpolation, to the axes closest to right, anterior, superior (RAS): the
first axis of the array then runs from left to right, the last one from feet to head. Its voxel sizes are respected. An
.npy file (D, H, W) is not turned; its voxels are cubes.

The grid has S^3 cubic voxels and is centred on the volume. Interpolation is linear between voxel centres. Along an axis
whose voxels are finer than the grid's by a factor f, a Gaussian of standard deviation (f - 1) / 2 voxels is applied
first, against aliasing. Grid voxels outside of the volume have the volume's lowest level.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers import nifti
from jaxboost.data.readers.arrays import MAX_VOXELS, SUFFIX, check_numbers, check_shows, read_npy, slabs, to_levels

if TYPE_CHECKING:
    import scipy

NIFTI_SUFFIXES = nifti.SUFFIXES
SUFFIXES = (*NIFTI_SUFFIXES, SUFFIX)
# The most voxels per side, because the interpolation matrices grow with it. No scanner makes so many slices or rows.
_LONGEST = 2**16


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume.

    Attributes:
      values: stored values (D, H, W), with NIfTI's slope and intercept applied.
      spacing: size of a voxel along each axis in mm; 1 for an .npy file.
      remarks: kind -> a remark on the file that the user should see.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_volume(path: pathlib.Path, *, nan: float | None = None, max_voxels: int = MAX_VOXELS) -> Volume:
    """Reads a .nii, .nii.gz or .npy file.

    Args:
      path: the file.
      nan: the number that replaces values that are not finite; None: such a file is refused.
      max_voxels: the most voxels that the file may hold.

    Raises:
      ProblemError: the file cannot be read, is not a single volume of real, finite numbers, or has no voxel sizes.
    """
    if path.name.lower().endswith(SUFFIX):
        return Volume(_read_npy(path, nan, max_voxels), (1.0, 1.0, 1.0))
    values, geometry = nifti.read(path, max_voxels)
    values, sizes = check_numbers(values, nan), geometry.sizes
    if geometry.orientation is not None:
        from nibabel.orientations import apply_orientation

        values = apply_orientation(values, geometry.orientation)
        order = np.argsort(geometry.orientation[:, 0])
        sizes = tuple(sizes[axis] for axis in order)
    return Volume(values, sizes, geometry.remarks)


def resample(volume: Volume, size: int, *, window: Sequence[float] = (), spacing: float = 0.0) -> np.ndarray:
    """Resamples a volume to its grid.

    Args:
      volume: the volume.
      size: S, voxels per side of the grid.
      window: see `arrays.to_levels`.
      spacing: edge of the grid's voxels in mm; 0: the longest side of the volume fills the grid.

    Returns:
      uint8 (S, S, S).

    Raises:
      ProblemError: the volume shows nothing, or a grid of that spacing cannot show it.
    """
    values, edges = volume.values, volume.spacing
    scale, lowest = _scale(values, window)
    pitch = _pitch(values.shape, edges, size, spacing)
    factors = [min(pitch / edge, count) for edge, count in zip(edges, values.shape, strict=True)]
    # The axis that shrinks most comes first, so that the others have less work. An axis that grows comes last.
    order = sorted(range(3), key=lambda axis: (values.shape[axis] > size, factors[axis]), reverse=True)
    levels = values
    for number, axis in enumerate(order):
        weights = _weights(values.shape[axis], size, factors[axis])
        levels = _along(levels, weights, axis, _keep if number else scale.levels)
    for axis, (count, factor) in enumerate(zip(values.shape, factors, strict=True)):
        levels[(slice(None),) * axis + (~_inside(count, size, factor),)] = lowest
    image = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    if image.min() == image.max():
        raise ProblemError(
            f"shows nothing on a grid of {size}^3 voxels of {pitch:.4g} mm",
            fix="check data.spacing",
            setting=f"data.spacing={spacing:g}",
        )
    return image


def _read_npy(path: pathlib.Path, nan: float | None, max_voxels: int) -> np.ndarray:
    """Reads the array (D, H, W) of an .npy file."""

    def check(shape: tuple[int, ...]) -> None:
        nifti.check_count(math.prod(_npy_shape(shape)), max_voxels)

    values = read_npy(path, nan=nan, check=check)
    return values.reshape(_npy_shape(values.shape))


def _npy_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns (D, H, W): the shape, without axes of length 1 if there are more than three axes.

    Raises:
      ProblemError: it is not the shape of one volume.
    """
    plain = shape if len(shape) <= 3 else tuple(side for side in shape if side != 1)
    if len(plain) > 3:
        nifti.check_one(shape, bool({shape[0], shape[-1]} & {3, 4}))
    nifti.check_shape(plain)
    return plain


@dataclasses.dataclass(frozen=True)
class _Scale:
    """The conversion of values to levels: `base` is subtracted, then `ends` become 0 and 255.

    Without ends, the values (8 bits or booleans) are levels already.
    """

    ends: tuple[float, ...]
    base: int = 0

    def levels(self, values: np.ndarray) -> np.ndarray:
        if not self.ends:
            return to_levels(values)
        if self.base:
            # Exact, because it is modulo 2^64.
            values = values.astype(np.uint64) - np.uint64(self.base % 2**64)
        # float64 represents all ends of ranges and all integers up to 2^53; float32 does not.
        return to_levels(values.astype(np.float64), self.ends)


def _scale(values: np.ndarray, window: Sequence[float]) -> tuple[_Scale, float]:
    """Returns the conversion of values to levels, and the lowest level.

    Raises:
      ProblemError: all levels are equal.
    """
    extremes = np.array([values.min(), values.max()])
    check_shows(extremes)
    low, high = (extreme.item() for extreme in extremes)
    whole = values.dtype.kind in "iu" and max(-low, high) > nifti.FLOAT64_WHOLE
    if window and whole:
        raise ProblemError(
            "has whole numbers above 2^53, for which data.window is not exact: subtract a number from them"
        )
    if window:
        scale = _Scale(tuple(map(float, window)))
    elif values.dtype in (np.uint8, np.bool_):
        scale = _Scale(())
    else:
        scale = _Scale((0.0, float(high - low)), low) if whole else _Scale((float(low), float(high)))
    if scale.ends and not 0 < scale.ends[1] - scale.ends[0] < math.inf:
        raise ProblemError(
            f"has values from {low:g} to {high:g}, too far apart or too near to each other",
            fix=f"data.window={tuple(window)} is not a range" if window else "give data.window",
            setting=f"data.window={tuple(window)}",
        )
    levels = scale.levels(extremes)
    check_shows(levels, window)
    return scale, float(levels.min())


def _pitch(shape: Sequence[int], edges: Sequence[float], size: int, spacing: float) -> float:
    """Returns the edge of the grid's voxels in mm."""
    if max(shape) > _LONGEST:
        raise ProblemError(
            f"has a side of {max(shape):,} voxels, and {_LONGEST:,} are the most that can be read: crop it"
        )
    sides = [count * edge for count, edge in zip(shape, edges, strict=True)]
    if not all(edge > 0 and math.isfinite(side) for edge, side in zip(edges, sides, strict=True)):
        raise ProblemError(f"has no usable voxel sizes: {tuple(edges)} mm")
    if spacing and max(sides) < 2 * spacing:
        raise ProblemError(
            f"shows nothing with data.spacing={spacing:g} mm: its longest side is {max(sides):.4g} mm, less than two "
            "voxels of the grid",
            fix="make data.spacing smaller, or correct the voxel sizes of the file",
            setting=f"data.spacing={spacing:g}",
        )
    pitch = spacing or max(sides) / size
    if not pitch > 0:
        raise ProblemError(f"has no usable voxel sizes: {tuple(edges)} mm")
    return pitch


def _centres(count: int, size: int, factor: float) -> np.ndarray:
    """Returns the centres of the grid's voxels along an axis, in voxels of the volume: (S,)."""
    return (np.arange(size) - (size - 1) / 2) * factor + (count - 1) / 2


def _inside(count: int, size: int, factor: float) -> np.ndarray:
    """Returns which of the grid's voxels along an axis belong to the volume: bool (S,)."""
    # The volume reaches half a voxel beyond its first and last centres; 1e-6 allows for rounding.
    # A side that is shorter than a voxel of the grid belongs to the nearest voxels.
    return np.abs(_centres(count, size, factor) - (count - 1) / 2) <= max(count, factor) / 2 + 1e-6


def _weights(count: int, size: int, factor: float) -> "scipy.sparse.csr_array":
    """Returns the weights of `count` voxels along an axis for each of the S voxels of the grid: (S, count).

    They are a Gaussian, if the voxels are finer than the grid's, followed by linear interpolation. The end values
    continue beyond the ends of the volume. Rows outside of the volume are empty.
    """
    # Imported here because only volumes need it and it takes most of a second.
    from scipy import sparse

    rows = np.flatnonzero(_inside(count, size, factor))
    centres = np.clip(_centres(count, size, factor)[rows], 0, count - 1)
    before = np.clip(centres.astype(np.int64), 0, max(count - 2, 0))
    # The Gaussian ends at four standard deviations.
    deviation = max(factor - 1, 0) / 2
    radius = int(4 * deviation + 0.5)
    steps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (steps / deviation) ** 2) if radius else np.ones(1)
    kernel /= kernel.sum()
    weights, columns = [], []
    for start, weight in ((before, 1 - (centres - before)), (before + 1, centres - before)):
        weights.append(weight[:, np.newaxis] * kernel)
        columns.append(np.clip(start[:, np.newaxis] + steps, 0, count - 1))
    lines = np.broadcast_to(rows[:, np.newaxis], columns[0].shape).ravel()
    indices = (np.tile(lines, 2), np.concatenate([column.ravel() for column in columns]))
    # Several weights of one voxel are added up.
    values = np.concatenate([weight.ravel() for weight in weights])
    return sparse.coo_array((values, indices), (size, count)).tocsr()


def _along(
    values: np.ndarray, weights: "scipy.sparse.csr_array", axis: int, levels_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Applies the matrix (S, count) along an axis to the levels of `values`; returns float32.

    Works in slabs, so that no further array of the size of the values or the result is needed.
    """
    result = np.empty(
        [weights.shape[0] if each == axis else count for each, count in enumerate(values.shape)], np.float32
    )
    across = max((each for each in range(3) if each != axis), key=lambda each: values.shape[each])
    for slab in slabs(values.shape, across):
        moved = np.moveaxis(levels_of(values[slab]), axis, 0)
        product = weights @ moved.reshape(len(moved), -1)
        result[slab] = np.moveaxis(product.reshape(-1, *moved.shape[1:]), 0, axis)
    return result


def _keep(levels: np.ndarray) -> np.ndarray:
    return levels
