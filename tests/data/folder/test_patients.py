"""Patients from folders and tags: images of one person are never in two splits without a message."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from jaxboost import data
from jaxboost.data.splits import ratios
from jaxboost.errors import UserError
from tests.data.dicoms import write_dicom


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)


def write(root, *files):
    """A PNG file of its own pixels for each path."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(sum(file.encode()) * 1000 + len(list(root.rglob("*"))))).save(path)


def write_tagged(root, **patients):
    """A DICOM file for each name, `CLASS_NUMBER`, with that PatientID."""
    for number, (name, patient) in enumerate(patients.items()):
        path = root / name.split("_")[0] / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(path, pixels(number), PatientID=patient)


def load(root, **options):
    return data.load("mine", source="folder", size=16, root=str(root), **options)


def groups(root, **options):
    split = load(root, **options).splits["all"]
    return dict(zip(split.names.tolist(), split.groups.tolist(), strict=True))


def problem(root, **options):
    with pytest.raises(UserError) as error:
        load(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_within_a_class_are_patients(tmp_path, caplog):
    files = [f"{label}/{label}{number}/{file}.png" for label in "ab" for number in (1, 2) for file in "xy"]
    write(tmp_path, *files, "a/loose.png")
    # The names, and so the splits, that such folders had before folders of one name became one patient.
    assert groups(tmp_path) == {file: file.rpartition("/")[0] for file in files} | {"a/loose.png": "a/loose.png"}
    assert "not in a patient's folder, each counts as a separate patient: a/loose.png" in caplog.text


def test_a_patient_is_the_folder_below_the_class_whatever_is_below_that(tmp_path):
    write(tmp_path, "a/p1/monday/0.png", "a/p1/friday/left/0.png", "a/p1/0.png", "b/p2/monday/0.png")
    assert list(groups(tmp_path).values()) == ["a/p1", "a/p1", "a/p1", "b/p2"]


def test_a_folder_of_all_images_of_a_class_is_not_a_patient(tmp_path):
    write(tmp_path / "flat", *(f"{label}/images/{number}.png" for label in "ab" for number in range(3)))
    assert load(tmp_path / "flat").splits["all"].groups is None
    write(tmp_path / "deep", *(f"{label}/Images/{label}{number}/0.png" for label in "ab" for number in range(3)))
    assert list(groups(tmp_path / "deep").values()) == [
        f"{label}/{label}{number}" for label in "ab" for number in range(3)
    ]
    # With a number it may be a patient's.
    write(tmp_path / "numbered", *(f"{label}/img_{label}{number}/0.png" for label in "ab" for number in range(3)))
    assert len(set(groups(tmp_path / "numbered").values())) == 6


@pytest.mark.parametrize("other", ["p1", "P1", "p1 "])
def test_a_patient_below_two_classes(other, tmp_path):
    write(tmp_path, "a/p1/0.png", f"b/{other}/0.png", f"b/{other}/1.png", "a/p2/0.png", "b/p3/0.png", "b/p3/1.png")
    message = problem(tmp_path)
    assert f"1 problem to fix: a/p1/ and b/{other}/ are folders of the same name and are taken as one pat" in message
    assert "if they are one person, set data.allow_mixed_patients=True" in message
    assert "if they are two, rename one of the folders" in message
    found = groups(tmp_path, allow_mixed_patients=True)
    assert [found[f"{place}/0.png"] for place in ("a/p1", f"b/{other}", "a/p2", "b/p3")] == [
        *("p1", "p1", "a/p2", "b/p3")
    ]


def test_names_in_two_unicode_forms(tmp_path):
    write(tmp_path, "a/Z\u00fc/0.png", "b/Zu\u0308/0.png")
    assert len(set(groups(tmp_path, allow_mixed_patients=True).values())) == 1


def test_patients_of_two_classes_come_to_one_split(tmp_path):
    write(tmp_path, *(f"{label}/p{number}/{file}.png" for label in "ab" for number in range(6) for file in "xy"))
    for seed in range(4):
        dataset = ratios.divide(
            load(tmp_path, allow_mixed_patients=True), ratios=(0.5, 0.25, 0.25), seed=seed, file=None
        )
        where = {}
        for name, split in dataset.splits.items():
            for file in split.names.tolist():
                where.setdefault(file.split("/")[1], set()).add(name)
        assert all(len(found) == 1 for found in where.values())


def test_folders_that_are_numbered_in_each_class_are_one_problem(tmp_path):
    write(tmp_path, *(f"{label}/{number}/0.png" for label in "ab" for number in range(20)))
    message = problem(tmp_path)
    assert "1 problem to fix: a/0/ and b/0/ are folders" in message
    assert "(so are a/1/, a/10/," in message
    assert "and 7 more)" in message


@pytest.mark.parametrize("other", ["a", "b"])
def test_a_patient_in_two_splits(other, tmp_path):
    write(tmp_path, "train/a/p1/x/0.png", "train/b/p2/0.png", f"test/{other}/p1/0.png")
    write(tmp_path, "test/a/p3/0.png", "test/b/p4/0.png")
    message = problem(tmp_path, allow_mixed_patients=True)
    assert f"1 problem to fix: train/a/p1/ and test/{other}/p1/ are folders of the same name" in message
    assert "who is in two splits: if they are one person, give all images to one split" in message


def test_patients_of_tags(tmp_path):
    write_tagged(tmp_path, a_0="Ann", a_1=" Ann ", a_2="Bob", b_3="Cid", b_4="Cid")
    found = groups(tmp_path, patient="tag")
    names = {name: found[f"{name[0]}/{name}.dcm"] for name in ("a_0", "a_1", "a_2", "b_3", "b_4")}
    assert names["a_0"] == names["a_1"] != names["a_2"]
    assert names["b_3"] == names["b_4"]
    assert len(set(names.values())) == 3
    # The id itself must not come into the files of a run.
    assert names["a_0"] == hashlib.sha256(b"jaxboost patient Ann").hexdigest()[:16]
    # Without the option every file is a patient of its own.
    assert load(tmp_path).splits["all"].groups is None


def test_tags_with_a_table(tmp_path):
    write_tagged(tmp_path, a_0="Ann", a_1="Ann", b_2="Cid", b_3="Dan")
    rows = ["a/a_0.dcm,a", "a/a_1.dcm,a", "b/b_2.dcm,b", "b/b_3.dcm,b"]

    def table(header, *cells):
        lines = [f"{row}{cell}" for row, cell in zip(rows, cells, strict=True)]
        (tmp_path / "labels.csv").write_text("\n".join([f"file,label{header}", *lines]))

    table("", "", "", "", "")
    assert len(set(groups(tmp_path, patient="tag").values())) == 3
    table(",split", ",train", ",test", ",train", ",test")
    message = problem(tmp_path, patient="tag")
    assert "a/a_0.dcm and a/a_1.dcm have the same patient id in their tags" in message
    assert "Ann" not in message
    # The table's patients stay; where the tags say that two of them are one, it must be looked at.
    table(",patient_id", ",P1", ",P1", ",P2", ",P2")
    assert list(groups(tmp_path, patient="tag").values()) == ["P1", "P1", "P2", "P2"]
    table(",patient_id", ",P1", ",P3", ",P2", ",P2")
    message = problem(tmp_path, patient="tag")
    assert "row 3, a/a_1.dcm: has the same patient id in its tags as a/a_0.dcm in row 2, and is of 'P3'" in message
    assert list(groups(tmp_path).values()) == ["P1", "P3", "P2", "P2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1", "p1"),
        ("007", "7"),
        ("a-b", "A_B"),
        ("7", "\uff17"),
        (("17", ""), ("17", "H")),
        (("017", "H"), ("17", "h")),
    ],
)
def test_ids_in_tags_that_may_be_one_are_refused(one, other, tmp_path):
    """As two patients they might be a leak; and a message must not have the ids themselves."""
    for number, patient in enumerate((one, other, "Bob", "Cid")):
        name, issuer = (patient, "") if isinstance(patient, str) else patient
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        path = tmp_path / "ab"[number % 2] / f"{number}.dcm"
        write_dicom(path, pixels(number), PatientID=name, IssuerOfPatientID=issuer, SpecificCharacterSet="ISO_IR 192")
    message = problem(tmp_path, patient="tag")
    assert "1 problem to fix: b/1.dcm: has a patient id in its tags that " in message
    how = "differs only in having or not having an issuer" if one == ("17", "") else "is written nearly like"
    assert how in message
    assert " that of a/0.dcm: if they are one person, write the tags alike; if they are two, name the pat" in message
    assert "17" not in message
    # A table says who they are.
    rows = [f"{'ab'[number % 2]}/{number}.dcm,{'ab'[number % 2]},{number}" for number in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,patient_id", *rows]))
    assert len(set(groups(tmp_path, patient="tag").values())) == 4


def test_one_number_of_two_issuers_is_two_patients(tmp_path):
    for number, issuer in enumerate(("A", "B", "C", "D")):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        path = tmp_path / "ab"[number % 2] / f"{number}.dcm"
        write_dicom(path, pixels(number), PatientID="17", IssuerOfPatientID=issuer)
    found = groups(tmp_path, patient="tag")
    assert len(set(found.values())) == 4
    assert found["a/0.dcm"] == hashlib.sha256(b"jaxboost patient 17^^^A").hexdigest()[:16]


@pytest.mark.parametrize(("one", "other"), [("007", "7"), ("p 1", "p1 "), ("a-b", "a_b"), ("7", "\uff17")])
def test_folders_of_patients_that_may_be_one_are_refused(one, other, tmp_path):
    if one == "p 1":
        one, other = "p-a", "p a"
    write(tmp_path, f"a/{one}/0.png", f"b/{other}/1.png", "a/x/2.png", "b/y/3.png")
    message = problem(tmp_path)
    assert f"1 problem to fix: folders of patients that are named nearly alike: a/{one}/ and b/{other}/: if" in message
    # Also where the run allows patients with two labels.
    assert "named nearly alike" in problem(tmp_path, allow_mixed_patients=True)


def test_the_folders_of_patients_below_ignored_splits_are_named(tmp_path):
    write(tmp_path, "train/a/p1/0.png", "train/b/p1/1.png", "test/a/p2/2.png", "test/b/p3/3.png")
    assert "train/a/p1/ and train/b/p1/ are folders" in problem(tmp_path, ignore_splits=True)


def test_files_whose_tags_name_no_patient(tmp_path):
    write_tagged(tmp_path, a_0="Ann", a_1="", a_2="Bob", b_3="anonymous", b_4="Dan")
    message = problem(tmp_path, patient="tag")
    assert "2 problems to fix: a/a_1.dcm: has no patient id in its tags" in message
    assert "b/b_3.dcm: has no patient id in its tags" in message


def test_files_without_tags(tmp_path):
    write_tagged(tmp_path, a_0="Ann", b_1="Bob")
    write(tmp_path, "a/2.png", "b/3.png")
    (tmp_path / "b" / "4.dcm").write_text("text")
    message = problem(tmp_path, patient="tag")
    assert "data.patient=tag: a/2.png, b/3.png are not DICOM files, and nothing names their patients" in message
    assert message.count("b/4.dcm") == 1


def test_a_patient_of_tags_with_two_labels(tmp_path):
    write_tagged(tmp_path, a_0="Ann", a_1="Bob", b_2="Ann", b_3="Dan")
    message = problem(tmp_path, patient="tag")
    assert "a/a_0.dcm and b/b_2.dcm have the same patient id in their tags and are taken as one patient" in message
    found = groups(tmp_path, patient="tag", allow_mixed_patients=True)
    assert found["a/a_0.dcm"] == found["b/b_2.dcm"]
