"""Grey DICOM files: functional groups, padding, the bits of a sample, polarity. The rest is in test_dicom.py."""

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom import read_dicom
from tests.data.dicoms import lookup_table, write_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = (RAMP.astype(np.int16) - 1024).astype(np.int16)


def read(folder, pixels=RAMP, **tags):
    return read_dicom(write_dicom(folder / "image.dcm", pixels, **tags))


def item(**tags):
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def groups(**macros):
    """Functional groups with one item of each macro."""
    return [item(**{name: [item(**tags)] for name, tags in macros.items()})]


def stretched(x):
    x = np.asarray(x, float)
    return np.rint((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)


def linear(x, centre, width):
    return np.rint(np.clip(((x - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)).astype(np.uint8)


RESCALE = {"RescaleSlope": 2, "RescaleIntercept": -1024, "RescaleType": "HU"}
WINDOW = {"WindowCenter": 40, "WindowWidth": 400}
TRANSFORM, VOI = "PixelValueTransformationSequence", "FrameVOILUTSequence"
SHARED, FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


@pytest.mark.parametrize(
    "tags",
    [
        {SHARED: groups(**{TRANSFORM: RESCALE, VOI: WINDOW})},
        {FRAME: groups(**{TRANSFORM: RESCALE, VOI: WINDOW})},
        {SHARED: groups(**{TRANSFORM: RESCALE}), FRAME: groups(**{VOI: WINDOW})},
        RESCALE | {FRAME: groups(**{VOI: WINDOW})},
        WINDOW | {FRAME: groups(**{TRANSFORM: RESCALE})},
        # The frame's own come first, then the shared ones, then those outside of the groups.
        {"WindowCenter": 9, "WindowWidth": 9, "RescaleSlope": 9, "RescaleIntercept": 9}
        | {SHARED: groups(**{TRANSFORM: RESCALE, VOI: WINDOW})},
        {SHARED: groups(**{VOI: {"WindowCenter": 9, "WindowWidth": 9}, TRANSFORM: {"RescaleSlope": 9}})}
        | {FRAME: groups(**{TRANSFORM: RESCALE, VOI: WINDOW})},
        # Empty ones do not count.
        WINDOW | RESCALE | {SHARED: groups(**{VOI: {"WindowCenter": None, "WindowWidth": None}, TRANSFORM: {}})},
        WINDOW | RESCALE | {SHARED: groups(), FRAME: []},
        # An identity in the group is a rescale too.
        {"WindowCenter": 532, "WindowWidth": 200.5, "RescaleSlope": 9}
        | {SHARED: groups(**{TRANSFORM: {"RescaleSlope": 1, "RescaleIntercept": 0}})},
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_functional_groups(tmp_path, tags, syntax):
    if "WindowCenter" in tags and tags["WindowCenter"] == 532:
        expected = linear(RAMP.astype(float), 532, 200.5)
    else:
        expected = linear(RAMP * 2.0 - 1024, 40, 400)
    pixels = RAMP.astype(">u2") if syntax == ExplicitVRBigEndian else RAMP
    np.testing.assert_array_equal(read(tmp_path, pixels, NumberOfFrames=1, syntax=syntax, **tags), expected)


def test_lookup_tables_and_functions_in_functional_groups(tmp_path):
    table = np.arange(4096)[::-1]
    modality = {FRAME: groups(**{TRANSFORM: {"ModalityLUTSequence": [lookup_table(table)]}})}
    np.testing.assert_array_equal(read(tmp_path, **modality), stretched(table[RAMP]))
    voi = {SHARED: groups(**{VOI: {"VOILUTSequence": [lookup_table(table, bits=12)]}})}
    np.testing.assert_array_equal(read(tmp_path, **voi), np.rint(table[RAMP] / 4095 * 255))
    window = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"}
    expected = np.rint(255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)))
    np.testing.assert_array_equal(read(tmp_path, **{SHARED: groups(**{VOI: window})}), expected)


def test_groups_of_more_frames_than_there_are(tmp_path):
    """The file may hold any of the frames: which rescale is right is not known."""
    with pytest.raises(ProblemError, match="has one frame, but 2 items in its PerFrameFunctionalGroupsSequence"):
        read(tmp_path, **{FRAME: groups(**{TRANSFORM: RESCALE}) * 2})
    np.testing.assert_array_equal(read(tmp_path, **{FRAME: groups() * 2}), stretched(RAMP))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("pixels", "padding", "tags"),
    [
        (SIGNED, -32768, {"PixelPaddingValue": -32768}),
        (SIGNED, -2000, {"PixelPaddingValue": -2000}),
        (SIGNED, 32767, {"PixelPaddingValue": 32767}),
        (RAMP, 65535, {"PixelPaddingValue": 65535}),
        (RAMP, 63536, {"PixelPaddingValue": 63536}),
        (RAMP + np.uint16(100), 0, {"PixelPaddingValue": 0}),
        # A range, given from either end.
        (SIGNED, -1999, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (SIGNED, -1999, {"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}),
        (RAMP, 60001, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 65535}),
        # Padding is a stored value, before the rescale.
        (SIGNED, -2000, {"PixelPaddingValue": -2000, "RescaleSlope": 2, "RescaleIntercept": 500}),
        # Bits that values do not have.
        (RAMP, 63536, {"PixelPaddingValue": 63536, "bits": 12}),
        (RAMP, 32768, {"PixelPaddingValue": 32768, "bits": 12}),
    ],
)
def test_padding_is_black_and_not_in_the_range(tmp_path, pixels, padding, tags, photometric):
    pixels = pixels.copy()
    pixels[:4] = padding
    grey = read(tmp_path, pixels, PhotometricInterpretation=photometric, **tags)
    expected = stretched(pixels[4:].astype(float))
    np.testing.assert_array_equal(grey[4:], 255 - expected if photometric == "MONOCHROME1" else expected)
    assert not grey[:4].any()


def test_padding_with_the_wrong_value_representation(tmp_path):
    """-2000 as the unsigned 63536 in a signed image, as text, and as bytes."""
    pixels = SIGNED.copy()
    pixels[:4] = -2000
    path = write_dicom(tmp_path / "image.dcm", pixels)
    dataset = pydicom.dcmread(path)
    for representation, value in (("US", 63536), ("IS", -2000), ("SL", -2000), ("OW", b"\x30\xf8")):
        dataset["PixelPaddingValue"] = pydicom.DataElement("PixelPaddingValue", representation, value)
        dataset.save_as(path)
        grey = read_dicom(path)
        np.testing.assert_array_equal(grey[4:], stretched(SIGNED[4:]))
        assert not grey[:4].any()


def test_padding_with_a_window_is_black(tmp_path):
    """In MONOCHROME1 too, where the low values of padding would be white."""
    pixels = SIGNED.copy()
    pixels[:4] = -2000
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        tags = {"PhotometricInterpretation": photometric, "WindowCenter": 40, "WindowWidth": 400}
        grey = read(tmp_path, pixels, PixelPaddingValue=-2000, **tags)
        expected = linear(pixels.astype(float), 40, 400)
        expected = 255 - expected if photometric == "MONOCHROME1" else expected
        np.testing.assert_array_equal(grey[4:], expected[4:])
        assert not grey[:4].any()


def test_padding_of_floating_point_pixels(tmp_path):
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0] = -1e30
    tags = {"PixelData": None, "FloatPixelData": values.tobytes(), "FloatPixelPaddingValue": -1e30}
    grey = read(tmp_path, np.zeros((8, 8), np.uint32), **tags)
    np.testing.assert_array_equal(grey[1:], stretched(values[1:]))
    assert not grey[0].any()


def test_a_limit_without_a_value_is_not_padding(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, PixelPaddingRangeLimit=100), stretched(RAMP))


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_are_left_out(tmp_path, signed):
    """Overlays of old files lie in the bits above those of the values."""
    values = RAMP.astype(np.int32) - (2048 if signed else 0)
    overlay = (np.arange(4096).reshape(64, 64) % 16).astype(np.uint16) << 12
    pixels = (values.astype(np.uint16) & 0xFFF) | overlay
    pixels = pixels.view(np.int16) if signed else pixels
    np.testing.assert_array_equal(read(tmp_path, pixels, bits=12), stretched(values))


def test_values_in_the_high_bits(tmp_path):
    """HighBit 15 with 12 bits, as files of the eighties have them."""
    np.testing.assert_array_equal(read(tmp_path, RAMP << 4, BitsStored=12, HighBit=15), stretched(RAMP))
    values = np.clip(SIGNED, -2048, 2047)
    grey = read(tmp_path, values * np.int16(16), BitsStored=12, HighBit=15, WindowCenter=40, WindowWidth=400)
    np.testing.assert_array_equal(grey, linear(values.astype(float), 40, 400))


def test_without_high_bit_and_pixel_representation(tmp_path):
    """The first follows from BitsStored; the second makes no difference where the sign bit is nowhere set."""
    tags = {"HighBit": None, "PixelRepresentation": None}
    np.testing.assert_array_equal(read(tmp_path, **tags), stretched(RAMP))


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_nothing_is_inverted_twice(tmp_path, photometric, shape):
    expected = 255 - stretched(RAMP) if shape == "INVERSE" else stretched(RAMP)
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    np.testing.assert_array_equal(read(tmp_path, **tags), expected)


def test_one_of_slope_and_intercept(tmp_path):
    window = {"WindowCenter": 100, "WindowWidth": 200}
    np.testing.assert_array_equal(read(tmp_path, RescaleSlope=2, **window), linear(RAMP * 2.0, 100, 200))
    np.testing.assert_array_equal(read(tmp_path, RescaleIntercept=-50, **window), linear(RAMP - 50.0, 100, 200))


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_windows(tmp_path, width):
    expected = np.where(RAMP > 99.5, 255, 0) if width == 1 else linear(RAMP.astype(float), 100, 2)
    np.testing.assert_array_equal(read(tmp_path, WindowCenter=100, WindowWidth=width), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_lookup_table_whose_negative_start_is_written_as_unsigned(tmp_path, photometric):
    """-1024 as 64512, which many files have."""
    table = np.arange(4096)
    lut = lookup_table(table, first=64512, bits=12)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PhotometricInterpretation": photometric}
    expected = np.rint(table[RAMP] / 4095 * 255)
    grey = read(tmp_path, VOILUTSequence=[lut], **tags)
    np.testing.assert_array_equal(grey, 255 - expected if photometric == "MONOCHROME1" else expected)


@pytest.mark.parametrize(
    ("descriptor", "message"),
    [
        ([4096, 0, 8], "has a lookup table of 8 bits with the entry 4095"),
        ([4096, 0, 0], "has a lookup table of 0 bits"),
        ([4096, 0], "has a lookup table whose LUTDescriptor is not three numbers"),
    ],
)
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_lookup_tables_that_contradict_themselves(tmp_path, descriptor, message, sequence):
    lut = lookup_table(range(4096))
    lut.LUTDescriptor = descriptor
    with pytest.raises(ProblemError, match=message):
        read(tmp_path, **{sequence: [lut]})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_pixels(tmp_path, dtype):
    values = np.linspace(-3, 7, 64, dtype=dtype).reshape(8, 8)
    name = "FloatPixelData" if dtype == np.float32 else "DoubleFloatPixelData"
    carrier = np.zeros((8, 8), np.uint32 if dtype == np.float32 else np.uint64)
    tags = {"PixelData": None, name: values.tobytes(), "RescaleSlope": 2, "RescaleIntercept": 1}
    np.testing.assert_array_equal(read(tmp_path, carrier, **tags), stretched(values))
    window = {"WindowCenter": 1, "WindowWidth": 4, "VOILUTFunction": "LINEAR_EXACT"}
    expected = np.rint(np.clip((values * 2.0 + 1 - 1) / 4 + 0.5, 0, 1) * 255)
    np.testing.assert_array_equal(read(tmp_path, carrier, **tags, **window), expected)
