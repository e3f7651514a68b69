"""The patient of a DICOM file."""

import hashlib
import os

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from pydicom.uid import UID, ImplicitVRLittleEndian

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom_patient import hashed, patient_of
from tests.data.dicoms import write_dicom

PIXELS = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"PatientID": ""}, None),
        ({"PatientID": "  "}, None),
        ({"PatientID": "ANONYMOUS"}, None),
        ({"PatientID": "unknown", "IssuerOfPatientID": "A"}, None),
        ({"PatientID": "0"}, ("0", "")),
        ({"PatientID": " 007 "}, ("007", "")),
        ({"PatientID": "17", "IssuerOfPatientID": "Hospital A"}, ("17", "Hospital A")),
        ({"PatientID": "17", "IssuerOfPatientID": ""}, ("17", "")),
        ({"PatientID": ["a", "b"]}, ("a\\b", "")),
        ({"PatientID": "Mu\u0308ller", "SpecificCharacterSet": "ISO_IR 192"}, ("M\u00fcller", "")),
        ({"PatientID": "\uae40", "SpecificCharacterSet": "ISO_IR 192"}, ("\uae40", "")),
        ({"PatientID": "7", "PixelData": None}, ("7", "")),
        ({"PatientID": "7", "NumberOfFrames": 100}, ("7", "")),
        ({"PatientID": "7", "syntax": ImplicitVRLittleEndian}, ("7", "")),
        ({"PatientID": "7", "syntax": UID("1.2.840.10008.1.2.1.99")}, ("7", "")),
    ],
)
def test_the_patient_of_a_file(tmp_path, tags, expected):
    assert patient_of(write_dicom(tmp_path / "a.dcm", PIXELS, **tags)) == expected


def test_without_preamble_and_meta(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PIXELS, PatientID="7")
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    for preamble in (bytes(128), None):
        dataset.preamble = preamble
        for implicit, little in ((False, True), (True, True), (False, False)):
            pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
            assert (path.read_bytes()[128:132] == b"DICM") == bool(preamble)
            assert patient_of(path) == ("7", "")


def test_pixel_data_is_not_read(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PIXELS, PatientID="7")
    path.write_bytes(path.read_bytes()[:-10])
    assert patient_of(path) == ("7", "")


@pytest.mark.parametrize("content", [b"", b"text that is long enough", bytes(300)])
def test_other_content(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(ProblemError, match=r"^is not a DICOM file: copy it again$"):
        patient_of(path)


def test_no_file(tmp_path):
    with pytest.raises(ProblemError, match=r"^is not there$"):
        patient_of(tmp_path / "a.dcm")
    os.mkfifo(tmp_path / "pipe.dcm")
    for path in (tmp_path, tmp_path / "pipe.dcm"):
        with pytest.raises(ProblemError, match=r"^is a (named pipe|folder): give a regular file$"):
            patient_of(path)


def test_hashed():
    assert hashed("7") == hashlib.sha256(b"jaxboost patient 7").hexdigest()[:16]
    assert hashed("7", "A") == hashlib.sha256(b"jaxboost patient 7^^^A").hexdigest()[:16]
    assert len({hashed(text) for text in ("7", "7 ", "8", "\uae40")}) == 4
