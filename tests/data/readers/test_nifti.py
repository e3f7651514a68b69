"""NIfTI headers: units, affines that contradict each other, types, slopes, and shapes that are not a volume."""

import logging
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from jaxboost.data import load
from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.volumes import Volume, read_volume, resample
from jaxboost.data.sources.folder import samples
from tests.data.niftis import volume_bytes, write_volume


def read_3d(path, size, **options):
    return samples.read_3d(path, samples.Reading(ndim=3, size=size, **options))


def random(shape=(5, 6, 7), dtype=np.int16, number=0):
    return np.random.default_rng(number).integers(0, 100, shape).astype(dtype)


def rotation(degrees):
    """Around the axis from feet to head."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(("code", "edge"), [(0, 0.5), (1, 0.0005), (2, 0.5), (3, 500), (3 + 8, 500), (2 + 16, 0.5)])
@pytest.mark.parametrize("version", [1, 2])
def test_units_become_mm(tmp_path, code, edge, version):
    """8 and 16 are units of time."""
    affine = np.diag([edge, 2 * edge, edge, 1])
    path = write_volume(tmp_path / "a.nii.gz", random(), affine, version=version, xyzt_units=code)
    assert read_volume(path).spacing == pytest.approx((0.5, 1, 0.5), rel=1e-6)


def test_micron_are_the_same_object(tmp_path):
    """16 voxels of 25 micron on a grid of 20 micron fill 20 of its 28 voxels a side."""
    values = random((16, 16, 16))
    images = []
    for name, edge, code in (("mm", 0.025, 2), ("micron", 25, 3), ("metre", 2.5e-5, 1)):
        path = write_volume(tmp_path / f"{name}.nii", values, np.diag([edge] * 3 + [1]), xyzt_units=code)
        images.append(read_3d(path, 28, window=(0, 200), spacing=0.02).image)
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert (images[0].max(axes) > images[0].min()).sum() == 20


def test_impossible_body_sizes_warn_once_in_each_load(tmp_path, caplog):
    """Also in the second one of a process, as in a notebook."""
    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        # mm, and named metre.
        path = write_volume(tmp_path / "ab"[number % 2] / f"{number}.nii", random(number=number), xyzt_units=1)
        assert read_volume(path).spacing == pytest.approx((1000, 1000, 1000))
    for _ in range(2):
        caplog.clear()
        load("mine", source="folder", size=8, root=str(tmp_path), ndim=3)
        assert caplog.text.count("a/0.nii: its longest side has 7000 mm: check xyzt_units") == 1
        assert caplog.text.count("7000 mm") == caplog.text.count("(4 files are of this kind)") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(xyzt_units=5), r"^has the unit 5 in xyzt_units, which NIfTI does not define"),
        (
            dict(pixdim=(1, 1, 1, 2, 0, 0, 0, 0)),
            r"^has two voxel sizes: 1 x 1 x 1 in its sform, 1 x 1 x 2 in its pixdim",
        ),
        (dict(srow_x=(2, 0, 0, 0)), r"^has two voxel sizes: 2 x 1 x 1 in its sform, 1 x 1 x 1 in its pixdim"),
        (dict(srow_x=(1.02, 0, 0, 0), qform_code=0), r"^has two voxel sizes: 1.02 x 1 x 1 in its sform, 1 x 1 x 1"),
        (dict(srow_x=(-1, 0, 0, 0)), r"^has two orientations: LAS in its sform, RAS in its qform"),
        (dict(quatern_d=1), r"^has two orientations: RAS in its sform, LPS in its qform"),
        (dict(pixdim=(-1, 1, 1, 1, 0, 0, 0, 0)), r"^has two orientations: RAS in its sform, RAI in its qform"),
        (dict(srow_x=(1, 0.1, 0, 0)), r"^has axes at an angle of 84.* degrees, not at right angles"),
        (dict(srow_x=(0, 0, 0, 0)), r"^has no usable voxel sizes: the affine"),
        (dict(srow_x=(np.nan, 0, 0, 0)), r"^has no usable voxel sizes: the affine"),
        (dict(srow_x=(1, 0, 0, np.inf)), r"^has no usable voxel sizes: the affine"),
        (dict(srow_x=(1e38, 0, 0, 0)), r"^has no usable voxel sizes"),
        (dict(sform_code=0, pixdim=(1, 1, 0, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: its qform cannot be read"),
        (dict(sform_code=0, pixdim=(1, 1, -1, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: its qform cannot be read"),
        (dict(sform_code=0, pixdim=(1, 1, np.nan, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: its qform"),
        (dict(sform_code=0, pixdim=(1, 1e-30, 1, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: 1e-30 x 1 x 1 mm"),
        (dict(sform_code=0, pixdim=(1, 1e30, 1, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: 1e\+30 x 1 x 1 mm"),
        (dict(sform_code=0, pixdim=(4, 1, 1, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: its qform .*qfac"),
        (dict(sform_code=0, quatern_b=3), r"^has no usable voxel sizes: its qform cannot be read \(w2 should"),
        (dict(sform_code=0, quatern_b=np.nan), r"^has no usable voxel sizes: its qform cannot be read"),
        (dict(sform_code=0, qform_code=0, pixdim=(0, 1, -1, 1, 0, 0, 0, 0)), r"^has no usable voxel sizes: the affine"),
        (dict(sform_code=0, qform_code=0, pixdim=np.zeros(8)), r"^has no usable voxel sizes: the affine"),
        (dict(qform_code=0, pixdim=(1, np.nan, 1, 1, 0, 0, 0, 0)), r"^has voxel sizes in pixdim that are not finite"),
        (dict(sform_code=77), r"^has sform_code=77"),
        (dict(qform_code=-2), r"^has qform_code=-2"),
    ],
)
def test_contradictory_or_missing_geometries(tmp_path, fields, message):
    with pytest.raises(ProblemError, match=message):
        read_volume(write_volume(tmp_path / "a.nii", random(), **fields))


@pytest.mark.parametrize(
    ("fields", "repairs"),
    [
        (
            dict(srow_x=(2, 0, 0, 0)),
            {"image.set_qform(image.affine, 1)": (2, 1, 1), "image.set_sform(image.get_qform(), 1)": (1, 1, 1)},
        ),
        (dict(srow_x=(2, 0, 0, 0), qform_code=0), {"image.set_qform(image.affine, 1)": (2, 1, 1)}),
        (
            dict(srow_x=(-1, 0, 0, 4)),
            {"image.set_qform(image.affine, 1)": "mirrored", "image.set_sform(image.get_qform(), 1)": (1, 1, 1)},
        ),
    ],
)
def test_the_fixes_in_messages_work(tmp_path, fields, repairs):
    values = random()
    path = write_volume(tmp_path / "a.nii", values, **fields)
    with pytest.raises(ProblemError) as error:
        read_volume(path)
    for repair, expected in repairs.items():
        assert repair in str(error.value)
        image = nibabel.load(path)
        exec(repair)
        nibabel.save(image, tmp_path / "b.nii")
        volume = read_volume(tmp_path / "b.nii")
        if expected == "mirrored":
            np.testing.assert_array_equal(volume.values, values[::-1])
        else:
            np.testing.assert_array_equal(volume.values, values)
            assert volume.spacing == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Half a percent is rounding.
        (dict(pixdim=(1, 1, 1, 1.005, 0, 0, 0, 0)), np.s_[:]),
        # Sizes that were not written; a sign that Analyze used.
        (dict(qform_code=0, pixdim=np.zeros(8)), np.s_[:]),
        (dict(qform_code=0, pixdim=(0, -1, 1, 1, 0, 0, 0, 0)), np.s_[:]),
        # pixdim[0] of 0 stands for 1; -1 mirrors the last axis.
        (dict(sform_code=0, pixdim=(0, 1, 1, 1, 0, 0, 0, 0)), np.s_[:]),
        (dict(sform_code=0, pixdim=(-1, 1, 1, 1, 0, 0, 0, 0)), np.s_[:, :, ::-1]),
        # Half a turn around the axis from feet to head.
        (dict(sform_code=0, quatern_d=1), np.s_[::-1, ::-1]),
        (dict(qform_code=0, srow_x=(-1, 0, 0, 0)), np.s_[::-1]),
        # Fields that nothing is read from.
        (dict(qform_code=0, quatern_b=9), np.s_[:]),
        (dict(sform_code=0, srow_x=np.full(4, np.nan)), np.s_[:]),
        (dict(cal_max=3, descrip=b"text", toffset=np.nan), np.s_[:]),
    ],
)
def test_clear_geometries(tmp_path, fields, expected):
    values = random()
    volume = read_volume(write_volume(tmp_path / "a.nii", values, **fields))
    np.testing.assert_array_equal(volume.values, values[expected])
    assert volume.spacing == pytest.approx((1, 1, 1))


def test_an_sform_of_a_template_may_turn_a_little(tmp_path):
    """The qform leads to the scanner, the sform to a template: the closest axes are the same."""
    values = random()
    turned = write_volume(tmp_path / "a.nii", values, srow_x=rotation(20)[0], srow_y=rotation(20)[1], sform_code=4)
    np.testing.assert_array_equal(read_volume(turned).values, values)
    # On both sides of a diagonal, the two agree and the sform decides.
    qform = nibabel.Nifti1Header()
    qform.set_qform(rotation(42))
    row = {f"quatern_{axis}": qform[f"quatern_{axis}"] for axis in "bcd"}
    path = write_volume(tmp_path / "b.nii", values, srow_x=rotation(48)[0], srow_y=rotation(48)[1], **row)
    np.testing.assert_array_equal(read_volume(path).values, values.transpose(1, 0, 2)[::-1])


@pytest.mark.parametrize(("degrees", "said"), [(0, False), (25, False), (35, True)])
def test_oblique_axes(tmp_path, degrees, said):
    values = random()
    volume = read_volume(write_volume(tmp_path / "a.nii", values, rotation(degrees) @ np.diag([1, 2, 3, 1])))
    np.testing.assert_array_equal(volume.values, values)
    assert volume.spacing == pytest.approx((1, 2, 3), rel=1e-5)
    assert (f"its axes are rotated by {degrees} degrees" in str(volume.remarks)) == said


def test_without_an_affine_the_axes_are_taken_as_they_are_stored(tmp_path):
    values = random()
    for number in range(2):
        path = tmp_path / f"{number}.nii.gz"
        image = nibabel.Nifti1Image(values, None)
        image.header.set_zooms((1, 2, 3))
        nibabel.save(image, path)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.values, values)
        assert volume.spacing == pytest.approx((1, 2, 3))
        remark = "its sform_code and qform_code are 0: the stored order of its axes is used"
        assert volume.remarks == {"orientation": remark}


TYPES = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64)


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_stored_values_are_read(tmp_path, dtype, endianness):
    """With the least and the greatest value of the type."""
    values = random(dtype=dtype)
    limits = np.finfo(dtype) if dtype in (np.float32, np.float64) else np.iinfo(dtype)
    values[0, 0, :2] = limits.min, limits.max
    for version in (1, 2):
        path = write_volume(tmp_path / "a.nii.gz", values, version=version, endianness=endianness)
        found = read_volume(path).values
        assert found.dtype == np.dtype(dtype)
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("slope", "inter"), [(1, -1024), (2, 0), (-1, 0), (0.5, 7), (-0.1, 1e6), (1e-6, 1e6), (1e30, 0), (3, 2**23)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32])
def test_slope_and_intercept_are_applied_exactly(tmp_path, dtype, slope, inter):
    values = random(dtype=dtype)
    if dtype != np.float32:
        values[0, 0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    if dtype == np.int64:
        values[0, 0, :2] = -(2**53), 2**53
    path = write_volume(tmp_path / "a.nii", values, scl_slope=slope, scl_inter=inter)
    expected = values.astype(np.float64) * float(np.float32(slope)) + float(np.float32(inter))
    np.testing.assert_array_equal(read_volume(path).values.astype(np.float64), expected)


@pytest.mark.parametrize(("slope", "inter"), [(0, 0), (0, 5), (np.nan, np.nan), (np.nan, 0), (1, 0)])
def test_no_slope(tmp_path, slope, inter):
    values = random(dtype=np.uint8)
    found = read_volume(write_volume(tmp_path / "a.nii", values, scl_slope=slope, scl_inter=inter)).values
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (-np.inf, 0), (1, np.nan), (2, np.inf)])
def test_slopes_that_are_not_numbers(tmp_path, slope, inter):
    with pytest.raises(ProblemError, match=r"^has scl_slope=.* and scl_inter=.*: correct them with nibabel"):
        read_volume(write_volume(tmp_path / "a.nii", random(), scl_slope=slope, scl_inter=inter))


def test_whole_numbers_that_a_slope_would_round(tmp_path):
    values = random(dtype=np.int64) + 2**60
    with pytest.raises(ProblemError, match=r"^holds whole numbers above 2\^53 and a slope"):
        read_volume(write_volume(tmp_path / "a.nii", values, scl_slope=2, scl_inter=0))
    # Without a slope they are exact, on the grid too.
    found = resample(read_volume(write_volume(tmp_path / "b.nii", values)), 7)
    np.testing.assert_array_equal(found, resample(Volume(values - 2**60, (1, 1, 1)), 7))
    with pytest.raises(ProblemError, match=r"^has whole numbers above 2\^53, for which data.window is not exact"):
        resample(Volume(values, (1, 1, 1)), 7, window=(0, 1))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (128, r"^holds colours \(RGB24\): .*: save the labels or the grey values"),
        (2304, r"^holds colours \(RGBA32\)"),
        (1, "^holds values of type 1-bit, not real numbers"),
        (32, "^holds values of type complex64, not real numbers"),
        (1536, "^holds values of type float128"),
        (1792, "^holds values of type complex128"),
        (0, "^holds values of type unknown"),
        (3, r"^cannot be read as a NIfTI file \(datatype 3 is unknown\)"),
    ],
)
def test_types_that_are_not_real_numbers(tmp_path, code, message):
    with pytest.raises(ProblemError, match=message):
        read_volume(write_volume(tmp_path / "a.nii", random(), datatype=code))


def test_colours_that_nibabel_writes(tmp_path):
    colours = np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ProblemError, match=r"^holds colours \(RGB24\)"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("version", [1, 2])
def test_extensions_are_skipped(tmp_path, version):
    values = random()
    note = nibabel.nifti1.Nifti1Extension("comment", b"some words " * 9)
    path = write_volume(tmp_path / "a.nii.gz", values, version=version, extensions=[note, note])
    np.testing.assert_array_equal(read_volume(path).values, values)
    # Some writers leave the offset empty.
    path = write_volume(tmp_path / "b.nii", values, version=version, vox_offset=0)
    np.testing.assert_array_equal(read_volume(path).values, values)


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)])
def test_axes_of_length_one_at_the_end(tmp_path, extra):
    values = random()
    path = write_volume(tmp_path / "a.nii", values.reshape(*values.shape, *extra))
    np.testing.assert_array_equal(read_volume(path).values, values)


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        (random((5, 6, 7, 1, 3)), dict(intent_code=1007), r"^has 3 values per voxel \(shape .*, intent_code 1007\)"),
        (random((5, 6, 7, 4)), {}, r"^has 4 dimensions, \(5, 6, 7, 4\): give one file for each volume$"),
        (random((5, 6, 7, 4)), dict(dim=(3, 5, 6, 7, 4, 1, 1, 1)), r"^holds more than the 210 voxels of 2 bytes"),
        (random(), dict(dim=(2, 5, 6, 7, 1, 1, 1, 1)), r"^is 2-D, with the shape \(5, 6\)"),
        (random(), dict(dim=(3, 5, 6, 6, 1, 1, 1, 1)), "^holds more than the 180 voxels of 2 bytes"),
        (
            random(),
            dict(dim=(3, 5, 6, 8, 1, 1, 1, 1)),
            r"^cannot be read as a NIfTI file \(its header announces 832 bytes",
        ),
        (random(), dict(dim=(0, 5, 6, 7, 1, 1, 1, 1)), r"^cannot be read as a NIfTI file \(dim\[0\] is 0"),
        (random(), dict(dim=(9, 5, 6, 7, 1, 1, 1, 1)), r"^cannot be read as a NIfTI file \(dim\[0\] is 9"),
        (random(), dict(dim=(3, 5, -6, 7, 1, 1, 1, 1)), r"^is empty: its shape is \(5, -6, 7\)"),
        (random(), dict(dim=(4, 5, 6, 7, 0, 1, 1, 1)), r"^is empty: its shape is \(5, 6, 7, 0\)"),
        (random(), dict(dim=(3, 210, 1, 1, 1, 1, 1, 1)), r"^is 2-D, with the shape \(210, 1, 1\)"),
        (random(), dict(datatype=2), "^holds more than the 210 voxels of 1 bytes"),
        (random(), dict(vox_offset=100), r"^cannot be read as a NIfTI file \(vox_offset is 100, expected 352"),
        (random(), dict(vox_offset=352.5), r"^cannot be read as a NIfTI file \(vox_offset"),
        (random(), dict(vox_offset=np.nan), r"^cannot be read as a NIfTI file \(vox_offset"),
        (random(), dict(vox_offset=1e30), r"^cannot be read as a NIfTI file \(vox_offset"),
        (random(), dict(magic=b"ni1"), r"^is the header of a pair \.hdr and \.img: join them"),
        (random(), dict(magic=b""), r"^cannot be read as a NIfTI file \(the magic of its header is b'';"),
    ],
)
def test_headers_that_are_wrong(tmp_path, values, fields, message):
    for suffix in (".nii", ".nii.gz"):
        if suffix == ".nii.gz" and "announces" in message:
            message = r"^cannot be read as a NIfTI file \(it ends after 420 of 480 bytes of voxels"
        with pytest.raises(ProblemError, match=message):
            read_volume(write_volume(tmp_path / f"a{suffix}", values, **fields))


def test_a_text_transfer_of_nifti_2(tmp_path):
    path = write_volume(tmp_path / "a.nii", random(), version=2, eol_check=(10, 26, 10, 0))
    with pytest.raises(ProblemError, match="transferred as text"):
        read_volume(path)


def test_nothing_is_logged_by_nibabel(tmp_path, caplog, capfd):
    """It would repair the second file in silence, and print without its name."""
    caplog.set_level(logging.DEBUG)
    read_volume(write_volume(tmp_path / "a.nii", random(), qform_code=0, pixdim=(3, 1, 1, 1, 0, 0, 0, 0), bitpix=9))
    with pytest.raises(ProblemError):
        read_volume(write_volume(tmp_path / "b.nii", random(), sform_code=99))
    assert not caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_folder_with_values_outside_of_the_head(tmp_path):
    """data.nan reaches the reader; without it the problem names the file and the field."""
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(2):
            values = rng.random((6, 6, 6)).astype(np.float32) + 1
            values[0] = np.nan
            write_volume(tmp_path / label / f"{label}{number}.nii.gz", values)
    options = dict(source="folder", size=6, ndim=3, root=str(tmp_path))
    with pytest.raises(Exception, match=r"a/a0.nii.gz: has 36 values that are NaN or infinite, of 216: set data.nan=0"):
        load("mine", **options)
    images = load("mine", **options, nan="0").splits["all"].images
    assert (images[:, 0] == 0).all()
    assert images[:, 1:].mean() > 99


def test_the_package_is_imported_late():
    """nibabel is optional, and scipy takes most of a second."""
    code = "import sys, jaxboost.data.readers.volumes; assert not {'nibabel', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_ends_of_a_big_endian_file(tmp_path):
    """A copy in the other byte order has the same digest, so that it is found as a copy."""
    values = random()
    digests = {
        read_3d(write_volume(tmp_path / name, values, endianness=order), 7).facts.digest
        for name, order in (("a.nii", "<"), ("b.nii", ">"))
    }
    assert len(digests) == 1
    assert volume_bytes(values, endianness=">")[:4] == b"\0\0\x01\x5c"
