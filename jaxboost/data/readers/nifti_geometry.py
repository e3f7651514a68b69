"""The geometry of a NIfTI file: the directions of its axes and the voxel sizes in mm.

The header has it up to three times: in `pixdim` (sizes only), in the qform (a rotation, with the sizes of `pixdim`) and
in the sform (a matrix). The sform is used if its code is above 0, otherwise the qform. A file whose header contradicts
itself is refused, because only the user can know which part is right. Fields and rules are those of nifti1.h
(https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h).
"""

import dataclasses
import typing
from collections.abc import Sequence

import numpy as np

from jaxboost.data.problems import ProblemError, reason

if typing.TYPE_CHECKING:
    import nibabel

_UNIT_BITS = 7  # the bits of xyzt_units for the unit of space
# Code -> mm. Files without a unit are in mm by common practice.
_UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
# Codes of sform and qform in nifti1.h.
_CODES = range(6)
# The largest relative difference of two voxel sizes of one axis, and the largest cosine between two axes. Headers have
# four digits or more; 1 % is 3 mm over the length of a head and a torso.
_TOLERANCE = 0.01
# Two affines agree if they differ by at most this angle, even if their closest axes differ, as near a diagonal.
_SAME_DEGREES = 10
_OBLIQUE_DEGREES = 30
# Limits in mm. No voxel is smaller than 1 nm or larger than 10 m. No body is longer than 3 m, no cell under 10 micron.
_VOXELS = (1e-6, 1e4)
_SIDES = (0.01, 3000)
_KEEP_SFORM = "image.set_qform(image.affine, 1)"
_KEEP_QFORM = "image.set_sform(image.get_qform(), 1)"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The geometry of stored voxels.

    Attributes:
      orientation: (3, 2) as in nibabel.orientations: for each stored axis the closest axis of the body (0: right,
        1: anterior, 2: superior) and its direction, 1 or -1; None if it is unknown.
      sizes: voxel sizes along the stored axes in mm.
      remarks: kind -> a remark that the user should see.
    """

    orientation: np.ndarray | None
    sizes: tuple[float, float, float]
    remarks: dict[str, str]


def read_geometry(header: "nibabel.Nifti1Header", shape: Sequence[int]) -> Geometry:
    """Returns the geometry of a volume of `shape` voxels from a header of NIfTI-1 or NIfTI-2.

    Raises:
      ProblemError: the header has no usable geometry, or its parts contradict each other.
    """
    with np.errstate(all="ignore"):
        return _geometry(header, shape)


def _geometry(header: "nibabel.Nifti1Header", shape: Sequence[int]) -> Geometry:
    unit = int(header["xyzt_units"]) & _UNIT_BITS
    if unit not in _UNITS:
        raise ProblemError(
            f"has the unit {unit} in xyzt_units, which NIfTI does not define: image.header.set_xyzt_units('mm') sets it"
        )
    sform, qform = _affines(header)
    affine = qform if sform is None else sform
    sizes = _pixdim(header) if affine is None else _sizes(affine)
    mm = [_rounded(_rounded(size) * _UNITS[unit]) for size in sizes]
    _check_sizes(np.array(mm))
    remarks = {}
    longest = max(count * size for count, size in zip(shape, mm, strict=True))
    if not _SIDES[0] <= longest <= _SIDES[1]:
        remarks["size"] = f"its longest side has {longest:g} mm: check xyzt_units and the voxel sizes of its header"
    if affine is None:
        remarks["orientation"] = "its sform_code and qform_code are 0: the stored order of its axes is used"
        return Geometry(None, tuple(mm), remarks)
    _check_angles(affine / sizes)
    if sform is not None:
        _check_agreement(header, sform, qform)
    orientation = _orientation(affine)
    if (tilt := _tilt(affine / sizes, orientation)) > _OBLIQUE_DEGREES:
        remarks["oblique"] = (
            f"its axes are rotated by {tilt:.0f} degrees from the closest axes of the body, which are used instead"
        )
    return Geometry(orientation, tuple(mm), remarks)


def _affines(header: "nibabel.Nifti1Header") -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns the matrices (3, 3) of the sform and of the qform; None if its code is 0."""
    from nibabel.spatialimages import HeaderDataError

    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    for name, code in codes.items():
        if code not in _CODES:
            raise ProblemError(f"has {name}_code={code}, and NIfTI has codes from 0 to 5: image.set_{name}(affine, 1)")
    sform = None
    if codes["sform"]:
        whole = header.get_sform().astype(np.float64)
        # If its origin is not finite, the rest may be damaged too.
        sform = whole[:3, :3] if np.isfinite(whole).all() else np.full((3, 3), np.nan)
    if not codes["qform"]:
        return sform, None
    header = header.copy()
    # In nifti1.h, 0 means 1.
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1
    try:
        whole = header.get_qform().astype(np.float64)
        qform = whole[:3, :3]
        usable = np.isfinite(whole).all() and (_sizes(qform) > 0).all()
        why = "" if usable else "its quaternion or pixdim is 0, NaN or infinite"
    except (HeaderDataError, ValueError) as error:
        why = reason(error)
    if why:
        fix = f"if its sform is right, {_KEEP_SFORM} and save" if codes["sform"] else "give it an affine and save"
        raise ProblemError(f"has no usable voxel sizes: its qform cannot be read ({why}): {fix} (nibabel)")
    return sform, qform


def _matrix(columns: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = columns
    return affine


def _orientation(affine: np.ndarray) -> np.ndarray:
    from nibabel.orientations import io_orientation

    orientation = io_orientation(_matrix(affine))
    if not np.isfinite(orientation).all():
        raise ProblemError(
            "has no usable voxel sizes: the affine of its header is singular: set another affine with nibabel"
        )
    return orientation


def _pixdim(header: "nibabel.Nifti1Header") -> np.ndarray:
    return np.array(header["pixdim"][1:4], np.float64)


def _sizes(columns: np.ndarray) -> np.ndarray:
    return np.sqrt((columns**2).sum(axis=0))


def _rounded(size: float) -> float:
    """Rounds to the seven digits of a header's float32, so that a size in mm equals the same size in micron."""
    return float(f"{size:.7g}")


def _check_sizes(sizes: np.ndarray) -> None:
    """Raises ProblemError if one of three voxel sizes in mm is not possible."""
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ProblemError(
            f"has no usable voxel sizes: the affine of its header is not finite or is singular ({_mm(sizes)} mm): set "
            "another one with nibabel and save: image.set_sform(affine, 1); image.set_qform(affine, 1)"
        )
    if sizes.min() < _VOXELS[0] or sizes.max() > _VOXELS[1]:
        raise ProblemError(
            f"has no usable voxel sizes: {_mm(sizes)} mm: correct its unit or its affine with nibabel and save: "
            "image.header.set_xyzt_units('mm'), image.set_sform(affine, 1)"
        )


def _check_angles(directions: np.ndarray) -> None:
    """Raises ProblemError if columns of length 1 are not at right angles."""
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    if not cosines.max() <= _TOLERANCE:
        degrees = np.rad2deg(np.arccos(min(cosines.max(), 1)))
        raise ProblemError(
            f"has axes at an angle of {degrees:.3g} degrees, not at right angles (sheared affine): resample it first, "
            "such as with nibabel.processing.resample_to_output(image); for a tilted CT take dcm2niix's file '_Tilt'"
        )


def _check_agreement(header: "nibabel.Nifti1Header", sform: np.ndarray, qform: np.ndarray | None) -> None:
    """Raises ProblemError if the sform contradicts pixdim or the qform."""
    from nibabel.orientations import aff2axcodes

    sizes, pixdim = _sizes(sform), np.abs(_pixdim(header))
    if not np.isfinite(pixdim).all():
        raise ProblemError(
            f"has voxel sizes in pixdim that are not finite, {_mm(pixdim)}: {_KEEP_SFORM} and save (nibabel)"
        )
    # 0 means that the size was not written.
    if (np.abs(sizes - pixdim) > _TOLERANCE * np.maximum(sizes, pixdim))[pixdim > 0].any():
        other = _KEEP_QFORM if qform is not None else "image.set_sform(affine, 1) with an affine of those sizes"
        raise ProblemError(
            f"has two voxel sizes: {_mm(sizes)} in its sform, {_mm(pixdim)} in its pixdim: correct the wrong one with "
            f"nibabel and save: {_KEEP_SFORM} if the sform is right, {other} if pixdim is right"
        )
    if qform is None:
        return
    first, second = (aff2axcodes(_matrix(columns)) for columns in (sform, qform))
    cosines = ((sform / sizes) * (qform / _sizes(qform))).sum(axis=0)
    if first != second and np.rad2deg(np.arccos(np.clip(cosines.min(), -1, 1))) > _SAME_DEGREES:
        raise ProblemError(
            f"has two orientations: {_letters(first)} in its sform, {_letters(second)} in its qform: correct the wrong "
            f"one with nibabel and save: {_KEEP_SFORM} if the sform is right, {_KEEP_QFORM} if the qform is right"
        )


def _tilt(directions: np.ndarray, orientation: np.ndarray) -> float:
    """Returns the greatest angle in degrees between an axis and its closest axis of the body."""
    cosines = directions[orientation[:, 0].astype(int), np.arange(3)] * orientation[:, 1]
    return float(np.rad2deg(np.arccos(np.clip(cosines.min(), -1, 1))))


def _letters(codes: Sequence[str | None]) -> str:
    return "".join(code or "?" for code in codes)


def _mm(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
