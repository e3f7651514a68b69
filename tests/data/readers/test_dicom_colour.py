"""Colour DICOM files as RGB."""

import io

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom import read_dicom
from tests.data.dicoms import write_dicom
from tests.data.files_of_pictures import read_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def to_ybr(rgb):
    """PS3.3 C.7.6.3.1.2, rounded."""
    weights = np.array([[0.2990, 0.5870, 0.1140], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return np.clip(np.rint(rgb @ weights.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def colour(folder, samples, photometric="RGB", *, planar=0, **tags):
    samples = np.ascontiguousarray(np.moveaxis(samples, -1, 0)) if planar else samples
    rows, columns = samples.shape[-2:] if planar else samples.shape[:2]
    shape = {"Rows": rows, "Columns": columns, "SamplesPerPixel": 3, "PhotometricInterpretation": photometric}
    return write_dicom(folder / "image.dcm", samples, **shape, PlanarConfiguration=planar, **tags)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_rgb(tmp_path, planar, syntax):
    # Big-endian files hold 8-bit samples in words of two, swapped.
    pixels = {"PixelData": swapped(RGB, planar)} if syntax == ExplicitVRBigEndian else {}
    path = colour(tmp_path, RGB, planar=planar, syntax=syntax, **pixels)
    np.testing.assert_array_equal(read_dicom(path), RGB)
    np.testing.assert_array_equal(read_image(path), RGB)


def swapped(samples, planar):
    samples = np.moveaxis(samples, -1, 0) if planar else samples
    return np.frombuffer(samples.tobytes(), "<u2").byteswap().tobytes()


@pytest.mark.parametrize(("bits", "allocated"), [(16, 16), (12, 16), (8, 16), (5, 8)])
@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_of_other_depths(tmp_path, bits, allocated, planar):
    highest = 2**bits - 1
    samples = np.random.default_rng(1).integers(0, highest, (4, 4, 3), endpoint=True).astype(f"u{allocated // 8}")
    expected = np.rint(samples * (255 / highest))
    np.testing.assert_array_equal(read_dicom(colour(tmp_path, samples, planar=planar, bits=bits)), expected)


@pytest.mark.parametrize("planar", [0, 1])
def test_ybr_full(tmp_path, planar):
    picture = read_dicom(colour(tmp_path, to_ybr(RGB), "YBR_FULL", planar=planar))
    # The three numbers are rounded twice.
    assert np.abs(picture.astype(int) - RGB).max() <= 2


def test_ybr_full_422(tmp_path):
    flat = np.repeat(RGB[:, ::2], 2, axis=1)
    ybr = to_ybr(flat)
    packed = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1)
    picture = read_dicom(colour(tmp_path, ybr, "YBR_FULL_422", PixelData=packed.tobytes()))
    assert np.abs(picture.astype(int) - flat).max() <= 2


def test_equal_channels_are_grey(tmp_path):
    grey = np.repeat(RGB[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(read_dicom(colour(tmp_path, grey)), grey[..., 0])


def palette(bits, entries, first=0, packed="<u2", seed=0):
    """The tags of a palette, and its entries (entries, 3)."""
    table = np.random.default_rng(seed).integers(0, 2**bits, (entries, 3)).astype(packed)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [entries % 2**16, first, bits]
        content = table[:, channel].tobytes()
        tags[f"{name}PaletteColorLookupTableData"] = content + bytes(len(content) % 2)
    return tags, table.astype(float)


@pytest.mark.parametrize(
    ("bits", "entries", "first", "packed", "dtype"),
    [
        (8, 256, 0, "u1", np.uint8),
        (8, 256, 0, "<u2", np.uint8),
        (16, 256, 0, "<u2", np.uint8),
        (8, 255, 0, "u1", np.uint8),
        # More entries than a narrow index can hold.
        (8, 4096, 0, "u1", np.uint16),
        (16, 65536, 0, "<u2", np.uint16),
        (16, 1000, 500, "<u2", np.uint16),
        (8, 1000, 3000, "u1", np.uint16),
        (16, 1000, -500, "<u2", np.int16),
    ],
)
def test_palette(tmp_path, bits, entries, first, packed, dtype):
    info = np.iinfo(dtype)
    pixels = np.random.default_rng(2).integers(max(info.min, -800), min(info.max, 5000), (16, 16)).astype(dtype)
    tags, table = palette(bits, entries, first, packed)
    expected = np.rint(table[np.clip(pixels.astype(int) - first, 0, entries - 1)] * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "image.dcm", pixels, **tags)), expected)


def test_segmented_palette(tmp_path):
    """PS3.3 C.7.9.2: a discrete segment of two entries, then a linear one of four up to 102."""
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [6, 10, 8]
        tags[f"Segmented{name}PaletteColorLookupTableData"] = (
            bytes([0, 2, 9, 2 + number, 1, 4, 102 + number, 0][:7]) + b"\0"
        )
    pixels = np.arange(8, 18, dtype=np.uint8).reshape(2, 5)
    picture = read_dicom(write_dicom(tmp_path / "image.dcm", pixels, **tags))
    red = [9, 9, 9, 2, 27, 52, 77, 102, 102, 102]
    np.testing.assert_array_equal(picture[..., 0].ravel(), red)
    np.testing.assert_array_equal(picture[..., 2].ravel()[[0, 3, 7]], [9, 4, 104])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RedPaletteColorLookupTableDescriptor": [256, 0, 12]}, "palette of 12 bits|lookup table of 12 bits"),
        ({"GreenPaletteColorLookupTableDescriptor": None}, "is not three numbers"),
        ({"BluePaletteColorLookupTableData": b"\1\2"}, "has a lookup table of 2 entries, 256 were announced"),
    ],
)
def test_palettes_that_cannot_be_read(tmp_path, change, message):
    tags, _ = palette(16, 256)
    tags = {name: value for name, value in (tags | change).items() if value is not None}
    with pytest.raises(ProblemError, match=message):
        read_dicom(write_dicom(tmp_path / "image.dcm", RGB[..., 0], **tags))


def test_a_palette_of_sixteen_bits_with_entries_of_eight(tmp_path):
    tags, _ = palette(8, 256)
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
    with pytest.raises(ProblemError, match="has a palette of 16 bits without an entry above 255"):
        read_dicom(write_dicom(tmp_path / "image.dcm", RGB[..., 0], **tags))


def test_without_planar_configuration(tmp_path):
    path = colour(tmp_path, RGB)
    dataset = pydicom.dcmread(path)
    del dataset.PlanarConfiguration
    dataset.save_as(path)
    with pytest.raises(ProblemError, match="has no PlanarConfiguration: for colours pixel by pixel `python"):
        read_dicom(path)


def test_colours_that_cannot_be_read(tmp_path):
    with pytest.raises(ProblemError, match="is a colour image of 16 bits in YBR_FULL: save it as RGB"):
        read_dicom(colour(tmp_path, RGB.astype(np.uint16), "YBR_FULL"))
    with pytest.raises(ProblemError, match="is a colour image of signed"):
        read_dicom(colour(tmp_path, RGB.view(np.int8)))


# The picture that most of pydicom's files SC_rgb_* hold: bars of ten colours.
BARS = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255)]
BARS += [(128, 128, 255), (0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255)]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_rle_16bit.dcm", 0),
        ("SC_rgb_rle_32bit.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", 0),
        ("SC_rgb_gdcm_KY.dcm", 0),
        ("SC_rgb_jls_lossy_line.dcm", 2),
        ("SC_rgb_jls_lossy_sample.dcm", 2),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 0),
        ("SC_rgb_dcmtk_+eb+cy+n1.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+n2.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+s2.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", 5),
        ("SC_rgb_jpeg_dcmtk.dcm", 5),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", 5),
        ("SC_ybr_full_422_uncompressed.dcm", 5),
    ],
)
def test_real_colour_files(name, tolerance):
    picture = read_dicom(get_testdata_file(name, download=False)).astype(int)
    assert np.abs(picture[5::10, 50] - BARS).max() <= tolerance


def jpeg(picture, *, markers):
    """A JPEG image in YCbCr without subsampling, with the markers that say so, or without."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=100, subsampling=0)
    content = file.getvalue()
    size = int.from_bytes(content[4:6], "big")
    assert content[2:4] == b"\xff\xe0"
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\x01"
    return content[:2] + {"JFIF": content[2 : 4 + size], "Adobe": adobe, "": b""}[markers] + content[4 + size :]


@pytest.mark.parametrize(
    ("markers", "photometric"),
    [
        ("", "YBR_FULL"),
        ("", "YBR_FULL_422"),
        ("JFIF", "YBR_FULL"),
        ("JFIF", "RGB"),
        ("Adobe", "YBR_FULL"),
        ("Adobe", "RGB"),
    ],
)
def test_the_markers_of_a_jpeg_say_its_colours(tmp_path, markers, photometric):
    """Many files say RGB and hold YCbCr, as their JPEG image says."""
    bars = np.repeat(np.array(BARS, np.uint8), 8, axis=0)[:, None].repeat(16, axis=1)
    content = encapsulate([jpeg(bars, markers=markers)])
    path = colour(tmp_path, bars, photometric, syntax=JPEGBaseline8Bit, PixelData=content)
    assert np.abs(read_dicom(path).astype(int) - bars).max() <= 3


def test_run_lengths_of_a_palette(tmp_path):
    tags, table = palette(8, 256, packed="u1")
    path = write_dicom(tmp_path / "image.dcm", RGB[..., 0], **tags)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), table[RGB[..., 0]])


def test_a_real_palette():
    """The colours that pydicom's own function gives, which is right for 8-bit pixels."""
    path = get_testdata_file("examples_palette.dcm", download=False)
    dataset = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset)
    assert expected.dtype == np.uint16
    np.testing.assert_array_equal(read_dicom(path), np.rint(expected / 257.0))
