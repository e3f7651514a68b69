"""DICOM files as 8-bit grey: what their tags say, real files, and files that cannot be read."""

import re

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import MPEG2MPML, UID, ImplicitVRLittleEndian, JPEG2000Lossless

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom import read_dicom
from tests.data.dicoms import lookup_table, write_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def read(folder, pixels=RAMP, **tags):
    tags = {"bits": 12} | tags if pixels.dtype == np.uint16 else tags
    grey = read_dicom(write_dicom(folder / "image.dcm", pixels, **tags))
    assert (grey.dtype, grey.shape) == (np.uint8, pixels.shape)
    return grey


def rounded(values):
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def linear(x, centre, width):
    return rounded(((x - (centre - 0.5)) / (width - 1) + 0.5) * 255)


def stretched(x):
    return rounded((x - x.min()) / (x.max() - x.min()) * 255)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, lambda x: linear(x, 2000, 1000)),
        ("LINEAR", lambda x: linear(x, 2000, 1000)),
        ("", lambda x: linear(x, 2000, 1000)),
        ("LINEAR_EXACT", lambda x: rounded(((x - 2000) / 1000 + 0.5) * 255)),
        ("SIGMOID", lambda x: rounded(255 / (1 + np.exp(-4 * (x - 2000) / 1000)))),
    ],
)
def test_window_functions(tmp_path, function, expected):
    tags = {"WindowCenter": 2000, "WindowWidth": 1000} | ({} if function is None else {"VOILUTFunction": function})
    np.testing.assert_array_equal(read(tmp_path, **tags), expected(RAMP.astype(float)))


def test_a_far_sigmoid_is_black_without_a_warning(tmp_path, recwarn):
    grey = read(tmp_path, WindowCenter=60000, WindowWidth=1, VOILUTFunction="SIGMOID")
    assert not grey.any()
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_the_first_of_several_windows(tmp_path):
    grey = read(tmp_path, WindowCenter=[2000, 100], WindowWidth=[1000, 50])
    np.testing.assert_array_equal(grey, linear(RAMP.astype(float), 2000, 1000))


@pytest.mark.parametrize("tags", [{}, {"WindowWidth": ""}, {"WindowCenter": "", "WindowWidth": 5}])
def test_without_a_window_the_range_of_the_pixels(tmp_path, tags):
    pixels = (500 + RAMP // 4).astype(np.uint16)
    grey = read(tmp_path, pixels, **tags)
    np.testing.assert_array_equal(grey, stretched(pixels.astype(float)))
    assert (grey.min(), grey.max()) == (0, 255)


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 2000, "WindowWidth": 1000}])
def test_monochrome1_is_inverted(tmp_path, tags):
    plain, inverted = (read(tmp_path, PhotometricInterpretation=f"MONOCHROME{kind}", **tags) for kind in (2, 1))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize(("slope", "intercept"), [(2, -1024), (0.5, 10), (-1, 0), (1, 0)])
def test_rescale_comes_before_the_window(tmp_path, slope, intercept):
    rescaled = RAMP * float(slope) + intercept
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    np.testing.assert_array_equal(read(tmp_path, **tags), stretched(rescaled))
    windowed = read(tmp_path, **tags, WindowCenter=1000, WindowWidth=3000)
    np.testing.assert_array_equal(windowed, linear(rescaled, 1000, 3000))


def test_empty_rescale_tags(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, RescaleSlope="", RescaleIntercept=""), stretched(RAMP.astype(float)))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.int8, np.uint32])
def test_signed_and_other_widths(tmp_path, dtype):
    bounds = np.iinfo(dtype)
    pixels = np.linspace(bounds.min, bounds.max, 4096).astype(dtype).reshape(64, 64)
    bits = {"bits": 16} if dtype == np.uint16 else {}
    np.testing.assert_array_equal(read(tmp_path, pixels, **bits), stretched(pixels.astype(float)))
    windowed = read(tmp_path, pixels, WindowCenter=20, WindowWidth=90, **bits)
    np.testing.assert_array_equal(windowed, linear(pixels.astype(float), 20, 90))


def test_signed_twelve_bits(tmp_path):
    pixels = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    np.testing.assert_array_equal(read(tmp_path, pixels, bits=12), stretched(pixels.astype(float)))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, UID("1.2.840.10008.1.2.1.99")])
def test_other_uncompressed_syntaxes(tmp_path, syntax):
    np.testing.assert_array_equal(read(tmp_path, syntax=syntax), stretched(RAMP.astype(float)))


@pytest.mark.parametrize(("bits", "packed"), [(16, None), (16, "<u2"), (12, None), (8, None), (8, "<u2"), (8, "u1")])
@pytest.mark.parametrize(("entries", "first"), [(4096, 0), (1000, 500)])
def test_voi_lut(tmp_path, bits, packed, entries, first):
    """8-bit tables of more than 256 entries too, where pydicom's own function wraps around."""
    highest = 2**bits - 1
    table = np.rint(np.linspace(0, 1, entries) ** 2 * highest).astype(int)
    item = lookup_table(table, first=first, bits=bits, packed=packed)
    expected = rounded(table[np.clip(RAMP.astype(int) - first, 0, entries - 1)] / highest * 255)
    np.testing.assert_array_equal(read(tmp_path, VOILUTSequence=[item]), expected)


def test_a_window_comes_before_a_voi_lut(tmp_path):
    item = lookup_table(range(4096), bits=12)
    grey = read(tmp_path, VOILUTSequence=[item], WindowCenter=2000, WindowWidth=1000)
    np.testing.assert_array_equal(grey, linear(RAMP.astype(float), 2000, 1000))


def test_voi_lut_after_a_rescale(tmp_path):
    item = lookup_table(range(4096), bits=12)
    grey = read(tmp_path, VOILUTSequence=[item], RescaleSlope=0.5, RescaleIntercept=0)
    np.testing.assert_array_equal(grey, rounded(np.rint(RAMP * 0.5) / 4095 * 255))


def test_modality_lut(tmp_path):
    table = np.arange(4096)[::-1] * 3
    item = lookup_table(table)
    np.testing.assert_array_equal(read(tmp_path, ModalityLUTSequence=[item]), stretched(table[RAMP].astype(float)))
    grey = read(tmp_path, ModalityLUTSequence=[item], WindowCenter=6000, WindowWidth=3000)
    np.testing.assert_array_equal(grey, linear(table[RAMP].astype(float), 6000, 3000))


def real(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not carry {name}")
    return path


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "77654033/CR1/6154"])
def test_real_files(name):
    dataset = pydicom.dcmread(real(name))
    values = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    if "WindowCenter" in dataset:
        expected = linear(values, float(dataset.WindowCenter), float(dataset.WindowWidth))
    else:
        expected = stretched(values)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 255 - expected
    grey = read_dicom(real(name))
    np.testing.assert_array_equal(grey, expected)
    assert np.ptp(grey) > 40


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"NumberOfFrames": 2, "Rows": 32}, "has 2 frames: give one file for each image"),
        ({"NumberOfFrames": -1}, "has -1 frames"),
        ({"PixelData": None}, "is a DICOM file without an image"),
        ({"Rows": 0}, "has no pixels: its size is 64 x 0"),
        ({"Rows": 1000}, "has 8192 bytes of pixel data, but its tags say 128000: correct its tags"),
        ({"Columns": 30}, "has 8192 bytes of pixel data, but its tags say 3840: correct its tags"),
        ({"Columns": 63}, "has 8192 bytes of pixel data, but its tags say 8064: correct its tags"),
        ({"PixelData": b""}, "has 0 bytes of pixel data, but its tags say 8192"),
        ({"BitsAllocated": 12}, "has BitsAllocated 12, BitsStored 12 and HighBit 11, which do not agree"),
        ({"BitsStored": 17, "HighBit": 16}, "has BitsAllocated 16, BitsStored 17 and HighBit 16"),
        ({"HighBit": 7}, "has BitsAllocated 16, BitsStored 12 and HighBit 7, which do not agree"),
        ({"PixelRepresentation": 2}, "has PixelRepresentation 2: set 0"),
        (
            {"WindowCenter": 5, "WindowWidth": 0},
            r"has a window that cannot be applied \(its width is 0, LINEAR needs 1",
        ),
        (
            {"WindowCenter": 5, "WindowWidth": 0.5},
            r"has a window that cannot be applied \(its width is 0.5, LINEAR needs",
        ),
        (
            {"WindowCenter": 5, "WindowWidth": -3, "VOILUTFunction": "LINEAR_EXACT"},
            r"has a window that cannot be applied \(its width is -3, LINEAR_EXACT needs more than 0\)",
        ),
        (
            {"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
            "has a window of the unknown VOILUTFunction",
        ),
        ({"WindowCenter": [5, 6], "WindowWidth": 5}, "has 2 window centres and 1 widths: correct or delete its tags"),
        ({"RescaleSlope": "nan", "RescaleIntercept": 0}, "has RescaleSlope nan: correct or delete it"),
        ({"RescaleSlope": "1e306", "RescaleIntercept": 0}, "has pixels that are not finite numbers"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "has RescaleSlope 0, which makes all of its pixels equal"),
        ({"RescaleSlope": [1, 2], "RescaleIntercept": 0}, "has several values for its rescale"),
        ({"SamplesPerPixel": 3}, "has 3 samples for each pixel, but is MONOCHROME2: correct the one that is wrong"),
        (
            {"PhotometricInterpretation": "RGB"},
            "has 1 samples for each pixel, but is RGB: correct the one that is wrong",
        ),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "is a colour image of a kind that is not read"),
        ({"PixelPresentation": "COLOR"}, "is grey with a palette on it"),
        (
            {"PresentationLUTShape": "INVERSE"},
            "has PhotometricInterpretation MONOCHROME2 and PresentationLUTShape INVERSE",
        ),
        ({"PresentationLUTShape": "LIN OD"}, "has PresentationLUTShape LIN OD, values for printing on film"),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            "has PhotometricInterpretation",
        ),
        ({"syntax": JPEG2000Lossless}, "is damaged: its compressed image .* has no header that can be read"),
        ({"syntax": MPEG2MPML}, "has the transfer syntax MPEG2 .*, which is not read: save it uncompressed"),
        ({"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 0, "fill": 5}, "is all padding"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_that_cannot_be_read(tmp_path, tags, message):
    tags = dict(tags)
    pixels = np.full_like(RAMP, tags.pop("fill")) if "fill" in tags else RAMP
    path = write_dicom(tmp_path / "image.dcm", pixels, **{"bits": 12} | tags)
    with pytest.raises(ProblemError, match=f"^{message}") as error:
        read_dicom(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": None}, "has no Rows: set the number"),
        ({"BitsAllocated": None}, "has no BitsAllocated: set the number"),
        ({"BitsStored": None}, "has no BitsStored: set the number"),
        ({"PhotometricInterpretation": None}, "has no PhotometricInterpretation, so black and white could be swapped"),
        ({"PhotometricInterpretation": ""}, "has no PhotometricInterpretation, so black and white could be swapped"),
        ({"PixelRepresentation": None}, "has no PixelRepresentation: for unsigned pixels"),
        ({"HighBit": 15, "BitsStored": 12}, "has HighBit 15 and BitsStored 12, but has values in the bits below"),
        ({"RescaleSlope": 0}, "has RescaleSlope 0"),
        ({"PresentationLUTShape": "INVERSE"}, "has PhotometricInterpretation MONOCHROME2"),
    ],
)
def test_the_command_of_a_message_makes_the_file_right(tmp_path, tags, message):
    """The command that the message gives is run, and the file is read as the one without the problem."""
    pixels = RAMP * 16 + 3
    wrong = {"bits": 16} | tags
    path = write_dicom(tmp_path / "image.dcm", pixels, **wrong)
    with pytest.raises(ProblemError, match=f"^{message}") as error:
        read_dicom(path)
    command = re.search(r'`python -c "(.*)"`', str(error.value))[1]
    number = {"Rows": 64, "BitsAllocated": 16, "BitsStored": 16}.get(next(iter(tags)))
    exec(command.replace("FILE", str(path)).replace("NUMBER", str(number)), {})
    if tags.get("BitsStored") == 12:
        pixels = pixels & 0xFFF
    np.testing.assert_array_equal(read_dicom(path), stretched(pixels.astype(float)))


def test_pixels_that_are_not_numbers(tmp_path):
    values = np.ones((4, 4), np.float32)
    values[1, 2] = np.nan
    path = write_dicom(
        tmp_path / "image.dcm", np.zeros((4, 4), np.uint32), PixelData=None, FloatPixelData=values.tobytes()
    )
    with pytest.raises(ProblemError, match=r"has pixels that are not finite numbers: data.nan=0 reads them as 0"):
        read_dicom(path)
    expected = np.full((4, 4), 255)
    expected[1, 2] = 0
    np.testing.assert_array_equal(read_dicom(path, nan=0.5), expected)


def test_a_short_lookup_table(tmp_path):
    item = lookup_table(range(10))
    item.LUTDescriptor = [4096, 0, 16]
    with pytest.raises(ProblemError, match="has a lookup table of 10 entries, 4096 were announced"):
        read(tmp_path, VOILUTSequence=[item])


def test_other_content(tmp_path):
    path = tmp_path / "image.dcm"
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(200)):
        path.write_bytes(content)
        with pytest.raises(
            ProblemError,
            match=r"^is not a DICOM file: (it holds a PNG file: give its name the extension .png|copy it again)$",
        ):
            read_dicom(path)
    path.write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\xff\xff")
    with pytest.raises(ProblemError, match="is a DICOM file without an image"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_meta.dcm", "is not a DICOM file"),
        ("MR_truncated.dcm", "is cut off: 8130 of 8192 bytes of its pixel data are there"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "holds a compressed image of .* but its tags say 1024 x 256"),
        ("badVR.dcm", r"has a NumberOfFrames that is not a number \(.*'1A'\): correct or delete it"),
        ("test-SR.dcm", "is a DICOM file without an image"),
        ("SC_rgb_rle_2frame.dcm", "has 2 frames"),
        ("rtdose.dcm", "has 15 frames"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_files_that_cannot_be_read(name, message):
    with pytest.raises(ProblemError, match=f"^{message}"):
        read_dicom(real(name))


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_real_compressed_files(name):
    """The same pixels as without compression."""
    np.testing.assert_array_equal(read_dicom(real(name)), read_dicom(real("MR_small.dcm")))
