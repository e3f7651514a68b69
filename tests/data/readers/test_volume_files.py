"""Large and damaged volume files, pipes, .npy volumes, and impossible grids."""

import gzip
import io
import os
import tracemalloc
import zlib

import numpy as np
import pytest

from jaxboost.data import load
from jaxboost.data.problems import ProblemError
from jaxboost.data.readers import nifti
from jaxboost.data.readers.volumes import Volume, read_volume, resample
from jaxboost.data.sources.folder import samples
from jaxboost.errors import UserError
from tests.data.niftis import volume_bytes, with_fields, write_volume
from tests.mutations import mutations


def read_3d(path, size, **options):
    return samples.read_3d(path, samples.Reading(ndim=3, size=size, **options))


def random(shape=(5, 6, 7), dtype=np.int16, number=0):
    return np.random.default_rng(number).integers(0, 100, shape).astype(dtype)


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def peak_bytes(call):
    """The most memory that a call took."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refuse(path, message, **options):
    with pytest.raises(ProblemError, match=message):
        read_volume(path, **options)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_a_few_bytes_that_announce_gigabytes(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        content = npy_bytes(np.zeros((4, 4, 4), np.int16)).replace(b"(4, 4, 4), }         ", b"(4000, 4000, 4000), }")
        assert len(content) == 256
        message = r"^cannot be read as an \.npy file \(its shape \(4000, 4000, 4000\) of int16 takes 128000000000 bytes"
    else:
        content = volume_bytes(random((5, 5, 2)), dim=(3, 2000, 2000, 2000, 1, 1, 1, 1))
        assert len(content) == 452
        message = r"^cannot be read as a NIfTI file \(its header announces 16,000,000,352 bytes, and it has"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    assert peak_bytes(lambda: refuse(path, message)) < 2**20
    # NIfTI-2 has sizes of 64 bits.
    if suffix != ".npy":
        huge = volume_bytes(random(), version=2, dim=(3, 2**62, 2**62, 2**62, 1, 1, 1, 1))
        path.write_bytes(gzip.compress(huge) if suffix == ".nii.gz" else huge)
        refuse(path, "its header announces")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_max_voxels(tmp_path, suffix):
    path, values = tmp_path / f"a{suffix}", random()
    np.save(path, values) if suffix == ".npy" else write_volume(path, values)
    np.testing.assert_array_equal(read_volume(path, max_voxels=210).values, values)
    refuse(path, "^holds 210 voxels, and data.max_voxels is 209: .* or raise data.max_voxels", max_voxels=209)


def test_the_limit_of_the_config_reaches_the_reader(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        write_volume(tmp_path / label / f"{label}.nii.gz", random(number=ord(label)))
    options = dict(source="folder", size=6, ndim=3, root=str(tmp_path))
    assert len(load("mine", **options, max_voxels=210).splits["all"].images) == 2
    with pytest.raises(UserError, match=r"a/a.nii.gz: holds 210 voxels, and data.max_voxels is 100"):
        load("mine", **options, max_voxels=100)


def test_no_more_is_unpacked_than_announced(tmp_path):
    """Behind the voxels is a megabyte of noise, in which the stream is damaged: that place is not reached."""
    noise = np.random.default_rng(0).bytes(2**20)
    packed = bytearray(gzip.compress(volume_bytes(random()) + noise, 1))
    packed[-1000:-8] = bytes(992)
    (tmp_path / "a.nii.gz").write_bytes(packed)
    refuse(tmp_path / "a.nii.gz", "^holds more than the 210 voxels of 2 bytes that its header announces")
    # 64 MB of zeros in 64 KB.
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(volume_bytes(random()) + bytes(2**26), 1))
    found = peak_bytes(lambda: refuse(tmp_path / "b.nii.gz", "^holds more than the 210 voxels"))
    assert found < 2**21
    # So is an extension of any size.
    large = volume_bytes(random(), vox_offset=2**31)
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(large + bytes(2**22), 1))
    refuse(tmp_path / "c.nii.gz", "vox_offset is 2.14748e")


def test_the_tightest_gzip_file(tmp_path):
    """All zeros but one: near the highest ratio there is, and read."""
    values = np.zeros((128, 128, 128), np.float64)
    values[3, 4, 5] = 1
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(volume_bytes(values), 9))
    assert values.nbytes / (tmp_path / "a.nii.gz").stat().st_size > 1000
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").values, values)


def test_members_and_padding_of_gzip(tmp_path):
    values, content = random(), volume_bytes(random())
    good = {
        "members": gzip.compress(content[:400]) + gzip.compress(b"") + gzip.compress(content[400:]),
        "zeros": gzip.compress(content) + bytes(700),
        "padded": gzip.compress(content + bytes(100)),
        "uncompressed": content,
    }
    for name, packed in good.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(packed)
        np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.nii.gz").values, values)
    # A name that lacks .gz.
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_volume(tmp_path / "packed.nii").values, values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda packed: packed + b"garbage",
            r"^cannot be read .* \(Not a gzipped file .*\): something is appended after its compressed data: unpack",
        ),
        (
            lambda packed: packed[:-100],
            r"\(Compressed file ended before .*\): it is cut off or damaged: copy it again$",
        ),
        (lambda packed: packed[:-4], r"\(Compressed file ended before .*\): it is cut off or damaged: copy it again$"),
        (lambda packed: packed[:-8] + bytes(8), r"\(CRC check failed"),
        (lambda packed: packed[:-4] + bytes(4), r"\(Incorrect length of data"),
        (lambda packed: packed[:100] + bytes(20) + packed[120:], r"^cannot be read as a NIfTI file \("),
        (lambda packed: packed[:5], r"^cannot be read as a NIfTI file \("),
        (lambda packed: gzip.compress(packed), r"\(it is compressed twice\): unpack it once with gunzip$"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-9]), r"\(it ends after 411 of 420 bytes"),
        (lambda packed: gzip.compress(gzip.decompress(packed) + b"1"), "^holds more than the 210 voxels"),
    ],
)
def test_damage_of_gzip(tmp_path, damage, message):
    (tmp_path / "a.nii.gz").write_bytes(damage(gzip.compress(volume_bytes(random()))))
    refuse(tmp_path / "a.nii.gz", message)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_only_regular_files(tmp_path, suffix):
    """A pipe that nobody writes to would be waited for."""
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder")):
        refuse(tmp_path / f"{name}{suffix}", f"^is {kind}: give a regular file$")
    refuse(tmp_path / f"none{suffix}", "^is not there$")
    refuse(tmp_path / f"zero\0{suffix}", r"^cannot be read \(")


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (1, 5, 6, 7), (1, 5, 6, 7, 1), (5, 6, 7, 1, 1), (5, 1, 6, 7)])
def test_npy_axes_of_length_one(tmp_path, shape):
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(random().reshape(shape), order=order))
        volume = read_volume(tmp_path / "a.npy")
        np.testing.assert_array_equal(volume.values, random())
        assert volume.spacing == (1, 1, 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (random((5, 6, 7, 3)), r"^has 4 dimensions, \(5, 6, 7, 3\): give one file for each volume, in grey"),
        (random((3, 5, 6, 7)), r"^has 4 dimensions, \(3, 5, 6, 7\): give one file for each volume, in grey"),
        (random((9, 5, 6, 7)), r"^has 4 dimensions, \(9, 5, 6, 7\): give one file for each volume$"),
        (random((1, 5, 6, 1)), r"^is 2-D, with the shape \(5, 6\)"),
        (random((1, 5, 6)), r"^is 2-D, with the shape \(1, 5, 6\)"),
        (random((5,)), r"^is 2-D, with the shape \(5,\)"),
        (np.array(5), r"^is (empty|2-D)"),
        (np.zeros((0, 5, 6)), r"^(is empty: its shape is \(0, 5, 6\)|cannot be read)"),
        (np.zeros((5, 6, 7), complex), "^holds values of type complex128, not real numbers"),
        (np.zeros((5, 6, 7), "U3"), "^holds values of type <U3, not real numbers"),
        (np.zeros((5, 6, 7), [("a", "f4")]), "^holds values of type .*, not real numbers"),
        (np.zeros((5, 6, 7), object), r"^cannot be read as an \.npy file \("),
    ],
)
def test_npy_arrays_that_are_not_volumes(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    refuse(tmp_path / "a.npy", message)


def test_npy_files_that_are_damaged(tmp_path):
    content = npy_bytes(random())
    for name, damaged, message in (
        (
            "cut",
            content[:-1],
            r"^cannot be read as an \.npy file \(its shape \(5, 6, 7\) of int16 takes 420 bytes, and the file has 419",
        ),
        (
            "appended",
            content + content,
            r"^cannot be read as an \.npy file \(its shape .* takes 420 bytes, and the file has 968\)",
        ),
        ("empty", b"", r"^cannot be read as an \.npy file"),
        ("text", b"text", r"^cannot be read as an \.npy file"),
        ("header", content[:40], r"^cannot be read as an \.npy file"),
    ):
        (tmp_path / f"{name}.npy").write_bytes(damaged)
        refuse(tmp_path / f"{name}.npy", message)
    np.savez(tmp_path / "a.npz", random())
    (tmp_path / "a.npz").rename(tmp_path / "b.npy")
    refuse(tmp_path / "b.npy", r"^is an \.npz archive: save each of its arrays as one \.npy file")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">i2", np.longdouble])
def test_npy_types(tmp_path, dtype):
    values = random().astype(dtype)
    np.save(tmp_path / "a.npy", values)
    found = read_volume(tmp_path / "a.npy").values
    assert found.dtype.isnative
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
@pytest.mark.parametrize("nan", [0, -1000, 1e300])
def test_nan(tmp_path, suffix, nan):
    """Infinities as well; and the other values stay. 1e300 is more than float32 holds."""
    path, values = tmp_path / f"a{suffix}", random(dtype=np.float32)
    values[0] = np.nan
    values[1, 0, :2] = np.inf, -np.inf
    np.save(path, values) if suffix == ".npy" else write_volume(path, values)
    refuse(path, r"^has 44 values that are NaN or infinite, of 210: set data\.nan=0 \(or another number\)")
    expected = np.where(np.isfinite(values), values.astype(np.float64), nan)
    np.testing.assert_array_equal(read_volume(path, nan=nan).values, expected)
    image = read_3d(path, 7, window=(0, 100), nan=nan).image
    assert image[1, :, :].min() == image[1, :, :].max() == (255 if nan == 1e300 else 0)


def test_nan_applies_to_scaled_values(tmp_path):
    """After slope and intercept."""
    values = random(dtype=np.float32)
    values[0] = np.nan
    found = read_volume(write_volume(tmp_path / "a.nii", values, scl_slope=2, scl_inter=5), nan=-1).values
    assert (found[0] == -1).all()
    np.testing.assert_array_equal(found[1:], values[1:] * 2.0 + 5)


VALUES = np.random.default_rng(0).random((8, 9, 10))


@pytest.mark.parametrize(
    ("values", "edges", "options", "message"),
    [
        (
            VALUES,
            (1, 1, 1),
            dict(spacing=1e308),
            r"^shows nothing with data\.spacing=1e\+308 mm: its longest side is 10",
        ),
        (VALUES, (1, 1, 1), dict(spacing=6), "less than two voxels of the grid"),
        (VALUES, (1, 1, 1), dict(spacing=1e-308), "^shows nothing on a grid of 12.3 voxels of 1e-308 mm"),
        (VALUES, (1, 1, 0), {}, "^has no usable voxel sizes"),
        (VALUES, (1, np.nan, 1), {}, "^has no usable voxel sizes"),
        (VALUES, (1e308, 1e308, 1e308), {}, "^has no usable voxel sizes"),
        (VALUES, (1, 1, 1), dict(window=(0, np.inf)), r"data\.window=\(0, inf\) is not a range"),
        (VALUES, (1, 1, 1), dict(window=(-1e308, 1e308)), r"data\.window=.* is not a range"),
        (VALUES, (1, 1, 1), dict(window=(1, 1)), r"data\.window=\(1, 1\) is not a range"),
        (VALUES.astype("f4"), (1, 1, 1), dict(window=(1e308, 1.1e308)), "^shows nothing within"),
        (np.where(VALUES > 0.5, 1.7e308, -1.7e308), (1, 1, 1), {}, r"give data\.window$"),
        (VALUES.astype("g") * np.longdouble("1e1000"), (1, 1, 1), {}, r"give data\.window$"),
        (np.where(VALUES > 0.5, np.nan, 1), (1, 1, 1), {}, r"give data\.window$"),
        (VALUES[:1, :1, :1], (1, 1, 1), {}, "^shows nothing"),
        (np.arange(2**16 + 1).reshape(-1, 1, 1), (1, 1, 1), {}, "^has a side of 65,537 voxels"),
    ],
)
def test_impossible_grids(values, edges, options, message):
    with pytest.raises(ProblemError, match=message):
        resample(Volume(values, edges), 12, **options)


@pytest.mark.parametrize("edges", [(1e-30, 1, 1), (1, 1, 1e30), (1, 5e-324, 1), (1e30,) * 3, (1e-30,) * 3])
def test_extreme_sizes_take_no_time(edges):
    image = resample(Volume(VALUES, edges), 12)
    assert image.shape == (12, 12, 12)
    if len(set(edges)) == 1:
        np.testing.assert_array_equal(image, resample(Volume(VALUES, (1, 1, 1)), 12))


def test_a_long_side(tmp_path):
    """A Gaussian of as many voxels as the side has, at each of them, would take minutes."""
    values = np.zeros((60_000, 3, 3), np.float32)
    values[30_000:] = 1
    image = resample(Volume(values, (1, 1, 1)), 16, window=(0, 2))
    profile = image.max((1, 2))
    assert np.argmax(profile > 64) == 8
    assert profile[:6].max() == 0
    assert 127 <= profile[10:].min() <= profile[10:].max() <= 128


def test_a_thin_side_shows_its_mean_and_not_its_ends():
    """Five planes that together are one voxel of the grid: the inner ones count as well."""
    values = np.zeros((5, 40, 40), np.uint8)
    values[2, 10:30, 10:30] = 250
    image = resample(Volume(values, (1, 10, 10)), 15, spacing=30)
    # A fifth of 250 where every plane counts alike; a Gaussian gives the middle a little more.
    assert 40 <= image[7, 7, 7] <= 90
    assert image[:7].max() == image[8:].max() == 0


@pytest.mark.parametrize("size", [9, 12, 32])
@pytest.mark.parametrize(
    ("edges", "spacing"), [((1, 1, 1), 0.0), ((0.7, 2.5, 1), 0.0), ((1, 1, 1), 0.8), ((3, 1, 1), 2.2)]
)
def test_the_grid_is_that_of_scipy(size, edges, spacing):
    """A Gaussian filter, then linear interpolation, axis by axis and over the whole volume."""
    from scipy import ndimage

    pitch = spacing or max(count * edge for count, edge in zip(VALUES.shape, edges, strict=True)) / size
    levels = (VALUES - VALUES.min()) * (255 / np.ptp(VALUES))
    places, inside = [], []
    for axis, (count, edge) in enumerate(zip(VALUES.shape, edges, strict=True)):
        mm = (np.arange(size) - (size - 1) / 2) * pitch
        factor = pitch / edge
        if factor > 1:
            levels = ndimage.gaussian_filter1d(levels, (factor - 1) / 2, axis=axis, mode="nearest")
        places.append(mm / edge + (count - 1) / 2)
        inside.append(np.abs(mm) <= max(count * edge, pitch) / 2 + 1e-9)
    expected = ndimage.map_coordinates(levels, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    expected[~np.logical_and.reduce(np.meshgrid(*inside, indexing="ij"))] = 0
    np.testing.assert_allclose(resample(Volume(VALUES, edges), size, spacing=spacing), expected, atol=0.51)


def test_memory(tmp_path):
    """Beside the values, as they are read, there is no array of their size."""
    # Once before, for the imports.
    read_3d(write_volume(tmp_path / "small.nii", random()), 16)
    values = random((128, 128, 128), np.float32)
    path = write_volume(tmp_path / "a.nii", values, np.diag([-1, -1, 1, 1]))
    assert peak_bytes(lambda: read_3d(path, 16)) < values.nbytes + 12 * 2**20


def test_copies_have_the_same_digest(tmp_path):
    """Whatever the order of the axes in the file is; and another value or place changes it."""
    values = random((40, 50, 60))
    np.save(tmp_path / "a.npy", values[::-1, ::-1])
    path = write_volume(tmp_path / "a.nii.gz", values, np.diag([-1, -1, 1, 1]))
    digest = read_3d(path, 16).facts.digest
    assert digest == read_3d(tmp_path / "a.npy", 16).facts.digest
    assert digest != read_3d(write_volume(tmp_path / "b.nii", values), 16).facts.digest


SMALL = random((6, 7, 8))
PLAIN, SECOND = volume_bytes(SMALL), volume_bytes(SMALL, version=2, scl_slope=2)


@pytest.mark.parametrize(
    ("suffix", "content", "pack"),
    [
        (".nii", PLAIN, bytes),
        (".nii", with_fields(PLAIN, sform_code=0), bytes),
        (".nii", SECOND, bytes),
        (".nii.gz", gzip.compress(PLAIN, mtime=0), bytes),
        (".nii.gz", PLAIN, gzip.compress),
        (".nii.gz", SECOND, gzip.compress),
        (".npy", npy_bytes(SMALL), bytes),
        (".npy", npy_bytes(SMALL.astype(np.float16)), bytes),
    ],
)
def test_damaged_files_are_read_or_refused(tmp_path, capfd, suffix, content, pack):
    """An image or a problem, quickly, without much memory and without a line of another package."""
    path = tmp_path / f"a{suffix}"
    refused = 0

    def read():
        nonlocal refused
        try:
            image = read_3d(path, 8).image
            assert (image.shape, image.dtype) == ((8, 8, 8), np.uint8)
        except ProblemError:
            refused += 1

    for name, damaged in mutations(content, 40, header=600 if content is SECOND else 348):
        path.write_bytes(pack(damaged))
        assert peak_bytes(read) < 2**25, name
    assert refused > 10
    assert capfd.readouterr() == ("", "")


def test_the_ratio_of_deflate():
    """The bound that the reader uses: no stream unpacks to more."""
    packed = zlib.compress(bytes(2**25), 9)
    assert 1000 < 2**25 / len(packed) < nifti._RATIO
