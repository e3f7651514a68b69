"""The patients of a user's files: from the table, from folders below the classes, or from tags of DICOM files.

A wrong patient is a leak: images of one person end up in two splits. A case that can be read in two ways is refused,
and the message gives the fix for each of them.
"""

import dataclasses
import logging
import pathlib
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence

from jaxboost.data.problems import Problems
from jaxboost.data.readers.pictures import DICOM_SUFFIXES
from jaxboost.data.sources.folder import cell_values, samples
from jaxboost.data.sources.folder.extensions import suffix_of
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.splits.patients import in_two
from jaxboost.data.walk import some

TABLE, FOLDERS, TAG = "table", "folders", "tag"
# Folders within a class that hold all of its images: they are not patients.
_ALL_IMAGES = frozenset(("image", "images", "img", "imgs"))
# Origin of the patients -> why two files count as one patient's, and the fix if they belong to two people.
_SAME = {
    FOLDERS: (
        "are folders of the same name and are taken as one patient",
        "rename one of the folders; if these are not folders of patients, move the images into the folders of their"
        " classes",
    ),
    TAG: (
        "have the same patient id in their tags and are taken as one patient",
        "the tags do not distinguish people: name the patients in labels.csv (column patient_id) and leave data.patient"
        " empty",
    ),
}

logger = logging.getLogger(__name__)


def find(
    name: str,
    rows: list[Row],
    paths: dict[Row, pathlib.Path],
    problems: Problems,
    *,
    tags: bool,
    multi_label: bool,
    allow_mixed: bool,
) -> tuple[list[Row], dict[Row, pathlib.Path]]:
    """Finds and checks the patients of all files.

    Args:
      name: the name of the data set, for the log.
      rows: the rows, with the patients of the table or of the folders, if there are any.
      paths: the file of each row.
      problems: receives what `check` and `from_tags` find.
      tags: whether the patients are read from the tags of DICOM files.
      multi_label: whether a row may have several labels.
      allow_mixed: whether images of one patient may have different labels.

    Returns:
      `rows` and `paths` with the patients.
    """
    origin = TABLE if rows[0].number else FOLDERS
    if rows[0].patient is None:
        origin = TAG if tags else TABLE
        if not tags:
            logger.warning("%s has no patient ids: every file counts as a separate patient", name)
    elif origin == FOLDERS:
        logger.info("files in one folder below their class's folder are taken as one patient")
        if loose := [row.file for row in rows if row.patient == row.file]:
            logger.warning("not in a patient's folder, each counts as a separate patient: %s", some(loose))
    if tags:
        rows, paths = from_tags(rows, paths, problems)
    check(rows, problems, origin, multi_label=multi_label, allow_mixed=allow_mixed)
    return rows, paths


def from_folders(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of class folders with their patients: all files in a folder within a class are one patient's.

    Folders of the same name belong to one patient in all classes and splits, because a person in two classes must not
    be in two splits. Names that differ only in case, Unicode form or outer blanks are the same, because some file
    systems and archives change these. A patient is called CLASS/NAME if one class has the name, otherwise NAME.
    Without such folders the rows keep None.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).strip().casefold()

    # Folders below the class, without those that hold all of its images, such as CLASS/images/.
    inner = [
        [
            name
            for name in pathlib.PurePath(row.file).parts[1 + (row.split is not None) : -1]
            if name.lower() not in _ALL_IMAGES
        ]
        for row in rows
    ]
    if not any(inner):
        return list(rows)
    # Key of a name -> class -> how the class first writes it.
    classes: dict[str, dict[str, str]] = {}
    for row, folders in zip(rows, inner, strict=True):
        if folders:
            classes.setdefault(key(folders[0]), {}).setdefault(row.label, folders[0])

    def patient(row: Row, folders: Sequence[str]) -> str:
        if not folders:
            return row.file
        found = classes[key(folders[0])]
        return "/".join(next(iter(found.items()))) if len(found) == 1 else next(iter(found.values()))

    return [dataclasses.replace(row, patient=patient(row, folders)) for row, folders in zip(rows, inner, strict=True)]


def from_tags(
    rows: Sequence[Row], paths: Mapping[Row, pathlib.Path], problems: Problems
) -> tuple[list[Row], dict[Row, pathlib.Path]]:
    """Returns `rows` and `paths` with the patients that the tags of the DICOM files name, as hashes.

    If the rows have no patients, a file without such a tag, or of another kind, is a problem: as a separate
    patient it could be a leak. If the rows have patients, these stay, and two patients with the same tag are a problem.
    """
    tagged = {row: path for row, path in paths.items() if suffix_of(path.name) in DICOM_SUFFIXES}
    found = samples.read_all(tagged, _hash, 2, problems, what="reading patients")
    # A file whose header cannot be read is a problem already; reading its pixels would add a second one.
    paths = {row: path for row, path in paths.items() if row in found or row not in tagged}
    if rows[0].patient is not None:
        _check_contradictions(rows, found, problems)
        return list(rows), paths
    if others := [row.file for row in paths if row not in tagged]:
        problems.add(
            f"data.patient=tag: {some(others)} are not DICOM files, and nothing names their patients: name the "
            "patients of all files in labels.csv (column patient_id), and leave data.patient empty"
        )
    for row, patient in found.items():
        if not patient:
            row.report(
                problems,
                "has no patient id in its tags, or one that stands for a removed id: write it there (PatientID), or "
                "name all patients in labels.csv (column patient_id) and leave data.patient empty",
            )
    # A row with a problem takes the file's name as its patient.
    owned = {row: dataclasses.replace(row, patient=found.get(row) or row.file) for row in rows}
    return list(owned.values()), {owned[row]: path for row, path in paths.items()}


def _hash(path: pathlib.Path) -> str:
    """Returns the hash of a DICOM file's patient, "" if its tags name none."""
    # Imported here because pydicom is an optional package.
    from jaxboost.data.readers import dicom_patient

    patient = dicom_patient.patient_of(path)
    # Only the hash is kept, because a run writes patients to its files and messages.
    return dicom_patient.hashed(patient) if patient else ""


def _check_contradictions(rows: Sequence[Row], tags: Mapping[Row, str], problems: Problems) -> None:
    first_of: dict[str, Row] = {}
    known: set[tuple[str | None, str | None]] = set()
    for row in rows:
        tag = tags.get(row)
        first = first_of.setdefault(tag, row) if tag else row
        if first.patient != row.patient and (tag, row.patient) not in known:
            known.add((tag, row.patient))
            row.report(
                problems,
                f"has the same patient id in its tags as {first.file}{first.in_row}, and is of {row.patient!r}, not of "
                f"{first.patient!r}: if they are one person, give both one patient; if the tags do not "
                "distinguish people, leave data.patient empty",
            )


def check(rows: Sequence[Row], problems: Problems, origin: str, *, multi_label: bool, allow_mixed: bool) -> None:
    """Adds the problems with the patients: in two splits, with two labels, or with an unclear name in the table.

    Args:
      rows: all rows, with their patients.
      problems: receives one problem for each patient of a table. Of patients from folders or tags it receives one for
        all of them: if folders are numbered from 1 in every class, all folders are concerned.
      origin: TABLE, FOLDERS or TAG: where the patients are named.
      multi_label: whether a row may have several labels.
      allow_mixed: whether images of one patient may have different labels.
    """
    if origin == TABLE:
        rows = _check_names(rows, problems)
    in_two_splits = _conflicts(rows, lambda row: row.split)
    two_labels = [] if allow_mixed else _conflicts(rows, lambda row: frozenset(row.labels(multi_label)))
    if origin != TABLE:
        _report_together(in_two_splits, problems, origin, "is in two splits", "give all images to one split")
        fix = "set data.allow_mixed_patients=True, or correct a label"
        _report_together(two_labels, problems, origin, "has two labels", fix)
        return
    for first, other in in_two_splits:
        text = f"is in {first.split} here and in {other.split}{other.place}: give every patient to one split"
        first.report(problems, f"patient {first.patient!r} {text}")
    for first, other in two_labels:
        text = f"is {first.label!r} here and {other.label!r}{other.place}: correct one"
        first.report(problems, f"patient {first.patient!r} {text}, or set data.allow_mixed_patients=True")


def _check_names(rows: Sequence[Row], problems: Problems) -> list[Row]:
    """Adds the problems with the names in column patient_id; returns the rows that have a usable one."""
    usable = []
    for row in rows:
        if row.number and row.patient and cell_values.is_missing(row.patient):
            row.report(problems, f"patient_id is {row.patient!r}, which means a missing value: give an id")
        elif row.number and row.patient and cell_values.is_shortened(row.patient):
            text = f"patient_id is {row.patient!r}, a number that a spreadsheet has cut short, so that several patients"
            row.report(problems, f"{text} may have it: save the column as text")
        elif row.patient:
            usable.append(row)
        elif row.patient is not None:
            row.report(problems, "patient_id is empty")
    # Names that may mean one patient, such as 007 and 7, or p1 and P1. A file that is its own patient has no such name.
    first_of: dict[str, Row] = {}
    for row in usable:
        first_of.setdefault(row.patient or "", row)
    names = [patient for patient, first in first_of.items() if patient != first.file]
    for name, other in cell_values.alike(names, fractions=False):
        text = f"patient {other!r} is written nearly like {name!r}{first_of[name].place}"
        fix = "write them alike if they are one, and otherwise differently"
        first_of[other].report(problems, f"{text}: {fix}")
    return usable


def _conflicts(rows: Sequence[Row], value: Callable[[Row], Hashable]) -> list[tuple[Row, Row]]:
    """Returns, for each patient whose rows differ in `value`, its first row and the first row with another value."""
    return [(rows[first], rows[other]) for first, other in in_two((row.patient for row in rows), map(value, rows))]


def _report_together(pairs: Sequence[tuple[Row, Row]], problems: Problems, origin: str, what: str, if_one: str) -> None:
    """Adds one problem for all pairs of rows that have one patient according to `origin`."""
    if not pairs:
        return
    (first, other), *others = pairs
    same, if_two = _SAME[origin]
    also = f" (so are {some([_place(row, origin) for row, _ in others])})" if others else ""
    problems.add(
        f"{_place(first, origin)} and {_place(other, origin)} {same}, who {what}{also}: if they are one person, "
        f"{if_one}; if they are two, {if_two}",
        row=first.number,
    )


def _place(row: Row, origin: str) -> str:
    """Returns the folder of the row's patient, or its file, relative to the root."""
    if origin == TAG:
        return row.file
    return "".join(f"{part}/" for part in pathlib.PurePath(row.file).parts[: 2 + (row.split is not None)])
