"""DICOM files in unusual forms: parts are missing, far too large, or damaged."""

import os
import struct
import zlib

import numpy as np
import pytest

pytest.importorskip("pydicom")

import imagecodecs
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers import dicom_codecs
from jaxboost.data.readers.arrays import MAX_PIXELS
from jaxboost.data.readers.dicom import read_dicom
from jaxboost.data.readers.dicom_patient import patient_of
from tests.data.dicoms import write_dicom
from tests.data.files_of_pictures import read_image
from tests.mutations import mutations

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
DEFLATED = uid.DeflatedExplicitVRLittleEndian


def stretched(x):
    x = np.asarray(x, float)
    return np.rint((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)


def rewrite(path, *, preamble=bytes(128), implicit=False, little=True):
    """The file without file meta information, and with or without the preamble."""
    dataset = pydicom.dcmread(path, force=True)
    del dataset.file_meta
    dataset.preamble = preamble
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)


def without_syntax(path):
    """The file with its file meta information, but without the transfer syntax in it."""
    content = path.read_bytes()
    start = content.index(b"\x02\x00\x10\x00UI")
    size = 8 + struct.unpack_from("<H", content, start + 6)[0]
    group = content.index(b"\x02\x00\x00\x00UL") + 8
    length = struct.pack("<I", struct.unpack_from("<I", content, group)[0] - size)
    path.write_bytes(content[:group] + length + content[group + 4 : start] + content[start + size :])


@pytest.mark.parametrize("preamble", [bytes(128), None])
@pytest.mark.parametrize(("implicit", "little"), [(False, True), (True, True), (False, False)])
def test_without_meta(tmp_path, preamble, implicit, little):
    path = write_dicom(tmp_path / "image.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    if not little:
        dataset.PixelData = RAMP.byteswap().tobytes()
        dataset.save_as(path)
    rewrite(path, preamble=preamble, implicit=implicit, little=little)
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_a_transfer_syntax(tmp_path, syntax):
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=syntax)
    without_syntax(path)
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))
    # Without the preamble, but with the rest of the meta information.
    path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_wrong_one_of_implicit_and_explicit(tmp_path):
    path = write_dicom(tmp_path / "image.dcm", RAMP)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1))
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))


@pytest.mark.parametrize("change", [without_syntax, rewrite])
def test_compressed_pixels_without_a_transfer_syntax(tmp_path, change):
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=uid.RLELossless)
    change(path)
    with pytest.raises(ProblemError, match=r"^is compressed, but names no transfer syntax: set the one of its source"):
        read_dicom(path)


def test_pixels_of_another_length_without_a_transfer_syntax(tmp_path):
    path = write_dicom(tmp_path / "image.dcm", RAMP, PixelData=bytes(1000))
    without_syntax(path)
    with pytest.raises(ProblemError, match=r"has 1000 bytes .* 8192: .* if its pixels are compressed, `python"):
        read_dicom(path)


def test_a_transfer_syntax_that_is_not_the_one_of_the_pixels(tmp_path):
    path = write_dicom(tmp_path / "image.dcm", RAMP)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1))
    with pytest.raises(
        ProblemError, match=r"^names the transfer syntax RLE Lossless, but has uncompressed pixels: `py"
    ):
        read_dicom(path)
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=uid.RLELossless)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0", 1))
    with pytest.raises(
        ProblemError, match=r"^names the transfer syntax Explicit.*, but has compressed pixels: set the"
    ):
        read_dicom(path)
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.9.9.9\0", 1))
    with pytest.raises(ProblemError, match=r"names the transfer syntax 1\.2\.840\.10008\.9\.9\.9, which is unknown"):
        read_dicom(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"Some text, which is long enough to hold a preamble. " * 10,
        b"id,label\n1,2\n" * 20,
        b"{}" * 200,
        bytes(1000),
        b"\x89PNG\r\n\x1a\n" + bytes(300),
        b"\x08\x00",
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + bytes(200),
        b"\x1f\x8b\x08\x00" + bytes(200),
    ],
)
def test_other_content(tmp_path, content):
    path = tmp_path / "image.dcm"
    path.write_bytes(content)
    for read in (read_dicom, patient_of):
        with pytest.raises(
            ProblemError,
            match=r"^is not a DICOM file: (it holds a PNG file: give its name the extension .png|copy it again)$",
        ):
            read(path)


def test_a_file_that_is_cut_off(tmp_path):
    path = write_dicom(tmp_path / "image.dcm", RAMP)
    content = path.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00OW")
    for end, message in (
        (pixels, "is a DICOM file without an image: its pixel data is missing: it may be cut off"),
        (pixels + 6, "is a DICOM file without an image: its pixel data is missing: it may be cut off"),
        (len(content) - 1, "is cut off: 8191 of 8192 bytes of its pixel data are there: copy it again"),
    ):
        path.write_bytes(content[:end])
        with pytest.raises(ProblemError, match=f"^{message}$"):
            read_dicom(path)


def test_zeros_after_the_pixels_are_left_out(tmp_path):
    path = write_dicom(tmp_path / "image.dcm", RAMP, PixelData=RAMP.tobytes() + bytes(128))
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))
    path = write_dicom(tmp_path / "image.dcm", RAMP, PixelData=RAMP.tobytes() + b"\1" * 128)
    with pytest.raises(ProblemError, match="has 8320 bytes of pixel data, but its tags say 8192"):
        read_dicom(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, DEFLATED, uid.JPEG2000Lossless])
def test_the_limit_of_pixels(tmp_path, syntax, monkeypatch):
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=syntax)

    def never(*arguments):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(dicom_codecs, "decompress", never)
    for read in (read_dicom, read_image):
        with pytest.raises(ProblemError, match=r"^has 64 x 64 = 4096 pixels, more than data\.max_pixels=4095: make"):
            read(path, max_pixels=4095)
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=syntax, Rows=60000, Columns=60000)
    with pytest.raises(ProblemError, match=f"more than data.max_pixels={MAX_PIXELS}"):
        read_dicom(path)


def test_the_limit_of_pixels_lets_as_many_through(tmp_path):
    path = write_dicom(tmp_path / "image.dcm", RAMP, syntax=DEFLATED)
    np.testing.assert_array_equal(read_dicom(path, max_pixels=4096), stretched(RAMP))


def deflated(path, content):
    """Writes a deflated file whose elements are these bytes, given in parts."""
    meta = write_dicom(path, RAMP, syntax=DEFLATED).read_bytes()
    start = meta.index(b"\x02\x00\x00\x00UL")
    end = start + 12 + struct.unpack_from("<I", meta, start + 8)[0]
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(meta[:end] + b"".join(packer.compress(part) for part in content) + packer.flush())
    return path


def test_a_small_file_that_inflates_to_gigabytes(tmp_path, monkeypatch):
    """What is asked of zlib stays small; the file itself inflates to 8 MB only, for the test's time."""
    asked = []
    inflate = zlib.decompressobj

    class Watched:
        def __init__(self, bits):
            self._inflater = inflate(bits)

        def decompress(self, content, limit):
            result = self._inflater.decompress(content, limit)
            asked.append(len(result))
            return result

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    elements = write_dicom(tmp_path / "plain.dcm", RAMP).read_bytes()
    elements = elements[elements.index(b"\x08\x00\x16\x00UI") :]
    zeros = [bytes(1 << 20)] * 8
    path = deflated(tmp_path / "after.dcm", [elements, *zeros])
    np.testing.assert_array_equal(read_dicom(path), stretched(RAMP))
    assert path.stat().st_size < 200_000
    end = 8 + struct.unpack_from("<H", elements, 6)[0]
    private = b"\x09\x00\x01\x00OB\0\0" + struct.pack("<I", 8 << 20)
    path = deflated(tmp_path / "before.dcm", [elements[:end], private, *zeros, elements[end:]])
    for read in (read_dicom, patient_of):
        with pytest.raises(ProblemError, match="inflates to more than 4 MiB before its pixel data"):
            read(path)
    assert max(asked) <= 4 << 20


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, DEFLATED])
def test_zeros_in_place_of_elements(tmp_path, syntax):
    """Each 8 of them could be an element."""
    zeros = [bytes(1 << 20)] * 2
    path = tmp_path / "image.dcm"
    if syntax == DEFLATED:
        deflated(path, zeros)
    else:
        content = write_dicom(path, RAMP).read_bytes()
        path.write_bytes(content[: content.index(b"\x08\x00\x16\x00UI")] + zeros[0])
    for read in (read_dicom, patient_of):
        with pytest.raises(ProblemError, match="is damaged: it has more than 32768 elements before its pixel data"):
            read(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "image.dcm")
    with pytest.raises(ProblemError, match=r"^is a named pipe: give a regular file$"):
        read_dicom(tmp_path / "image.dcm")


def samples(folder):
    """Small files of several kinds, as bytes."""
    ramp = RAMP[::8, ::8]
    group = pydicom.Dataset()
    transform = pydicom.Dataset()
    transform.RescaleSlope, transform.RescaleIntercept = 2, -10
    group.PixelValueTransformationSequence = [transform]
    yield "grey", write_dicom(folder / "a.dcm", ramp, bits=12, SharedFunctionalGroupsSequence=[group]).read_bytes()
    yield "deflated", write_dicom(folder / "b.dcm", ramp, bits=12, syntax=DEFLATED, PixelPaddingValue=0).read_bytes()
    content = encapsulate([imagecodecs.jpeg2k_encode(ramp, level=0, codecformat="j2k", bitspersample=12)])
    tags = {"bits": 12, "syntax": uid.JPEG2000Lossless, "PixelData": content}
    yield "JPEG 2000", write_dicom(folder / "c.dcm", ramp, **tags).read_bytes()
    content = encapsulate([imagecodecs.jpeg8_encode(ramp.astype(np.uint8))])
    tags = {"syntax": uid.JPEGBaseline8Bit, "PixelData": content}
    yield "JPEG", write_dicom(folder / "d.dcm", ramp.astype(np.uint8), **tags).read_bytes()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_give_a_picture_or_a_reason(tmp_path, capfd, caplog):
    path = tmp_path / "image.dcm"
    reasons = []
    for kind, content in samples(tmp_path):
        for what, damaged in mutations(content, 40, header=1024):
            path.write_bytes(damaged)
            for read in (read_dicom, patient_of):
                try:
                    result = read(path)
                except ProblemError as error:
                    reasons.append(str(error))
                else:
                    assert read is patient_of or (result.dtype == np.uint8 and result.ndim in (2, 3)), (kind, what)
    assert not [text for text in reasons if "\n" in text or len(text) > 600]
    assert len(reasons) > 40
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
