"""Compressed pixel data of DICOM files: every codec returns the values that were written, or the file is refused."""

import logging
import struct
import sys

import numpy as np
import pytest

pytest.importorskip("pydicom")

import imagecodecs
import pydicom
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom import read_dicom
from tests.data.dicoms import write_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = (RAMP.astype(np.int16) - 2048).astype(np.int16)


def stretched(x):
    x = np.asarray(x, float)
    return np.rint((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)


def rle(pixels):
    encoder = pydicom.pixels.get_encoder(uid.RLELossless)
    rows, columns = pixels.shape
    layout = {"rows": rows, "columns": columns, "samples_per_pixel": 1, "number_of_frames": 1, "bits_allocated": 16}
    layout |= {"bits_stored": 16, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2"}
    return encoder.encode(pixels.tobytes(), index=0, **layout)


CODECS = {
    uid.RLELossless: rle,
    uid.JPEGLosslessSV1: lambda x: imagecodecs.ljpeg_encode(x, bitspersample=12),
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEG2000Lossless: lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="j2k", bitspersample=12),
    uid.HTJ2KLossless: lambda x: imagecodecs.htj2k_encode(x),
}


@pytest.mark.parametrize("syntax", CODECS, ids=lambda syntax: syntax.keyword)
def test_lossless_codecs_give_every_value(tmp_path, syntax):
    path = write_dicom(
        tmp_path / "image.dcm", RAMP, bits=12, syntax=syntax, PixelData=encapsulate([CODECS[syntax](RAMP)])
    )
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))


@pytest.mark.parametrize("syntax", CODECS, ids=lambda syntax: syntax.keyword)
def test_lossless_codecs_of_signed_values(tmp_path, syntax):
    """The bits of the values, in a codec that knows of no sign."""
    bits = SIGNED.view(np.uint16) & 0xFFF
    pixels = encapsulate([CODECS[syntax](bits)])
    path = write_dicom(tmp_path / "image.dcm", SIGNED, bits=12, syntax=syntax, PixelData=pixels)
    np.testing.assert_array_equal(read_dicom(path), stretched(SIGNED))


@pytest.mark.parametrize("predictor", range(1, 8))
def test_lossless_jpeg_of_all_predictors(tmp_path, predictor):
    pixels = np.random.default_rng(predictor).integers(0, 2**16, (16, 16)).astype(np.uint16)
    content = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=16)
    path = write_dicom(tmp_path / "image.dcm", pixels, syntax=uid.JPEGLossless, PixelData=encapsulate([content]))
    np.testing.assert_array_equal(read_dicom(path), stretched(pixels))


def test_overlay_bits_in_a_lossless_image(tmp_path):
    """The codec keeps 16 bits, of which 12 are values."""
    pixels = RAMP | (np.arange(4096).reshape(64, 64) % 16).astype(np.uint16) << 12
    content = encapsulate([imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k")])
    path = write_dicom(tmp_path / "image.dcm", pixels, bits=12, syntax=uid.JPEG2000Lossless, PixelData=content)
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))


def test_signed_jpeg_2000(tmp_path):
    content = encapsulate([imagecodecs.jpeg2k_encode(SIGNED, level=0, codecformat="j2k")])
    path = write_dicom(tmp_path / "image.dcm", SIGNED, syntax=uid.JPEG2000Lossless, PixelData=content)
    np.testing.assert_array_equal(read_dicom(path), stretched(SIGNED))


def test_eight_bits_in_sixteen(tmp_path):
    """A codec of 8-bit values, where the tags allocate 16."""
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    content = encapsulate([imagecodecs.jpeg2k_encode(pixels.astype(np.uint8), level=0, codecformat="j2k")])
    path = write_dicom(tmp_path / "image.dcm", pixels, bits=8, syntax=uid.JPEG2000Lossless, PixelData=content)
    np.testing.assert_array_equal(read_dicom(path), pixels)
    path = write_dicom(tmp_path / "image.dcm", pixels.astype(np.uint8), syntax=uid.JPEGLSLossless)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([imagecodecs.jpegls_encode(pixels * np.uint16(16))])
    dataset.save_as(path)
    with pytest.raises(ProblemError, match="holds a compressed image of 16 bits, but its tags say 8: correct its tags"):
        read_dicom(path)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_of_twelve_bits(name, capfd, caplog):
    path = get_testdata_file(name, download=False)
    with caplog.at_level(logging.DEBUG):
        picture = read_dicom(path)
    dataset = pydicom.dcmread(path)
    assert picture.shape == (dataset.Rows, dataset.Columns)
    # What libjpeg gives for two pixels, by pydicom's own tests.
    stored = imagecodecs.jpeg8_decode(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    assert (stored[420, 140], stored[230, 120]) == (244, 95)
    assert (stored.min(), stored.max()) == (0, 264)
    np.testing.assert_array_equal(picture, stretched(stored))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_jpeg_of_twelve_bits_that_a_test_wrote(tmp_path):
    """A smooth picture, of which a high quality keeps all but a few of 4096 levels."""
    content = imagecodecs.jpeg8_encode(RAMP, level=100, bitspersample=12)
    tags = {"bits": 12, "syntax": uid.JPEGExtended12Bit, "WindowCenter": 2048, "WindowWidth": 4096}
    path = write_dicom(tmp_path / "image.dcm", RAMP, PixelData=encapsulate([content]), **tags)
    assert np.abs(read_dicom(path) - RAMP / 4095 * 255).max() <= 1


def test_without_imagecodecs(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for name in ("JPEG-lossy.dcm", "MR_small_RLE.dcm"):
        with pytest.raises(ProblemError, match="no decoder is installed: `pip install imagecodecs`"):
            read_dicom(get_testdata_file(name, download=False))


def test_a_decoder_that_fails_prints_nothing(tmp_path, capfd, caplog):
    content = imagecodecs.jpeg2k_encode(RAMP, level=0, codecformat="j2k", bitspersample=12)
    content = content[:51] + b"\xff" * 20 + content[71:]
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=uid.JPEG2000Lossless, PixelData=encapsulate([content]))
    with pytest.raises(
        ProblemError, match=r"^is damaged: its compressed image \(JPEG 2000.* cannot be decompressed \("
    ):
        read_dicom(path)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_several_frames_behind_the_number_one(tmp_path):
    frame = imagecodecs.jpegls_encode(RAMP)
    for table in (True, False):
        content = encapsulate([frame, frame], has_bot=table)
        path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=uid.JPEGLSLossless, PixelData=content, bits=12)
        with pytest.raises(ProblemError, match="has 2 frames, though its NumberOfFrames says 1"):
            read_dicom(path)
    content = encapsulate([frame], fragments_per_frame=3)
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=uid.JPEGLSLossless, PixelData=content, bits=12)
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))


def test_run_lengths_that_give_far_more_than_the_picture(tmp_path):
    """Each two bytes may become 128."""
    segments = b"\x81\x00" * 500_000
    header = struct.pack("<16L", 2, 64, 64 + len(segments) // 2, *[0] * 13)
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=uid.RLELossless, PixelData=encapsulate([header + segments]))
    with pytest.raises(ProblemError, match="is damaged: an RLE segment cannot be read"):
        read_dicom(path)


def test_a_compressed_image_that_is_larger_than_its_tags_say(tmp_path):
    content = imagecodecs.jpeg8_encode(np.zeros((4000, 4000), np.uint8))
    assert len(content) < 200_000
    pixels = RAMP.astype(np.uint8)
    path = write_dicom(tmp_path / "image.dcm", pixels, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([content]))
    with pytest.raises(ProblemError, match=r"^holds a compressed image of 4000 x 4000 pixels of 1 samples, but its"):
        read_dicom(path)
