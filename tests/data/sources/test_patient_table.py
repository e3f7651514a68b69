"""Patients of a published set from the user's own table (`data.groups`)."""

import dataclasses
import logging

import numpy as np
import pytest

from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.sources.patient_table import with_patients
from jaxboost.errors import UserError

SIZES = {"train": 3, "val": 2, "test": 2}
ROWS = ["train/0,p1", "train/1,p1", "train/2,p2", "val/0,p3", "val/1,p4", "test/0,p5", "test/1,p5"]


def make_dataset(**arrays):
    splits = {
        name: Split(images=np.zeros((count, 2, 2, 1), np.uint8), labels=np.arange(count)[:, np.newaxis] % 2, **arrays)
        for name, count in SIZES.items()
    }
    info = DatasetInfo(name="breastmnist", task="binary-class", classes=("a", "b"), channels=1, ndim=2, size=2)
    return Dataset(info=info, splits=splits, baselines={})


def write(folder, rows, header="file,patient_id"):
    path = folder / "patients.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.mark.parametrize("order", [1, -1])
def test_patients_by_name(tmp_path, order):
    found = with_patients(make_dataset(), write(tmp_path, ROWS[::order]), ignore_splits=False)
    assert {name: split.groups.tolist() for name, split in found.splits.items()} == {
        "train": ["p1", "p1", "p2"],
        "val": ["p3", "p4"],
        "test": ["p5", "p5"],
    }
    assert found.splits["train"].names is None


def test_the_table_is_read_like_labels_csv(tmp_path):
    """Separators, other columns, and names of columns."""
    rows = [f"x;{row.replace(',', ';')};nolabel" for row in ROWS]
    found = with_patients(make_dataset(), write(tmp_path, rows, "split;path;patient;label"), ignore_splits=False)
    assert found.splits["val"].groups.tolist() == ["p3", "p4"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*ROWS, "train/3,p9"], "row 9, train/3: breastmnist has no sample of this name"),
        ([*ROWS, "train/0,p1"], "row 9, train/0: is listed twice, first in row 2"),
        (ROWS[1:], "no row for train/0: name the patient of every sample"),
        ([*ROWS[:-1], "test/1,p1"], "patient 'p1' is in train here and in test in row 8: give every patient to one"),
        ([*ROWS[:-1], "test/1,"], "patient_id is empty"),
        ([*ROWS[:-1], "test/1,nan"], "patient_id is 'nan', which means a missing value"),
        ([*ROWS[:-1], "test/1,P5"], "patient 'P5' is written nearly like 'p5'"),
    ],
)
def test_problems(tmp_path, rows, words):
    with pytest.raises(UserError) as error:
        with_patients(make_dataset(), write(tmp_path, rows), ignore_splits=False)
    where = f"{tmp_path}: 1 problem to fix"
    assert str(error.value).startswith((f"{where} (rows of patients.csv): ", f"{where}: "))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_all_problems_are_in_one_message(tmp_path):
    with pytest.raises(UserError, match=r"3 problems to fix.*no sample of this name.*listed twice|no row for"):
        with_patients(make_dataset(), write(tmp_path, [*ROWS[1:], "train/1,p1", "x,p1"]), ignore_splits=False)


def test_folds_divide_patients_anew(tmp_path):
    """A patient of two official splits is then no problem."""
    table = write(tmp_path, [*ROWS[:-1], "test/1,p1"])
    found = with_patients(make_dataset(), table, ignore_splits=True)
    assert found.splits["test"].groups.tolist() == ["p5", "p1"]


def test_columns_and_files(tmp_path, caplog):
    with pytest.raises(UserError, match=r"column 'patient_id' or 'patient' is missing.*if 'Subject' is it|subject"):
        with_patients(make_dataset(), write(tmp_path, ROWS, "file,subject"), ignore_splits=False)
    rows = [f"{row},{number}" for number, row in enumerate(ROWS)]
    with pytest.raises(UserError, match="column 'patientid' is the patient of a sample, rename it to 'patient_id'"):
        with_patients(
            make_dataset(), write(tmp_path, rows, "file,PatientID,age"), ignore_splits=False, columns=("age",)
        )
    with caplog.at_level(logging.WARNING):
        table = write(tmp_path, rows, "file,group,age")
        found = with_patients(make_dataset(), table, ignore_splits=False, columns=("age", "group"))
    assert found.splits["val"].cells.tolist() == [["3", "p3"], ["4", "p4"]]
    assert "has no column patient_id: each sample counts as a patient" in caplog.text
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        with_patients(make_dataset(), str(tmp_path / "nowhere.csv"), ignore_splits=False)


def test_a_data_set_with_patients(tmp_path):
    """The LIDC shapes, or a prepared set with a patient feature."""
    dataset = make_dataset()
    splits = {
        name: dataclasses.replace(split, groups=np.array(["x"] * len(split))) for name, split in dataset.splits.items()
    }
    dataset = Dataset(info=dataset.info, splits=splits, baselines={})
    with pytest.raises(UserError, match=r"data\.groups: breastmnist has patient ids already: leave it empty"):
        with_patients(dataset, write(tmp_path, ROWS), ignore_splits=False)
