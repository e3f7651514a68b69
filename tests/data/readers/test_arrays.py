"""Plain arrays: .npy files of any kind, their shapes as pictures, and values as levels."""

import fractions
import struct

import numpy as np
import pytest

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.arrays import check_numbers, read_npy, to_bytes, to_levels
from tests.data.files_of_pictures import read_image

H, W = 6, 5


def drawn(kind, shape=(H, W)):
    return np.random.default_rng(4).permutation(np.prod(shape)).reshape(shape).astype(kind)


def saved(folder, array):
    np.save(path := folder / "a.npy", array)
    return path


def header(text, version=1):
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def refused(path, match, **options):
    with pytest.raises(ProblemError, match=match):
        read_image(path, **options)


def exact_levels(values, window=()):
    """In rational numbers: what `to_levels` is to be near to."""
    number = int if values.dtype.kind in "iu" else float
    low, high = map(fractions.Fraction, window or (number(values.min()), number(values.max())))
    levels = [(fractions.Fraction(number(value)) - low) * 255 / (high - low) for value in values.ravel()]
    return np.array([float(min(max(level, 0), 255)) for level in levels]).reshape(values.shape)


@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", ">u2", ">i4", "u4", "i8", ">u8", "f2", ">f4", "f8", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types(tmp_path, kind, order):
    stored = np.asarray(drawn(kind), order=order)
    path = saved(tmp_path, stored)
    found = read_npy(path)
    np.testing.assert_array_equal(found, stored)
    assert found.dtype == stored.dtype.newbyteorder("=")
    assert found.dtype.isnative
    expected = stored if kind == "u1" else np.rint(exact_levels(drawn("i8")))
    np.testing.assert_array_equal(read_image(path), expected)


def test_false_and_true(tmp_path):
    np.testing.assert_array_equal(read_image(saved(tmp_path, drawn("i8") > 9), (5, 6)), (drawn("i8") > 9) * 255)
    refused(saved(tmp_path, np.ones((H, W), bool)), "^shows nothing: every value is 1")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_versions_of_the_format(tmp_path, version):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, drawn("u1"), version=(version, 0))
    np.testing.assert_array_equal(read_image(path), drawn("u1"))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *((shape, (H, W)) for shape in [(H, W), (1, H, W), (H, W, 1), (1, H, W, 1), (1, 1, H, W), (H, 1, W)]),
        *((shape, (H, W, 3)) for shape in [(H, W, 3), (1, H, W, 3), (H, W, 3, 1), (H, W, 1, 3)]),
        ((3, W), (3, W)),
    ],
)
def test_axes_of_length_1(tmp_path, shape, expected):
    stored = drawn("u1", shape)
    np.testing.assert_array_equal(read_image(saved(tmp_path, stored)), stored.reshape(expected))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        (
            (3, H, W),
            r"^has the shape \(3, 6, 5\), not \(H, W\) or \(H, W, 3\): if its first axis is red, green and blue",
        ),
        ((1, 3, H, W), "if its first axis is red, green and blue, save numpy.moveaxis"),
        ((H, W, 4), r"if its last channel is transparency, save array\[..., :3\]"),
        ((H, W, 2), "give one file for each image"),
        ((2, H, W, 3), "give one file for each image"),
        ((1, W, 3), "may be grey or in colour: save it as"),
        ((H, 3, 1), "may be grey or in colour: save it as"),
        ((30,), r"^has the shape \(30,\), not \(H, W\)"),
        ((1, 30, 1), r"^has the shape \(1, 30, 1\), not \(H, W\)"),
        ((), r"^has the shape \(\), not \(H, W\)"),
        ((0, W), r"^is empty: its shape is \(0, 5\)"),
        ((H, W, 0), "^is empty"),
    ],
)
def test_shapes_that_are_not_a_picture(tmp_path, shape, match):
    refused(saved(tmp_path, np.zeros(shape, np.uint8)), match)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array([[{}]]), "^cannot be read as an .npy file .it holds Python objects.: save an array of numbers"),
        (np.zeros((H, W), "f4,i2"), "^holds values of type"),
        (np.zeros((H, W), complex), "^holds values of type complex128, not real numbers"),
        (np.full((H, W), "text"), "^holds values of type <U4"),
        (np.zeros((H, W), "m8[s]"), "^holds values of type timedelta64"),
    ],
)
def test_types_that_are_not_numbers(tmp_path, array, match):
    refused(saved(tmp_path, array), match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (216000, 216000), }\n"), "takes 373248000000 bytes"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -3), }\n"), r"has the shape \(-2, -3\)"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }\n") + bytes(47), "the file has 47"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }\n") + bytes(49), "the file has 49"),
        (header("{'descr': '<V0', 'fortran_order': False, 'shape': (2, 3), }\n"), "holds values of type"),
        (header("{'descr': '<f8', 'shape': (2, 3), }\n"), r"cannot be read as an .npy file \("),
        (header("[" * 9000), r"cannot be read as an .npy file \("),
        (header("1" * 9000), r"cannot be read as an .npy file \("),
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff", "its header has 4294967295 bytes"),
        (b"\x93NUMPY\x07\0\xff\xff", r"cannot be read as an .npy file \("),
        (b"PK\x03\x04" + bytes(99), "is an .npz archive: save each of its arrays as one .npy file"),
        (b"", r"cannot be read as an .npy file \("),
    ],
)
def test_headers_that_do_not_match_the_file(tmp_path, content, match):
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", match)


def test_pixels_are_counted_before_they_are_read(tmp_path, monkeypatch):
    path = saved(tmp_path, drawn("u1", (H, W, 3)))
    assert read_image(path, max_pixels=30).shape == (H, W, 3)
    monkeypatch.setattr(np, "load", None)
    refused(path, "has 5 x 6 = 30 pixels, more than data.max_pixels=29: make it smaller", max_pixels=29)


def test_values_that_are_not_finite(tmp_path):
    stored = np.array([[0, np.nan, 2], [np.inf, -np.inf, 10]])
    for kind in ("f2", ">f4", "f8"):
        path = saved(tmp_path, stored.astype(kind))
        refused(path, r"^has 3 values that are NaN or infinite, of 6: set data.nan=0 \(or another number\)")
        np.testing.assert_array_equal(read_npy(path, nan=5.0), [[0, 5, 2], [5, 5, 10]])
        np.testing.assert_array_equal(read_image(path, nan=0.0), [[0, 0, 51], [0, 0, 255]])
    # More than 16 bits hold.
    np.testing.assert_array_equal(check_numbers(stored.astype("f2"), 1e6), [[0, 1e6, 2], [1e6, 1e6, 10]])
    refused(saved(tmp_path, np.full((H, W), np.nan)), "^shows nothing: every value is 7", nan=7.0)


@pytest.mark.parametrize(
    ("values", "window"),
    [
        (np.array([2**63 - 1, -(2**63), 0, 5, 2**62]), ()),
        (2**60 + np.arange(7), ()),
        (np.uint64(2**64 - 8) + np.arange(8, dtype=np.uint64), ()),
        (2**60 + np.arange(9), (2**60 + 2, 2**60 + 6)),
        (np.arange(-5, 9), (-3.5, 4.25)),
        (np.arange(9, dtype=np.uint64), (-1e30, 1e30)),
        (np.arange(9, dtype=np.uint64), (100, 200)),
        (np.array([-1.5e308, 0, 1.5e308]), ()),
        (np.float32([-3e38, 0, 3e38]), ()),
        (np.float32([0, 1e-45, 3e-45]), ()),
        (np.float32([0, 0.5, 1]), (-1e300, 1e300)),
        (np.float32([0, 1e-40, 0.5, 1]), (0, 1e-60)),
        (np.array([0, 5e-324, 1e-323]), ()),
        (2**31 - 1 - np.arange(5, dtype=np.int32), ()),
        (np.arange(256, dtype=np.uint8), (10, 20)),
        (np.arange(-128, 128).astype(np.int8), ()),
        (np.arange(-300, 300, 7).astype(np.int16), (-100.5, 55)),
    ],
)
def test_levels_of_any_numbers(values, window):
    expected = exact_levels(values, window)
    with np.errstate(all="raise"):
        np.testing.assert_allclose(to_levels(values, window), expected, atol=1e-4)
    np.testing.assert_allclose(to_bytes(values, window), expected, atol=0.5001)
    np.testing.assert_allclose(to_bytes(values, window, inverted=True), 255 - expected, atol=0.5001)


@pytest.mark.parametrize("kind", ["i2", ">u2", "i4", "f4"])
def test_bytes_are_rounded_levels(kind, monkeypatch):
    monkeypatch.setattr("jaxboost.data.readers.arrays._CHUNK_VALUES", 50)
    values = drawn(kind, (40, 30, 3))[::-1, ::2]
    for window in ((), (100, 3000.5)):
        np.testing.assert_array_equal(to_bytes(values, window), np.rint(to_levels(values, window)))
