"""The patient of a DICOM file, by its tags. Needs the package pydicom (the extra `dicom`)."""

import hashlib
import pathlib
import unicodedata

from jaxboost.data.readers.dicom_file import open_dicom

# What tools write in the place of an id that they removed, in small letters: the same for every patient. Numbers such
# as 0 stay ids, because some data sets count their patients from 0.
PLACEHOLDERS = frozenset(
    ("anon", "anonymous", "anonymised", "anonymized", "n/a", "na", "nan", "none", "null", "removed", "unknown")
)
_LENGTH = 16


def patient_of(path: pathlib.Path) -> str | None:
    """The patient's id, without blanks at its ends; None where it is absent, empty or one of `PLACEHOLDERS`.

    Two hospitals may both have a patient 17: where the file says who issued the id, the result is `ID^^^ISSUER`, as
    HL7 writes it. Only the header is read.

    Raises:
      ProblemError: the file cannot be read.
    """
    with open_dicom(path) as file:
        number, issuer = (_text(file.header.get(name)) for name in ("PatientID", "IssuerOfPatientID"))
    if not number or number.lower() in PLACEHOLDERS:
        return None
    return f"{number}^^^{issuer}" if issuer else number


def hashed(text: str) -> str:
    """16 hexadecimal digits of the SHA-256 of an id, for every file that we write: the same id gives the same digits.

    It keeps ids out of files, no more: whoever can list all the ids that are possible, such as numbers of a few
    digits, finds the id by hashing them all. A salt that stands in public code would not change that.
    """
    return hashlib.sha256(f"jaxboost patient {text}".encode()).hexdigest()[:_LENGTH]


def _text(value: object) -> str:
    # A back-slash in the id makes pydicom take it for several values.
    text = str(value or "") if isinstance(value, str | None) else "\\".join(map(str, value))
    return unicodedata.normalize("NFC", text).strip(" \0\t\r\n")
