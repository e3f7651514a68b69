"""Reads the patient of a DICOM file from its tags. Needs the package pydicom (the extra `dicom`)."""

import hashlib
import pathlib
import unicodedata

from jaxboost.data.readers.dicom_file import open_dicom

# Texts that tools write in place of an id that they removed, in lower case: the same for every patient. Numbers such as
# 0 are ids, because some data sets number their patients from 0.
PLACEHOLDERS = frozenset(
    ("anon", "anonymous", "anonymised", "anonymized", "n/a", "na", "nan", "none", "null", "removed", "unknown")
)
_LENGTH = 16


def patient_of(path: pathlib.Path) -> tuple[str, str] | None:
    """Returns the patient's id and its issuer, "" if the file names none; without outer blanks.

    Two hospitals may both have a patient 17. Only the header is read.

    Returns:
      None if the id is absent, empty or one of `PLACEHOLDERS`.

    Raises:
      ProblemError: the file cannot be read.
    """
    with open_dicom(path) as file:
        number, issuer = (_text(file.header.get(name)) for name in ("PatientID", "IssuerOfPatientID"))
    if not number or number.lower() in PLACEHOLDERS:
        return None
    return number, issuer


def hashed(number: str, issuer: str = "") -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of an id, which stand for the id in every file that we write.

    An id with an issuer is hashed as `ID^^^ISSUER`, as HL7 writes it.

    This only keeps ids out of files. Anyone who can list all possible ids, such as numbers of a few digits, can find an
    id by hashing them all; a salt in public code would not prevent that.
    """
    text = f"{number}^^^{issuer}" if issuer else number
    return hashlib.sha256(f"jaxboost patient {text}".encode()).hexdigest()[:_LENGTH]


def _text(value: object) -> str:
    # pydicom splits an id with a backslash into several values.
    text = str(value or "") if isinstance(value, str | None) else "\\".join(map(str, value))
    return unicodedata.normalize("NFC", text).strip(" \0\t\r\n")
