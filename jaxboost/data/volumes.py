"""One volume of a user's folder, NIfTI or .npy, on the cubic grid of the model.

A NIfTI file is turned and mirrored, without interpolation, to the axes closest to right, anterior, superior (RAS): the
first axis of the array then runs from left to right, the last one from feet to head. Its voxel sizes are respected. An
.npy file (D, H, W) stays as it lies, with cubic voxels.

The grid has S^3 cubic voxels, centred on the volume. Interpolation is linear between voxel centres. Along an axis whose
voxels are finer than the grid's by a factor f, a Gaussian of standard deviation (f - 1) / 2 voxels comes first, so that
what the grid cannot show does not alias into it. What lies outside of the volume has its lowest level.
"""

import dataclasses
import gzip
import logging
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from jaxboost.data.arrays import MAX_VOXELS, SUFFIX, check_numbers, check_shows, read_npy, to_levels
from jaxboost.data.faults import FaultError, reason

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI_SUFFIXES, SUFFIX)


@dataclasses.dataclass(frozen=True)
class Volume:
    """Stored values (D, H, W), NIfTI's slope and intercept applied, and the size of a voxel along each axis in mm.

    The voxels of an .npy file have the size 1.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]


def read_volume(path: pathlib.Path, *, nan: float | None = None, max_voxels: int = MAX_VOXELS) -> Volume:
    """The volume of a .nii, .nii.gz or .npy file.

    Args:
        nan: what values that are not finite are read as; None: such a file is refused.
        max_voxels: that the file may hold.

    Raises:
        FaultError: the file cannot be read, is not a single volume of real, finite numbers, or has no voxel sizes.
    """
    if path.name.lower().endswith(SUFFIX):
        values = read_npy(path)
        _check_shape(values.shape)
        return Volume(values, (1.0, 1.0, 1.0))
    return _read_nifti(path)


def resample(volume: Volume, size: int, *, window: Sequence[float] = (), spacing: float = 0.0) -> np.ndarray:
    """The volume on its grid, uint8 (S, S, S).

    Args:
        size: S.
        window: see `arrays.to_levels`.
        spacing: edge of the grid's voxels in mm; 0: the longest side of the volume fills the grid.

    Raises:
        FaultError: the volume shows nothing.
    """
    check_shows(volume.values)
    levels = to_levels(volume.values, window)
    check_shows(levels, window)
    lowest = levels.min()
    # Only here: of all sources of data only volumes need it, and it takes most of a second to import.
    from scipy import ndimage

    sides = [count * edge for count, edge in zip(levels.shape, volume.spacing, strict=True)]
    pitch = spacing or max(sides) / size
    inside = []
    # The axis that loses most of its voxels first: the others have less work then.
    for axis in sorted(range(3), key=lambda axis: pitch / volume.spacing[axis], reverse=True):
        factor, count = pitch / volume.spacing[axis], levels.shape[axis]
        # Where the grid's voxel centres lie, in voxels of the volume.
        places = (np.arange(size) - (size - 1) / 2) * factor + (count - 1) / 2
        # Half a voxel beyond the first and last centres still belongs to the volume; the rest is rounding.
        # A side of less than a voxel of the grid is in the voxels nearest to it.
        inside.append((axis, np.abs(places - (count - 1) / 2) <= max(count, factor) / 2 + 1e-6))
        if factor > 1:
            levels = ndimage.gaussian_filter1d(levels, (factor - 1) / 2, axis=axis, mode="nearest")
        levels = _interpolate(levels, places, axis)
    for axis, kept in inside:
        levels[(slice(None),) * axis + (~kept,)] = lowest
    image = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    check_shows(image)
    return image


def _interpolate(levels: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """`levels` at `places` along an axis, linearly; beyond the ends they are those of the ends."""
    places = np.clip(places, 0, levels.shape[axis] - 1)
    before = np.minimum(places.astype(np.int64), levels.shape[axis] - 2)
    weight = (places - before).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
    first, second = np.take(levels, before, axis), np.take(levels, before + 1, axis)
    return first + weight * (second - first)


def _read_nifti(path: pathlib.Path) -> Volume:
    # Only here: the package nibabel is optional.
    import nibabel
    from nibabel.affines import voxel_sizes
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, ImageDataError
    from nibabel.wrapstruct import WrapStructError

    # It prints what is wrong with a header, without the file's name, before it raises.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    damage = (ImageFileError, HeaderDataError, ImageDataError, WrapStructError, OSError, EOFError, zlib.error)
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise FaultError(f"is not a NIfTI image of voxels but a {type(image).__name__}")
        _check_shape(image.shape)
        sizes = voxel_sizes(image.affine)
        if not (np.isfinite(image.affine).all() and (sizes > 0).all()):
            raise FaultError("has no usable voxel sizes: the affine of its header is not finite or is singular")
        _check_sum(path)
        image = nibabel.as_closest_canonical(image)
        values = check_numbers(np.asanyarray(image.dataobj))
        return Volume(values.reshape(values.shape[:3]), tuple(voxel_sizes(image.affine).tolist()))
    # The last ones come from a header that makes no sense.
    except (*damage, ValueError, TypeError, KeyError, OverflowError, MemoryError, np.linalg.LinAlgError) as error:
        raise FaultError(f"cannot be read as a NIfTI file ({reason(error)})") from error


def _check_sum(path: pathlib.Path) -> None:
    """Reads a compressed file to its end, where its checksum is, which nibabel does not."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(2**20):
                pass


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > 3 and any(count != 1 for count in shape[3:]):
        raise FaultError(f"has {len(shape)} dimensions, {shape}: give one file for each volume")
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise FaultError(f"is 2-D, with the shape {shape}: the backbone takes volumes")
    if min(shape[:3]) < 1:
        raise FaultError(f"is empty: its shape is {shape}")
