"""The patients of a user's files: from the table, from folders below the classes, or from tags of DICOM files.

A wrong patient is a leak: images of one person end up in two splits. A case that can be read in two ways is refused,
and the message gives the fix for each of them.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers import versions
from jaxboost.data.readers.pictures import DICOM_SUFFIXES
from jaxboost.data.rows.store import Store
from jaxboost.data.sources.folder import cell_values, reading
from jaxboost.data.sources.folder.extensions import suffix_of
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.splits.patients import in_two
from jaxboost.data.walk import not_fetched, some, state_of

TABLE, FOLDERS, TAG = "table", "folders", "tag"
# Folders within a class that hold all of its images: they are not patients.
ALL_IMAGES = frozenset(("image", "images", "img", "imgs"))
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
    entries: list[Entry],
    paths: dict[Entry, pathlib.Path],
    problems: Problems,
    *,
    tags: Store | None,
    allow_mixed: bool,
) -> tuple[list[Entry], dict[Entry, pathlib.Path]]:
    """Finds and checks the patients of all files.

    Args:
      name: the name of the data set, for the log.
      entries: the entries, with the patients of the table or of the folders, if there are any.
      paths: the file of each entry.
      problems: receives what `add_problems` and `from_tags` find.
      tags: keeps the patients, as hashes, that are read from the tags of DICOM files; None: tags are not read.
      allow_mixed: whether images of one patient may have different labels.

    Returns:
      `entries` and `paths` with the patients.
    """
    origin = TABLE if entries[0].number else FOLDERS
    if entries[0].patient is None:
        origin = TABLE if tags is None else TAG
        if tags is None:
            logger.warning("%s has no patient ids: every file counts as a separate patient", name)
    elif origin == FOLDERS:
        logger.info("files in one folder below their class's folder are taken as one patient")
        if loose := [entry.file for entry in entries if entry.patient == entry.file]:
            logger.warning("not in a patient's folder, each counts as a separate patient: %s", some(loose))
    if tags is not None:
        entries, paths = from_tags(entries, paths, problems, tags)
    add_problems(entries, problems, origin, allow_mixed=allow_mixed)
    return entries, paths


def from_folders(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the entries of class folders with their patients: all files in a folder within a class are one patient's.

    Folders of the same name belong to one patient in all classes and splits, because a person in two classes must not
    be in two splits. Names that differ only in case, Unicode form or outer blanks are the same, because some file
    systems and archives change these. A patient is called CLASS/NAME if one class has the name, otherwise NAME.
    Without such folders the entries keep None.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).strip().casefold()

    def folder(entry: Entry) -> str:
        """The first folder below the class that does not hold all of its images, as CLASS/images/ does; or ""."""
        parts = pathlib.PurePath(entry.file).parts
        for depth in range(1 + (entry.split is not None), len(parts) - 1):
            if parts[depth].lower() not in ALL_IMAGES:
                return "/".join(parts[: depth + 1])
        return ""

    folders = list(map(folder, entries))
    if not any(folders):
        return list(entries)
    # Key of a name -> class -> how the class first writes it.
    classes: dict[str, dict[str, str]] = {}
    for entry, path in zip(entries, folders, strict=True):
        if path:
            name = path.rpartition("/")[2]
            classes.setdefault(key(name), {}).setdefault(entry.label, name)

    def patient(entry: Entry, path: str) -> str:
        if not path:
            return entry.file
        found = classes[key(path.rpartition("/")[2])]
        return "/".join(next(iter(found.items()))) if len(found) == 1 else next(iter(found.values()))

    return [
        dataclasses.replace(entry, patient=patient(entry, path), patient_folder=path)
        for entry, path in zip(entries, folders, strict=True)
    ]


def from_tags(
    entries: Sequence[Entry], paths: Mapping[Entry, pathlib.Path], problems: Problems, store: Store
) -> tuple[list[Entry], dict[Entry, pathlib.Path]]:
    """Returns `entries` and `paths` with the patients that the tags of the DICOM files name, as hashes.

    If the entries have no patients, a file without such a tag, or of another kind, is a problem: as a separate patient
    it could be a leak. So are two ids that may be one. If the entries have patients, these stay, and two patients with
    the same tag are a problem.
    """
    tagged = {entry: path for entry, path in paths.items() if suffix_of(path.name) in DICOM_SUFFIXES}
    ids = _ids(tagged, problems, store)
    # A file whose header cannot be read is a problem already; reading its pixels would add a second one.
    paths = {entry: path for entry, path in paths.items() if entry in ids or entry not in tagged}
    found = {entry: one.patient for entry, one in ids.items()}
    if entries[0].patient is not None:
        _add_contradictions(entries, found, problems)
        return list(entries), paths
    _add_similar_ids(ids, problems)
    if others := [entry.file for entry in paths if entry not in tagged]:
        problems.add(
            f"data.patient=tag: {some(others)} are not DICOM files, and nothing names their patients: name the "
            "patients of all files in labels.csv (column patient_id), and leave data.patient empty"
        )
    for entry, patient in found.items():
        if not patient:
            entry.report(
                problems,
                "has no patient id in its tags, or one that stands for a removed id: write it there (PatientID), or "
                "name all patients in labels.csv (column patient_id) and leave data.patient empty",
            )
    # An entry with a problem takes the file's name as its patient.
    owned = {entry: dataclasses.replace(entry, patient=found.get(entry) or entry.file) for entry in entries}
    return list(owned.values()), {owned[entry]: path for entry, path in paths.items()}


class _Id(NamedTuple):
    """The id of a DICOM file's patient. Only hashes: ids do not leave the files. All are "" if the tags name none.

    Attributes:
      patient: as `dicom_patient.hashed` makes it.
      exact: of the id and its issuer.
      number, issuer: of the common forms of the id and of its issuer, "" if there is no issuer.
    """

    patient: str = ""
    exact: str = ""
    number: str = ""
    issuer: str = ""


def _ids(tagged: Mapping[Entry, pathlib.Path], problems: Problems, store: Store) -> dict[Entry, _Id]:
    """The ids of the files that can be read; those of files that have not changed are in the store."""
    entry_of = {os.fspath(path): entry for entry, path in tagged.items()}

    def make(missing: list[str]) -> dict[str, _Id]:
        some = {entry_of[key]: tagged[entry_of[key]] for key in missing}
        found = reading.read_all(some, _id, 2, problems, what="reading patients")
        return {os.fspath(tagged[entry]): one for entry, one in found.items()}

    states = {key: state_of(key) for key in entry_of}
    version = versions.identity([__file__, cell_values.__file__])
    found = store.notes.facts("patients", version, states, make)
    return {entry: _Id(*found[key]) for key, entry in entry_of.items() if key in found}


def _id(path: pathlib.Path) -> _Id:
    """The id of a DICOM file's patient."""
    # Imported here because pydicom is an optional package.
    from jaxboost.data.readers import dicom_patient

    try:
        one = dicom_patient.patient_of(path)
    except ProblemError as error:
        if text := not_fetched(path):
            raise ProblemError(text) from error
        raise
    if one is None:
        return _Id()
    number, issuer = (cell_values.form(text, fractions=False) for text in one)
    return _Id(dicom_patient.hashed(*one), _hash(repr(one)), _hash(number), _hash(issuer) if issuer else "")


def _hash(text: str) -> str:
    return hashlib.sha256(f"jaxboost form of an id {text}".encode()).hexdigest()[:16]


def _add_similar_ids(ids: Mapping[Entry, _Id], problems: Problems) -> None:
    """Adds a problem for each id that may be another file's: 007 and 7, p1 and P1, 17 with and without an issuer."""
    first_of: dict[_Id, Entry] = {}
    for entry, one in ids.items():
        if one.patient:
            first_of.setdefault(one, entry)
    # Common form of a number -> common form of its issuer -> the first such id.
    known: dict[str, dict[str, _Id]] = {}
    for one, entry in first_of.items():
        issuers = known.setdefault(one.number, {})
        like = issuers.setdefault(one.issuer, one)
        what = "is written nearly like"
        if like == one:
            like = next((other for where, other in issuers.items() if bool(where) != bool(one.issuer)), like)
            what = "differs only in having or not having an issuer (IssuerOfPatientID) from"
        if like != one:
            first = first_of[like]
            entry.report(
                problems,
                f"has a patient id in its tags that {what} that of {first.file}{first.in_row}: if they are one person,"
                " write the tags alike; if they are two, name the patients in labels.csv (column patient_id) and leave"
                " data.patient empty",
            )


def _add_contradictions(entries: Sequence[Entry], tags: Mapping[Entry, str], problems: Problems) -> None:
    first_of: dict[str, Entry] = {}
    known: set[tuple[str | None, str | None]] = set()
    for entry in entries:
        tag = tags.get(entry)
        first = first_of.setdefault(tag, entry) if tag else entry
        if first.patient != entry.patient and (tag, entry.patient) not in known:
            known.add((tag, entry.patient))
            entry.report(
                problems,
                f"has the same patient id in its tags as {first.file}{first.in_row}, and is of {entry.patient!r}, not"
                f" of {first.patient!r}: if they are one person, give both one patient; if the tags do not "
                "distinguish people, leave data.patient empty",
            )


def add_problems(entries: Sequence[Entry], problems: Problems, origin: str, *, allow_mixed: bool) -> None:
    """Adds the problems with the patients: in two splits, with two labels, or with an unclear name.

    Args:
      entries: all entries, with their patients.
      problems: receives one problem for each patient of a table. Of patients from folders or tags it receives one for
        all of them: if folders are numbered from 1 in every class, all folders are concerned.
      origin: TABLE, FOLDERS or TAG: where the patients are named.
      allow_mixed: whether images of one patient may have different labels.
    """
    if origin == TABLE:
        entries = _usable(entries, problems)
    elif origin == FOLDERS:
        _add_similar_folders(entries, problems)
    in_two_splits = _conflicts(entries, lambda entry: entry.split)
    two_labels = [] if allow_mixed else _conflicts(entries, lambda entry: frozenset(entry.labels))
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


def _usable(entries: Sequence[Entry], problems: Problems) -> list[Entry]:
    """Adds the problems with the names in column patient_id; returns the entries that have a usable one."""
    usable = []
    for entry in entries:
        if entry.number and entry.patient and cell_values.is_missing(entry.patient):
            entry.report(problems, f"patient_id is {entry.patient!r}, which means a missing value: give an id")
        elif entry.number and entry.patient and cell_values.is_shortened(entry.patient):
            text = f"patient_id is {entry.patient!r}, a number that a spreadsheet has cut short, so that several"
            entry.report(problems, f"{text} patients may have it: save the column as text")
        elif entry.patient:
            usable.append(entry)
        elif entry.patient is not None:
            entry.report(problems, "patient_id is empty")
    # Names that may mean one patient, such as 007 and 7, or p1 and P1. A file that is its own patient has no such name.
    first_of: dict[str, Entry] = {}
    for entry in usable:
        first_of.setdefault(entry.patient or "", entry)
    names = [patient for patient, first in first_of.items() if patient != first.file]
    for name, other in cell_values.alike(names, fractions=False):
        text = f"patient {other!r} is written nearly like {name!r}{first_of[name].place}"
        fix = "write them alike if they are one, and otherwise differently"
        first_of[other].report(problems, f"{text}: {fix}")
    return usable


def _add_similar_folders(entries: Sequence[Entry], problems: Problems) -> None:
    """Adds one problem for all folders of patients whose names may mean one patient, such as 007 and 7."""
    first_of: dict[str, Entry] = {}
    for entry in entries:
        if entry.patient_folder:
            first_of.setdefault((entry.patient or "").rpartition("/")[2], entry)
    pairs = cell_values.alike(first_of, fractions=False)
    if not pairs:
        return
    texts = [" and ".join(f"{first_of[name].patient_folder}/" for name in pair) for pair in pairs]
    problems.add(
        f"folders of patients that are named nearly alike: {some(texts)}: if they are one person, give both one name; "
        "if they are two, name them differently, not only in letter case, zeros or separators"
    )


def _conflicts(entries: Sequence[Entry], value: Callable[[Entry], Hashable]) -> list[tuple[Entry, Entry]]:
    """Returns, for each patient whose entries differ in `value`, its first entry and the first other one."""
    pairs = in_two((entry.patient for entry in entries), map(value, entries))
    return [(entries[first], entries[other]) for first, other in pairs]


def _report_together(
    pairs: Sequence[tuple[Entry, Entry]], problems: Problems, origin: str, what: str, if_one: str
) -> None:
    """Adds one problem for all pairs of entries that have one patient according to `origin`."""
    if not pairs:
        return
    (first, other), *others = pairs
    same, if_two = _SAME[origin]
    also = f" (so are {some([_place(entry, origin) for entry, _ in others])})" if others else ""
    problems.add(
        f"{_place(first, origin)} and {_place(other, origin)} {same}, who {what}{also}: if they are one person, "
        f"{if_one}; if they are two, {if_two}",
        row=first.number,
    )


def _place(entry: Entry, origin: str) -> str:
    """Returns the folder of the entry's patient, or its file, relative to the root."""
    return f"{entry.patient_folder}/" if origin == FOLDERS and entry.patient_folder else entry.file
