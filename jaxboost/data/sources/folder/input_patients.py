"""The patients of files to predict: from a table or from folders, as in a user's folder."""

import logging
import os
import pathlib
from collections.abc import Collection, Sequence

from jaxboost.data.dataset import SPLITS
from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import labels, patients
from jaxboost.data.sources.folder.inputs import folders as input_folders
from jaxboost.data.walk import printable, some

logger = logging.getLogger(__name__)


def find(inputs: Sequence[str], files: Sequence[pathlib.Path], classes: Collection[str]) -> list[str]:
    """The patient of each file.

    A folder among the inputs names the patients of its files: by the table labels.csv in it (columns `file` and
    `patient_id`), or else by its folders, FOLDER/PATIENT/file. Folders that are named like a split or a class are
    passed over, as are images/ and the like: the layouts of a user's folder for training work too. A file whose patient
    is unknown is a patient of its own, and a warning names such files. A name that several folders give is one patient,
    and a warning names it too.

    Args:
      inputs: as for `inputs.find`.
      files: the files that it found, or some of them.
      classes: the classes of the model.

    Raises:
      UserError: a table has problems.
    """
    folders = input_folders(inputs)
    tables = {folder: _from_table(folder) for folder in folders}
    passed = {*SPLITS, *classes}
    found, loose = [], []
    named_by: dict[str, set[pathlib.Path]] = {}
    for file in files:
        patient = ""
        # The innermost folder, if one is inside another.
        for folder in sorted((each for each in folders if each in file.parents), key=lambda each: -len(each.parts)):
            table = tables[folder]
            patient = _from_folders(file.relative_to(folder), passed) if table is None else table.get(_key(file), "")
            if patient:
                named_by.setdefault(patient, set()).add(folder)
                break
        if not patient:
            patient = printable(file)
            loose.append(patient)
        found.append(patient)
    if loose:
        logger.warning("the patient is unknown, and each of these files counts as one: %s", some(loose))
    if several := [patient for patient, by in named_by.items() if len(by) > 1]:
        logger.warning(
            "patients that several of the folders have count as one each: %s; if they are different people, predict the"
            " folders one at a time",
            some(several),
        )
    return found


def _from_table(folder: pathlib.Path) -> dict[str, str] | None:
    """File -> patient of the table in a folder; None if there is no table with patients."""
    path = folder / labels.FILE
    if not path.is_file() or not labels.has_column(path, "patient"):
        return None
    problems = Problems(folder)
    entries = labels.read_entries(path, problems, required=("file", "patient"))
    patients.add_problems(entries, problems, patients.TABLE, allow_mixed=True)
    problems.raise_any()
    # The two places where the files of a table may be.
    bases = (folder, folder / "images")
    return {_key(base / entry.file): entry.patient or "" for base in bases for entry in entries}


def _from_folders(file: pathlib.Path, passed: Collection[str]) -> str:
    """The first folder of a relative path that is not passed over; "" if there is none."""
    parts = file.parts[:-1]
    return next((part for part in parts if part not in passed and part.lower() not in patients.ALL_IMAGES), "")


def _key(path: pathlib.Path) -> str:
    return os.path.realpath(path)
