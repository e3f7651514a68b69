"""Cells of labels.csv that mean the same or are missing, and the forms that a table can have."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from jaxboost.data import load
from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import labels, patients
from jaxboost.errors import UserError
from tests.mutations import mutations


def image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def read(tmp_path, labels_of_rows, patients=None, **options):
    """The data set of images 0.png, 1.png, ... with these labels, and patients."""
    for number in range(len(labels_of_rows)):
        image(tmp_path / f"{number}.png", number)
    header = "file,label" if patients is None else "file,label,patient_id"
    lines = [f'{number}.png,"{label}"' for number, label in enumerate(labels_of_rows)]
    if patients is not None:
        lines = [f'{line},"{patient}"' for line, patient in zip(lines, patients, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    return load("mine", source="folder", size=8, root=str(tmp_path), **options)


def refused(tmp_path, *arguments, **options):
    with pytest.raises(UserError) as error:
        read(tmp_path, *arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        (["0", "1", "0.0", "1.0"], ("0", "1"), [0, 1, 0, 1]),
        (["0.0", "1.0", "1.", "0.00"], ("0", "1"), [0, 1, 1, 0]),
        (["a", " b", "a ", "b"], ("a", "b"), [0, 1, 0, 1]),
        (["a", "b", "a\u00a0", "\u200bb"], ("a", "b"), [0, 1, 0, 1]),
        (["a c", "b", "a\u00a0c", "a  c"], ("a c", "b"), [0, 1, 0, 0]),
        (["caf\u00e9", "b", "cafe\u0301", "b"], ("b", "caf\u00e9"), [1, 0, 1, 0]),
        (["a", "b", "a\ufeff", "b\u00ad"], ("a", "b"), [0, 1, 0, 1]),
        (["0.5", "1", "0.5", "1.0"], ("0.5", "1"), [0, 1, 0, 1]),
        (["1.10", "1.2", "1.10", "1.2"], ("1.10", "1.2"), [0, 1, 0, 1]),
    ],
)
def test_one_class_in_two_forms(tmp_path, given, classes, expected):
    dataset = read(tmp_path, given)
    assert dataset.info.classes == classes
    assert dataset.splits["all"].labels[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Image Index,label", "column 'file' or 'path' is missing; found: image index, label: if 'image index' is it,"),
        ("image_id,label", "if 'image_id' is it, rename that column to 'file'"),
        ("file,Finding Labels", "if 'finding labels' is it, rename that column to 'label'"),
        ("file,Target", "if 'target' is it, rename that column to 'label'"),
        ("a,label", "column 'file' or 'path' is missing; found: a, label"),
    ],
)
def test_columns_of_other_names(tmp_path, header, expected):
    (tmp_path / "labels.csv").write_text(f"{header}\n0.png,1\n")
    with pytest.raises(UserError) as error:
        labels.read_entries(tmp_path / "labels.csv", Problems(tmp_path))
    assert expected in str(error.value)


@pytest.mark.parametrize("patient", ["1.23457E+11", "1E+10", "1.23457e+11"])
def test_numbers_of_patients_that_a_spreadsheet_cut_short(tmp_path, patient):
    message = refused(tmp_path, "abab", [patient, "7", "8", "9"])
    assert f"row 2, 0.png: patient_id is {patient!r}, a number that" in message
    assert read(tmp_path, "abab", ["1E10", "12E", "E+10", "1.2"]).splits["all"].groups.tolist()[0] == "1E10"


def test_patients_with_a_number_behind_that_of_their_hospital(tmp_path):
    patients = ["1.1", "1.10", "1.2", "2.1"]
    assert read(tmp_path, "abab", patients).splits["all"].groups.tolist() == patients
    assert "patient '1.00' is written nearly like '1'" in refused(tmp_path, "abab", ["1", "1.00", "1.2", "2.1"])
    # Labels of such numbers are of one class.
    with pytest.raises(UserError, match=r"'0\.5' and '0\.50' differ only in their form"):
        labels.check_classes(["0.5", "0.50"], "x", multi_label=False)


@pytest.mark.parametrize("between", [",", ";", ", ", " ; "])
def test_several_labels_with_something_else_between_them(between):
    classes = ["effusion", f"effusion{between}mass", "nodule, solid"]
    with pytest.raises(UserError, match=r"the class 'effusion.*mass' seems to be several: put '\|' between labels"):
        labels.check_classes(classes, "x", multi_label=True)
    assert labels.check_classes(classes, "x", multi_label=False) == tuple(classes)
    assert labels.check_classes(["effusion", "nodule, solid"], "x", multi_label=True) == ("effusion", "nodule, solid")


def test_a_table_that_is_too_large(tmp_path):
    with (tmp_path / "labels.csv").open("wb") as file:
        file.write(b"file,label\n0.png,1\n")
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has 1099511627776 bytes, too many for a table: leave other columns out"):
        labels.read_entries(tmp_path / "labels.csv", Problems(tmp_path))


@pytest.mark.parametrize("classes", [(0, 1), ("0.0", "1.0"), ("0,1",), (0.0, 1.0)])
def test_classes_that_the_config_names(tmp_path, classes):
    dataset = read(tmp_path, ["0.0", "1.0", "1"], classes=classes)
    assert dataset.info.classes == ("0", "1")
    assert dataset.splits["all"].labels[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("given", "pair"),
    [
        (("1", "01", "2"), "'01' and '1' differ only in their form"),
        (("00", "0", "1"), "'0' and '00' differ only in their form"),
        (("1", "+1", "0"), "'+1' and '1' differ only in their form"),
        (("0.5", "0.50", "1"), "'0.5' and '0.50' differ only in their form"),
        (("0,5", "0.5", "1"), "'0,5' and '0.5' differ only in their form"),
        (("\uff11", "1", "0"), "'1' and '\uff11' differ only in their form"),
        (("a-b", "a_b", "c"), "'a-b' and 'a_b' differ only in their form"),
        (("covid 19", "Covid\u200d 19", "c"), "differ only in their form"),
        (("TB", "tb", "c"), "'TB' and 'tb' differ only in case"),
        (("True", "true", "False"), "'True' and 'true' differ only in case"),
        (("True", "1", "0", "False"), "'True' and '1' mean the same"),
        (("True", "1.0", "False"), "'True' and '1' mean the same"),
        (("yes", "y", "no"), "'yes' and 'y' mean the same"),
        (("0", "No", "1"), "'0' and 'No' mean the same"),
    ],
)
def test_two_classes_that_may_be_one(tmp_path, given, pair):
    assert pair in refused(tmp_path, given)


@pytest.mark.parametrize(
    "given", [("1", "-1"), ("1", "11"), ("1-2", "12"), ("1.1", "1.10a"), ("t", "y", "f", "n"), ("grade 1", "grade 10")]
)
def test_classes_that_are_two(tmp_path, given):
    assert set(read(tmp_path, given).info.classes) == set(given)


@pytest.mark.parametrize("cell", ["nan", "NaN", " nan", "None", "NA", "N/A", "<NA>", "null", "#N/A", "NaT", "none"])
def test_missing_labels(tmp_path, cell):
    message = refused(tmp_path, ["a", "b", cell])
    assert (
        f"row 4, 2.png: label {cell.strip()!r} means a missing label: give a label, or name it in data.classes"
        in message
    )
    assert "1 problem to fix" in message
    assert f"row 4, 2.png: label {cell.strip()!r} means a missing label" in refused(
        tmp_path, ["a", "b|a", cell], multi_label=True
    )
    classes = ("a", "b", cell.strip())
    assert read(tmp_path, ["a", "b", cell], classes=classes).splits["all"].labels[:, 0].tolist() == [0, 1, 2]
    assert "name the classes in data.classes" in refused(tmp_path, ["a", "a", cell])


def test_empty_labels(tmp_path):
    for cell in ("", " ", "\u200b", "\u00a0"):
        assert "row 4, 2.png: the label is empty" in refused(tmp_path, ["a", "b", cell])


def test_several_labels_in_two_forms(tmp_path):
    dataset = read(tmp_path, ["0|1.0", "1", " 0.0 | 2", ""], multi_label=True)
    assert dataset.info.classes == ("0", "1", "2")
    assert dataset.splits["all"].labels.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["7", "7.0", "8.0", "9"], ["7", "7", "8", "9"]),
        (["7.0", "7.0", "8.0", "9.0"], ["7.0", "7.0", "8.0", "9.0"]),
        (["1.0", "1.1", "2.0", "2.1"], ["1.0", "1.1", "2.0", "2.1"]),
        (["p 1", " p 1", "p\u00a01", "p  1"], ["p 1"] * 4),
        (["p1", "p1\u200b", "\ufeffp1", "p2"], ["p1", "p1", "p1", "p2"]),
        (["M\u00fcller", "Mu\u0308ller", "x", "y"], ["M\u00fcller", "M\u00fcller", "x", "y"]),
        (["12", "1-2", "1 2", "102"], ["12", "1-2", "1 2", "102"]),
    ],
)
def test_patients_in_two_forms(tmp_path, given, expected):
    dataset = read(tmp_path, "abab", given, allow_mixed_patients=True)
    assert dataset.splits["all"].groups.tolist() == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("7", "007"), ("1.0", "1"), ("P1", "p1"), ("p1", "p\u200d1"), ("\uff11", "1"), ("a-b", "a_b"), ("ﬁ", "fi")],
)
def test_two_patients_that_may_be_one(tmp_path, one, other):
    patients = [one, other, "1.5" if "." in one else "z"]
    message = refused(tmp_path, "aba", patients)
    assert f"row 3, 1.png: patient {other!r} is written nearly like {one!r} in row 2" in message
    assert "write them alike if they are one, and otherwise differently" in message


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "NA", "null", "<NA>"])
def test_missing_patients(tmp_path, cell):
    message = refused(tmp_path, "abab", ["p", "q", cell, cell])
    assert message.count(f"patient_id is {cell!r}, which means a missing value: give an id") == 2


def table(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    problems = Problems(tmp_path)
    found = labels.read_entries(tmp_path / "labels.csv", problems)
    problems.raise_any()
    return [(row.number, row.file, row.label, row.patient) for row in found]


@pytest.mark.parametrize(
    "content",
    [
        b"file,label,patient_id\nx y.png,a,P1\nz.png,b,P2\n",
        b"file;label;patient_id\nx y.png;a;P1\nz.png;b;P2\n",
        b"file\tlabel\tpatient_id\nx y.png\ta\tP1\nz.png\tb\tP2\n",
        b"file,label,patient_id\r\nx y.png,a,P1\r\nz.png,b,P2\r\n",
        b"file,label,patient_id\rx y.png,a,P1\rz.png,b,P2\r",
        b"\xef\xbb\xbffile,label,patient_id\nx y.png,a,P1\nz.png,b,P2",
        "\u200bFile , LABEL\u00a0, Patient_ID\nx y.png,a,P1\nz.png,b,P2\n".encode(),
        b'"file", "label", "patient_id"\n"x y.png", "a", "P1"\n"z.png", "b", "P2"\n',
        b"file,label,patient_id,\nx y.png,a,P1,\nz.png,b,P2,\n",
        b"file,label,patient_id\nx y.png,a,P1,,\nz.png,b,P2, ,\n",
        b'file,label,patient_id,note\nx y.png,a,P1,"two\nlines"\nz.png,b,P2,\n',
        b"file,runs,label,patient_id\nx y.png," + b"1 2 " * 100_000 + b",a,P1\nz.png,,b,P2\n",
    ],
)
def test_forms_of_a_table(tmp_path, content):
    assert table(tmp_path, content) == [(2, "x y.png", "a", "P1"), (3, "z.png", "b", "P2")]


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (b"# made by us\n#, 2024\nfile,label\nx.png,a\n#1.png,b\n", 4),
        (b"sep=;\nfile;label\nx.png;a\n#1.png;b\n", 3),
        (b'"sep=;"\r\nfile;label\r\nx.png;a\r\n#1.png;b\r\n', 3),
    ],
)
def test_lines_before_the_header(tmp_path, content, first):
    assert table(tmp_path, content) == [(first, "x.png", "a", None), (first + 1, "#1.png", "b", None)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\nx.png,a\n".encode("utf-16"), "it looks like UTF-16, as Excel's 'Unicode text' is"),
        ("file\tlabel\nx.png\ta\n".encode("utf-16-le"), "it looks like UTF-16"),
        ("file,label\nx.png,a\ny.png,\u00e9\n".encode("latin-1"), "not UTF-8 text: save it as CSV in UTF-8 (line 3)"),
        (b"file,label\nx.png,a\n" + bytes(3), "has a NUL byte at byte 20: the file is damaged"),
        (b"file,label\nx.png,a\ny.p\0g,b\n", "has a NUL byte at byte 23"),
        (b"PK\x03\x04" + bytes(50), "is an Excel or a zip file, not CSV: open it and save it as CSV in UTF-8"),
        (b"\x1f\x8b" + bytes(50), "is a gzip"),
        (
            b'file,label\n"x.png,a\ny.png,b\n',
            "not a CSV file: unexpected end of data, in the row that begins in line 2",
        ),
        (b'file,label\nx.png,a\ny.png,"b\nz.png,a\n', "in the row that begins in line 3: look for a quote"),
        (b'file,label\n"x.png,a\n"y.png",b\n', "in the row that begins in line 2: look for a quote"),
        (
            b'file,label,note\nx.png,a,"wide\ny.png,b,\nz.png,a,5"\n',
            "a cell of the row that begins in line 2 holds whole rows, up to line 4: a quote is not closed",
        ),
        (b"file,label\n" + b"x" * 5000 + b",a\n", "row 2: file has 5000 characters: look for a missing quote"),
        (b"file,label,Label \nx.png,a,a\n", "column 'label' appears twice"),
        (b"file,path,label\nx.png,x.png,a\n", "column 'file' or 'path' appears twice"),
        (b"", "column 'file' or 'path' is missing"),
        (b"# nothing\n", "column 'file' or 'path' is missing"),
    ],
)
def test_ambiguous_tables(tmp_path, content, said):
    with pytest.raises(UserError) as error:
        table(tmp_path, content)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_of_class_folders(tmp_path):
    """Folders of one class in two forms, as two systems write them."""
    for number, name in enumerate(("train/0", "train/caf\u00e9", "test/0.0", "test/cafe\u0301")):
        image(tmp_path / name / "x.png", number)
    dataset = load("mine", source="folder", size=8, root=str(tmp_path))
    assert dataset.info.classes == ("0", "caf\u00e9")
    assert {split: part.labels[:, 0].tolist() for split, part in dataset.splits.items()} == {
        "train": [0, 1],
        "test": [0, 1],
    }


def test_a_folder_may_be_named_none(tmp_path):
    for number, name in enumerate(("none", "mild")):
        image(tmp_path / name / "x.png", number)
    assert load("mine", source="folder", size=8, root=str(tmp_path)).info.classes == ("mild", "none")


def test_messages_without_a_table_name_no_row():
    rows = [
        labels.Entry(0, "train/a/p/0.png", "a", ("a",), "p", "train"),
        labels.Entry(0, "test/a/p/1.png", "a", ("a",), "p", "test"),
        labels.Entry(0, "test/b/p/2.png", "b", ("b",), "p", "test"),
        labels.Entry(0, "test/b/P/3.png", "b", ("b",), "P", "test"),
    ]
    problems = Problems("folder")
    patients.add_problems(rows, problems, patients.TABLE, allow_mixed=False)
    with pytest.raises(UserError) as error:
        problems.raise_any()
    message = str(error.value)
    assert "train/a/p/0.png: patient 'p' is in train here and in test (test/a/p/1.png): give every patient" in message
    assert "patient 'p' is 'a' here and 'b' (test/b/p/2.png): correct one" in message
    assert "test/b/P/3.png: patient 'P' is written nearly like 'p' (train/a/p/0.png)" in message
    assert "row" not in message


def test_damaged_tables(tmp_path):
    """A damaged table is read, or refused in one line."""
    content = 'file,label,patient_id,split\n0.png,a,7,train\n"1.png",b,8.0,test\n2.png,é,9,val\n'.encode()
    for _, damaged in mutations(content, 300, header=len(content)):
        with contextlib.suppress(UserError):
            table(tmp_path, damaged)


def test_very_many_classes_are_not_compared(caplog):
    """A column of names in the place of labels."""
    rows = [labels.Entry(number + 2, f"{number}.png", labels=(f"label{number}",)) for number in range(20_000)]
    classes, _ = labels.find_classes(rows)
    labels.check_classes(classes, "x", multi_label=False)
    labels.warn_of_misspelling(rows, classes)
    problems = Problems("folder")
    labels.to_numbers([labels.Entry(2, "x.png", labels=("lable",))] * 1000, classes, problems, multi_label=False)
    assert not caplog.text
