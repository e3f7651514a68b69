"""Volumes of a user's folder: orientation, voxel sizes, resampling, and files that cannot be used."""

import importlib.resources
import importlib.util
import pathlib

import nibabel
import numpy as np
import pytest

from jaxboost.data import load
from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.volumes import Volume, read_volume, resample
from jaxboost.errors import UserError


def packaged(name):
    """A file of nibabel's own tests."""
    return pathlib.Path(str(importlib.resources.files(nibabel) / "tests" / "data" / name))


def cube(number, shape=(12, 12, 12), dtype=np.uint8):
    return np.random.default_rng(number).integers(0, 256, shape).astype(dtype)


def ball(shape, spacing, radius):
    """1 within `radius` mm of the middle."""
    axes = [(np.arange(count) - (count - 1) / 2) * edge for count, edge in zip(shape, spacing, strict=True)]
    return (sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) <= radius**2).astype(np.float32)


def write_nifti(path, values, affine=None, **header):
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_a_real_file_is_turned_to_ras():
    """33 x 41 x 25 voxels of 2 mm, stored from right to left."""
    path = packaged("anatomical.nii")
    volume = read_volume(path)
    stored = np.asanyarray(nibabel.load(path).dataobj)
    np.testing.assert_array_equal(volume.values, stored[::-1])
    assert volume.spacing == pytest.approx((2, 2, 2))
    image = resample(volume, 41)
    assert (image.dtype, image.shape) == (np.uint8, (41, 41, 41))
    # The grid has the volume's own voxels along the longest axis, and 4 and 8 more on each side of the others.
    inner = np.rint((stored[::-1] - stored.min()) * (255 / np.ptp(stored.astype(int))))
    np.testing.assert_array_equal(image[4:37, :, 8:33], inner)
    assert image[:4].max() == image[37:].max() == image[:, :, :8].max() == image[:, :, 33:].max() == 0


def test_a_real_file_with_values_that_are_not_numbers():
    with pytest.raises(ProblemError, match="has 153 values that are NaN or infinite"):
        read_volume(packaged("resampled_anat_moved.nii"))


@pytest.mark.parametrize("name", ["functional.nii", "example4d.nii.gz"])
def test_real_files_of_several_volumes(name):
    with pytest.raises(ProblemError, match=r"^has 4 dimensions, \(.*\): give one file for each volume$"):
        read_volume(packaged(name))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_orientation_is_the_same_image(tmp_path, suffix):
    values = cube(0, (5, 6, 7))
    spacing = (1.0, 2.0, 3.0)
    plain = read_volume(write_nifti(tmp_path / f"a{suffix}", values, np.diag([*spacing, 1])))
    np.testing.assert_array_equal(plain.values, values)
    assert plain.spacing == pytest.approx(spacing)
    # First and last axis swapped, the middle one mirrored.
    affine = np.array([[0, 0, 1, 0], [0, -2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], float)
    turned = read_volume(write_nifti(tmp_path / f"b{suffix}", values[:, ::-1].transpose(2, 1, 0), affine))
    np.testing.assert_array_equal(turned.values, values)
    assert turned.spacing == pytest.approx(spacing)


def test_one_volume_in_four_dimensions(tmp_path):
    values = cube(0)
    np.testing.assert_array_equal(read_volume(write_nifti(tmp_path / "a.nii", values[..., None])).values, values)


def test_slope_and_window(tmp_path):
    """Stored values are those that the header's slope and intercept make."""
    stored = np.linspace(0, 3000, 12**3).astype(np.int16).reshape(12, 12, 12)
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    # scl_slope and scl_inter.
    content[112:120] = np.array([1, -1000], image.header["scl_slope"].dtype).tobytes()
    path.write_bytes(content)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.values, stored - 1000.0)
    windowed = resample(volume, 12, window=(-160, 240))
    np.testing.assert_allclose(windowed, np.clip((stored - 1000.0 + 160) * 255 / 400, 0, 255), atol=0.51)
    np.testing.assert_allclose(resample(volume, 12), stored * (255 / 3000), atol=0.51)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64]
)
def test_every_type_fills_the_range(dtype):
    values = (cube(0) // 2).astype(dtype)
    expected = np.rint((cube(0) // 2) * (255 / 127.0))
    np.testing.assert_allclose(resample(Volume(values, (1, 1, 1)), 12), expected, atol=1)


def test_large_whole_numbers_keep_their_last_digits():
    values = cube(0).astype(np.int64) + 2**40
    np.testing.assert_array_equal(resample(Volume(values, (1, 1, 1)), 12), cube(0) - cube(0).min())


def test_eight_bits_stay_as_they_are():
    values = cube(0) // 4 + 30
    np.testing.assert_array_equal(resample(Volume(values, (1, 1, 1)), 12), values)
    np.testing.assert_array_equal(resample(Volume(values, (2.5, 2.5, 2.5)), 12, spacing=2.5), values)
    # Outside is the lowest level.
    padded = resample(Volume(values, (1, 1, 1)), 16, spacing=1.0)
    np.testing.assert_array_equal(padded[2:14, 2:14, 2:14], values)
    assert padded[:2].min() == padded[:2].max() == values.min()
    mask = cube(0) > 99
    np.testing.assert_array_equal(resample(Volume(mask, (1, 1, 1)), 12), mask * 255)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (3.0, 1.0, 0.25)])
def test_voxel_sizes_are_respected(spacing):
    """A ball of 8 mm in a cube of 24 mm is the same ball, whatever the voxels are."""
    shape = tuple(round(24 / edge) for edge in spacing)
    image = resample(Volume(ball(shape, spacing, 8), spacing), 24) / 255
    volume = 4 / 3 * np.pi * 8**3
    assert image.sum() == pytest.approx(volume, rel=0.05)
    places = np.arange(24) - 11.5
    for axis in range(3):
        profile = image.sum(tuple(other for other in range(3) if other != axis))
        assert (profile * places).sum() / profile.sum() == pytest.approx(0, abs=0.01)
        # The variance of a ball's coordinate is r^2 / 5.
        assert (profile * places**2).sum() / profile.sum() == pytest.approx(8**2 / 5, rel=0.12)
    # With voxels of 1.5 mm it has 1 / 1.5^3 as many.
    coarse = resample(Volume(ball(shape, spacing, 8), spacing), 24, spacing=1.5) / 255
    assert coarse.sum() == pytest.approx(volume / 1.5**3, rel=0.05)


def test_larger_grids_reach_to_the_border():
    """The outer half of the border's voxels is a part of the volume."""
    values = np.full((4, 4, 4), 200, np.uint8)
    values[1, 1, 1] = 10
    image = resample(Volume(values, (1, 1, 1)), 8)
    assert image[0].min() == image[:, -1].min() == 200


def test_no_aliasing():
    """Every second plane is white: at a quarter of the resolution that is grey, not a pattern."""
    values = np.zeros((64, 64, 64), np.uint8)
    values[::2] = 255
    values[0, 0, 0] = 1
    image = resample(Volume(values, (1, 1, 1)), 16)[2:-2]
    assert np.ptp(image.astype(int)) < 16
    assert image.mean() == pytest.approx(127.5, abs=4)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((8, 8), np.uint8),
            r"^is 2-D, with the shape \(8, 8\): the backbone takes volumes: give volumes, or set",
        ),
        (np.zeros((1, 8, 8), np.uint8), r"^is 2-D, with the shape \(1, 8, 8\)"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"^has 4 dimensions, \(2, 8, 8, 2\): give one file for each volume$"),
        (np.full((4, 4, 4), np.nan), "^has 64 values that are NaN or infinite"),
        (np.zeros((4, 4, 4), complex), "^holds values of type complex128, not real numbers"),
        (np.full((4, 4, 4), 7), "^shows nothing: every value is 7"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".nii"])
def test_arrays_that_are_not_volumes(tmp_path, array, message, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        if array.shape[0] == 1:
            array, message = array.reshape(8, 8, 1), message.replace("1, 8, 8", "8, 8, 1")
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    with pytest.raises(ProblemError, match=message):
        resample(read_volume(path), 8)


def test_files_that_are_broken(tmp_path):
    whole = write_nifti(tmp_path / "whole.nii.gz", cube(0)).read_bytes()
    plain = write_nifti(tmp_path / "whole.nii", cube(0)).read_bytes()
    contents = {
        "empty.nii": b"",
        "text.nii.gz": b"text",
        "cut.nii.gz": whole[: len(whole) // 2],
        "cut.nii": plain[:1000],
        "header.nii": plain[:200],
        "type.nii": plain[:70] + b"\xff\x7f" + plain[72:],
        "flipped.nii.gz": whole[:400] + bytes(byte ^ 255 for byte in whole[400:500]) + whole[500:],
        "text.npy": b"text",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ProblemError, match=r"^cannot be read as an? (NIfTI|\.npy) file \("):
            read_volume(tmp_path / name)
    # The rows of the header's sform: the third axis has no direction.
    flat = tmp_path / "flat.nii"
    flat.write_bytes(plain[:280] + np.diag([1, 1, 0, 1])[:3].astype(np.float32).tobytes() + plain[328:])
    with pytest.raises(ProblemError, match=r"^has no usable voxel sizes: the affine"):
        read_volume(flat)


def write_folder(path, values=cube, suffix=".nii.gz", count=6):
    """`count` volumes of each of two classes."""
    number = 0
    for label in ("a", "b"):
        (path / label).mkdir()
        for _ in range(count):
            file = path / label / f"{number}{suffix}"
            np.save(file, values(number)) if suffix == ".npy" else write_nifti(file, values(number))
            number += 1
    return path


@pytest.mark.parametrize("suffix", [".npy", ".nii", ".nii.gz"])
def test_a_folder_of_volumes(tmp_path, suffix):
    dataset = load("mine", source="folder", size=12, ndim=3, root=str(write_folder(tmp_path, suffix=suffix, count=2)))
    assert (dataset.info.ndim, dataset.info.channels, dataset.info.size) == (3, 1, 12)
    split = dataset.splits["all"]
    assert (split.images.dtype, split.images.shape) == (np.uint8, (4, 12, 12, 12, 1))
    for number in range(4):
        np.testing.assert_array_equal(split.images[number, ..., 0], cube(number))


def test_problems_of_a_folder_of_volumes(tmp_path, monkeypatch):
    write_folder(tmp_path, count=2)
    (tmp_path / "a" / "slice.png").write_bytes(b"")
    (tmp_path / "b" / "series.dcm").write_bytes(b"")
    np.save(tmp_path / "a" / "flat.npy", np.zeros((4, 4)))
    (tmp_path / "b" / "copy.nii.gz").write_bytes((tmp_path / "a" / "0.nii.gz").read_bytes())
    with pytest.raises(UserError) as error:
        load("mine", source="folder", size=12, ndim=3, root=str(tmp_path))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: 4 problems to fix: ")
    for problem in (
        "a/slice.png: is a 2-D image, and model.backbone takes volumes (.nii.gz, .nii, .npy)",
        "b/series.dcm: is a 2-D image, and model.backbone takes volumes",
        "a/flat.npy: is 2-D, with the shape (4, 4): the backbone takes volumes",
        "b/copy.nii.gz: has the same pixels as a/0.nii.gz: their labels differ, 'b' and 'a'",
    ):
        assert problem in message
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nibabel" else find(name))
    with pytest.raises(UserError, match=r"5 NIfTI files need the package nibabel: .*`pip install 'jaxboost\[nifti\]'`"):
        load("mine", source="folder", size=12, ndim=3, root=str(tmp_path))


def test_dark_volumes_warn(tmp_path, caplog):
    write_folder(tmp_path, lambda number: (cube(number) > 128).astype(np.uint8), count=1)
    options = dict(source="folder", size=12, ndim=3, root=str(tmp_path))
    load("mine", **options)
    assert "the greatest value of all volumes is 1 of 255" in caplog.text
    caplog.clear()
    images = load("mine", **options, window=(0, 1)).splits["all"].images
    np.testing.assert_array_equal(images[0, ..., 0], (cube(0) > 128) * 255)
    assert "greatest value" not in caplog.text
