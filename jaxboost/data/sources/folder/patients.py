"""The patients of a user's files where no table names them: by names of folders, or by tags of DICOM files.

A wrong answer is a leak: the images of one person come to two splits. What can be read in two ways is refused with the
fix for each.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from jaxboost.data.problems import Problems
from jaxboost.data.readers.pictures import DICOM_SUFFIXES
from jaxboost.data.sources.folder import labels, samples
from jaxboost.data.sources.folder.labels import Row
from jaxboost.data.sources.folder.layouts import some, suffix_of

FOLDERS, TAG = "folders", "tag"
# How the patients of two files are known to be one, and the fix where they are two people.
_SAME = {
    FOLDERS: (
        "are folders of the same name and are taken as one patient",
        "rename one of the folders; if these are not folders of patients, move the images into the folders of their"
        " classes",
    ),
    TAG: (
        "have the same patient id in their tags and are taken as one patient",
        "the tags do not tell people apart: name the patients in labels.csv (column patient_id) and leave data.patient"
        " empty",
    ),
}


def check(rows: Sequence[Row], problems: Problems, source: str, *, multi_label: bool, allow_mixed: bool) -> None:
    """Adds a problem where a patient is in two splits and, unless `allow_mixed`, one where a patient has two labels.

    One problem names all such patients: where folders are numbered from 1 in every class, they are all of them.

    Args:
      source: FOLDERS or TAG, where the patients of `rows` come from.
    """
    same, fix = _SAME[source]

    def report(what: str, if_one: str, differ: Callable[[Row, Row], bool]) -> None:
        pairs = _pairs(rows, differ)
        if not pairs:
            return
        first, other = pairs[0]
        more = [_place(one, source) for one, _ in pairs[1:]]
        also = f" (so are {some(more)})" if more else ""
        problems.add(
            f"{_place(first, source)} and {_place(other, source)} {same}, who {what}{also}: if they are one person, "
            f"{if_one}; if they are two, {fix}",
            row=first.number,
        )

    report("is in two splits", "give all images to one split", lambda one, other: one.split != other.split)
    if not allow_mixed:
        report(
            "has two labels",
            "set data.allow_mixed_patients=True, or correct a label",
            lambda one, other: not labels.same_labels(one, other, multi_label=multi_label),
        )


def from_tags(
    rows: Sequence[Row], paths: Mapping[Row, pathlib.Path], problems: Problems
) -> tuple[list[Row], dict[Row, pathlib.Path]]:
    """`rows` and `paths` with the patients that the tags of the DICOM files name, as hashes, where rows have none.

    A file without such a tag, or of another kind, is a problem then: taken as a patient of its own it may be a leak.
    Where rows have patients, they stay, and files of two patients with the same tag are a problem.
    """
    tagged = {row: path for row, path in paths.items() if suffix_of(path.name) in DICOM_SUFFIXES}
    found = samples.read_all(tagged, _hash, 2, problems, what="reading patients")
    # A file whose header cannot be read is a problem already, and would be a second one if its pixels were read.
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
            problems.add(
                "has no patient id in its tags, or one that stands for a removed id: write it there (PatientID), or "
                "name all patients in labels.csv (column patient_id) and leave data.patient empty",
                row=row.number,
                file=row.file,
            )
    # Where a problem is known already, the file's name takes the place of the patient.
    owned = {row: dataclasses.replace(row, patient=found.get(row) or row.file) for row in rows}
    return list(owned.values()), {owned[row]: path for row, path in paths.items()}


def _hash(path: pathlib.Path) -> str:
    """The hash of the patient of a DICOM file, "" where its tags name none; see `dicom_patient`."""
    # Only here: pydicom is an optional package.
    from jaxboost.data.readers import dicom_patient

    patient = dicom_patient.patient_of(path)
    # Only the hash is kept: a run writes patients to its files and messages.
    return dicom_patient.hashed(patient) if patient else ""


def _check_contradictions(rows: Sequence[Row], tags: Mapping[Row, str], problems: Problems) -> None:
    first_of: dict[str, Row] = {}
    known: set[tuple[str, str]] = set()
    for row in rows:
        tag = tags.get(row)
        first = first_of.setdefault(tag, row) if tag else row
        if first.patient != row.patient and (tag, row.patient) not in known:
            known.add((tag, row.patient))
            where = f" in row {first.number}" if first.number else ""
            problems.add(
                f"has the same patient id in its tags as {first.file}{where}, and is of {row.patient!r}, not of "
                f"{first.patient!r}: if they are one person, give both one patient; if the tags do not tell people "
                "apart, leave data.patient empty",
                row=row.number,
                file=row.file,
            )


def _pairs(rows: Sequence[Row], differ: Callable[[Row, Row], bool]) -> list[tuple[Row, Row]]:
    """Of each patient with rows that differ, the first row and the first that differs from it."""
    by_patient: dict[str | None, list[Row]] = collections.defaultdict(list)
    for row in rows:
        by_patient[row.patient].append(row)
    return [
        (first, other)
        for first, *others in by_patient.values()
        if (other := next((row for row in others if differ(first, row)), None))
    ]


def _place(row: Row, source: str) -> str:
    """The folder of the row's patient, or its file, as they are below the root."""
    if source == TAG:
        return row.file
    return "".join(f"{part}/" for part in pathlib.PurePath(row.file).parts[: 2 + (row.split is not None)])
