"""A user's folder of radiographs: what is read of it, and everything that can be wrong with it."""

import csv
import importlib.util
import logging

import numpy as np
import pytest
from PIL import Image

from jaxboost.data import DatasetInfo, describe_dataset, labels, load
from jaxboost.data.faults import Faults, reason
from jaxboost.errors import UserError

CLASSES = ("normal", "pneumoconiosis")


def picture(number, shape=(40, 30)):
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


class Folder:
    """A folder under construction: `rows` of labels.csv as (patient_id, file, label)."""

    def __init__(self, path):
        self.path, self.rows = path, []
        (path / "images").mkdir()

    def add(self, patient, file, label, image=None):
        self.rows.append((patient, file, label))
        if image is not None:
            Image.fromarray(image).save(self.path / "images" / file)

    def write(self, separator=",", encoding="utf-8", header=("patient_id", "file", "label")):
        with (self.path / "labels.csv").open("w", encoding=encoding, newline="") as file:
            csv.writer(file, delimiter=separator).writerows([header, *self.rows])

    def load(self, **options):
        if not (self.path / "labels.csv").exists():
            self.write()
        return load("radiographs", root=str(self.path), **({"size": 16} | options))

    def fault(self, **options):
        with pytest.raises(UserError) as error:
            self.load(**options)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def empty(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def folder(empty):
    """Six sound images of five patients, rows 2 to 7."""
    for number, patient in enumerate(["P1", "P1", "P2", "P3", "P4", "P5"]):
        empty.add(patient, f"{number}.png", CLASSES[patient > "P2"], picture(number))
    return empty


def test_the_data_set(folder, capfd):
    dataset = folder.load()
    assert dataset.info == DatasetInfo(
        name="radiographs",
        task="binary-class",
        classes=CLASSES,
        channels=1,
        ndim=2,
        size=16,
        n_samples={"all": 6},
        license="",
    )
    assert dataset.baselines == {}
    (split,) = dataset.splits.values()
    assert list(dataset.splits) == ["all"]
    assert (split.images.dtype, split.images.shape) == (np.uint8, (6, 16, 16, 1))
    assert (split.labels.dtype, split.labels.tolist()) == (np.int64, [[0], [0], [0], [1], [1], [1]])
    assert split.groups.tolist() == ["P1", "P1", "P2", "P3", "P4", "P5"]
    assert split.names.tolist() == [f"{number}.png" for number in range(6)]
    for number in range(6):
        expected = Image.fromarray(picture(number)).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(split.images[number, ..., 0], np.asarray(expected))
    # A progress bar on a terminal only.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_forms_of_the_table(folder, separator, encoding):
    expected = folder.load().splits["all"]
    # Another order, more columns, blanks, and an empty line.
    folder.rows = [(f" {label} ", "", file, "x, y; z", patient) for patient, file, label in folder.rows]
    folder.rows.insert(2, ())
    folder.write(separator, encoding, header=("Label", "", "file ", "remark", "patient_id"))
    found = folder.load().splits["all"]
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.groups.tolist() == expected.groups.tolist()


def test_classes(folder):
    folder.write()
    root = str(folder.path)
    assert describe_dataset("radiographs", 16, root=root).classes == CLASSES
    turned = folder.load(classes=CLASSES[::-1])
    assert turned.info.classes == CLASSES[::-1]
    assert turned.splits["all"].labels[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    three = describe_dataset("radiographs", 224, root="/nowhere", classes=("a", "b", "c"))
    assert (three.task, three.size, three.labels_per_sample) == ("multi-class", 224, 1)
    several = describe_dataset("radiographs", 224, classes=("a", "b", "c"), multi_label=True)
    assert (several.task, several.labels_per_sample) == ("multi-label, binary-class", 3)
    with pytest.raises(UserError, match=r"data.classes: 1 classes \(a\), at least 2 are needed"):
        describe_dataset("radiographs", 16, classes=("a",))
    with pytest.raises(UserError, match=r"data.classes: the classes 'TB' and 'tb' are the same but for case"):
        describe_dataset("radiographs", 16, classes=("TB", "tb"))
    with pytest.raises(UserError, match=r"^data.size=0: use 1 or more"):
        describe_dataset("radiographs", 0, classes=("a", "b"))


def test_classes_that_are_found(folder):
    folder.rows[0] = ("P1", "0.png", "Normal")
    assert "labels.csv: the classes 'Normal' and 'normal' are the same but for case" in folder.fault()
    folder.rows = [(patient, file, "normal") for patient, file, _ in folder.rows]
    folder.write()
    assert "labels.csv: 1 classes (normal), at least 2 are needed" in folder.fault()


def test_several_labels(folder):
    folder.rows = [
        (patient, file, label)
        for (patient, file, _), label in zip(folder.rows, ["b|a", "a| b", "", "c", "b", ""], strict=True)
    ]
    folder.write()
    dataset = folder.load(multi_label=True)
    assert (dataset.info.task, dataset.info.classes) == ("multi-label, binary-class", ("a", "b", "c"))
    expected = [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert dataset.splits["all"].labels.tolist() == expected
    message = folder.fault(classes=("a", "b"), multi_label=True)
    assert "1 fault to mend (rows of labels.csv): row 5, 3.png: label 'c' is unknown, did you mean" in message


@pytest.mark.parametrize("kind", ["grey", "colour", "transparent", "palette", "jpeg", "deep", "two levels"])
def test_pictures(empty, kind):
    grey = picture(0)
    other = {
        "grey": lambda: Image.fromarray(grey),
        "colour": lambda: Image.fromarray(np.stack([grey] * 3, -1)),
        "transparent": lambda: Image.merge("LA", [Image.fromarray(grey), Image.new("L", (30, 40), 9)]),
        "palette": lambda: Image.fromarray(grey).convert("P"),
        "jpeg": lambda: Image.fromarray(grey),
        "deep": lambda: Image.fromarray(grey.astype(np.uint16) * 100 + 7),
        "two levels": lambda: Image.fromarray(grey > 99),
    }[kind]()
    name = "a.JPEG" if kind == "jpeg" else "a.png"
    empty.add("P1", name, "x")
    other.save(empty.path / "images" / name)
    empty.add("P2", "b.png", "y", picture(1))
    # The size as it is stored: nothing is resampled.
    found = empty.load(size=30).splits["all"].images[0, ..., 0].astype(int)
    expected = {
        "deep": np.rint((grey - float(grey.min())) / np.ptp(grey) * 255),
        "two levels": (grey > 99) * 255,
    }.get(kind, grey).astype(np.uint8)
    expected = np.asarray(Image.fromarray(expected).resize((30, 30), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - expected).max() <= (60 if kind == "jpeg" else 1)


@pytest.mark.parametrize("where", ["below", "own", "table"])
def test_masks(folder, where, tmp_path_factory):
    own = tmp_path_factory.mktemp("masks")
    masks = {"below": folder.path / "masks", "own": own, "table": folder.path / "lungs.csv"}[where]
    lungs = np.zeros((40, 30), np.uint8)
    lungs[5:20, 3:9], lungs[8:25, 14:28] = 255, 255
    if where == "table":
        # From column 25 of row 4 to column 0 of row 5, and columns 4 to 17 of row 8.
        runs = ["146 6", "245 14"]
        lines = [f"{number}.png,{runs[0]},{runs[1]},40,30" for number in range(6)]
        masks.write_text("\n".join(["image_id,Left Lung,Right Lung,Height,Width", *lines]))
    else:
        masks.mkdir(exist_ok=True)
        for number in range(6):
            Image.fromarray(lungs).save(masks / f"{number}.png")
    split = folder.load(masks=str(masks) if where == "own" else masks.name).splits["all"]
    box = (0, 4, 30, 9) if where == "table" else (3, 5, 28, 25)
    for number in range(6):
        cut = Image.fromarray(picture(number)).crop(box).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(split.images[number, ..., 0], np.asarray(cut))


def test_dicom_in_the_folder(folder):
    pytest.importorskip("pydicom")
    from tests.data.dicoms import write_dicom

    pixels = picture(9, (16, 16)).astype(np.uint16) * 16
    pixels[0, :2] = 0, 4080
    folder.add("P6", "6.DCM", "normal")
    write_dicom(folder.path / "images" / "6.DCM", pixels, bits=12)
    folder.add("P7", "7.dicom", "normal")
    (folder.path / "images" / "7.dicom").write_text("no")
    assert "1 fault to mend (rows of labels.csv): row 9, 7.dicom: is not a DICOM file" in folder.fault()
    folder.rows.pop()
    folder.write()
    np.testing.assert_array_equal(folder.load().splits["all"].images[6, ..., 0], np.rint(pixels / 16))


def test_without_pydicom(folder, monkeypatch):
    for number in (6, 7):
        folder.add("P6", f"{number}.dcm", "normal")
        (folder.path / "images" / f"{number}.dcm").write_text("")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydicom" else find(name))
    assert "2 DICOM files need the package pydicom: `pip install 'jaxboost[dicom]'`" in folder.fault()


def test_every_fault_at_once(folder, monkeypatch):
    monkeypatch.setattr("jaxboost.data.faults._LISTED", 99)
    images, masks = folder.path / "images", folder.path / "masks"
    masks.mkdir()
    whole = np.full((40, 30), 255, np.uint8)
    for number in range(6):
        Image.fromarray(whole).save(masks / f"{number}.png")
    (images / "text.png").write_text("text")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:300])
    (images / "film.gif").write_text("")
    folder.add("P6", "6.png", "pneumoconiosys", picture(6))  # row 8; its mask is missing too
    folder.add("", "7.png", "normal", picture(7))
    Image.fromarray(whole * 0).save(masks / "7.png")
    folder.add("P8", "gone.png", "normal")
    folder.add("P1", "./0.png", "normal")
    folder.add("P8", "text.png", "normal")
    folder.add("P8", "cut.png", "")
    folder.add("P8", "film.gif", "normal|pneumoconiosis")
    folder.add("P8", "../labels.csv", "normal")
    folder.add("P8", "", "normal")
    folder.add("P9", "blank.png", "normal", whole)
    folder.add("P9", "copy.png", "normal", picture(3))
    folder.add("P5", "mixed.png", "normal", picture(8))
    for name in ("blank", "copy", "mixed"):
        Image.fromarray(whole).save(masks / f"{name}.png")
    folder.rows.append(("P9",))
    message = folder.fault(classes=CLASSES, masks="masks")
    expected = [
        "row 7, 5.png: patient 'P5' is 'pneumoconiosis' here and 'normal' in row 19: correct one, or set "
        "data.allow_mixed_patients=True",
        "row 8, 6.png: label 'pneumoconiosys' is unknown, did you mean 'pneumoconiosis'?",
        f"row 8, 6.png: its mask {masks / '6.png'} is missing",
        "row 9, 7.png: patient_id is empty",
        "row 9, 7.png: its mask is empty",
        f"row 10, gone.png: not found in {images}",
        "row 11, ./0.png: is listed in row 2 already",
        "row 12, text.png: is neither a PNG nor a JPEG file",
        "row 13, cut.png: the label is empty",
        "row 13, cut.png: cannot be read (",
        "row 14, film.gif: 'normal|pneumoconiosis' are several labels: give one, or set data.multi_label=True",
        "row 14, film.gif: is not one of .dcm, .dicom, .png, .jpg, .jpeg",
        "row 15, ../labels.csv: is not below images/",
        "row 16: file is empty",
        "row 17, blank.png: shows nothing: every pixel is 255",
        "row 18, copy.png: has the same pixels as 3.png in row 5: 'P9' and 'P3' are one patient, or one file is wrong",
        "row 20: has 1 cells, the header 3: put cells that hold a ',' in quotes",
    ]
    for fault in expected:
        assert fault in message
    # Row 12 to 14's patient is 'normal', '', 'normal|...': one more conflict, and nothing else.
    assert message.startswith(f"{folder.path}: {len(expected) + 1} faults to mend (rows of labels.csv): row 7, 5.png: ")


def test_only_a_dozen_is_listed(empty):
    for number in range(20):
        empty.add(f"P{number}", f"{number}.png", "normal")
    message = empty.fault(classes=CLASSES)
    assert "20 faults to mend" in message
    assert message.count("not found in") == 12
    assert message.endswith("; and 8 more")
    assert "row 13, 11.png" in message


def test_patients_with_different_labels(folder):
    folder.rows[1] = ("P1", "1.png", "pneumoconiosis")
    message = folder.fault()
    assert message.endswith(
        "1 fault to mend (rows of labels.csv): row 2, 0.png: patient 'P1' is 'normal' here and 'pneumoconiosis' in "
        "row 3: correct one, or set data.allow_mixed_patients=True"
    )
    assert folder.load(allow_mixed_patients=True).splits["all"].labels[:2, 0].tolist() == [0, 1]


def test_copies_of_one_patient(folder, caplog):
    folder.add("P1", "copy.png", "normal", picture(0))
    with caplog.at_level(logging.WARNING):
        assert len(folder.load().splits["all"]) == 7
    assert "images with the same pixels, of one patient each: 0.png = copy.png" in caplog.text
    folder.rows[-1] = ("P1", "copy.png", "pneumoconiosis")
    folder.write()
    message = folder.fault(allow_mixed_patients=True)
    assert "copy.png: has the same pixels as 0.png in row 2: their labels differ, 'pneumoconiosis'" in message


def test_images_without_a_row(folder, caplog):
    for number in range(14):
        Image.fromarray(picture(0)).save(folder.path / "images" / f"more{number:02}.png")
    (folder.path / "images" / "._hidden.png").write_text("")
    (folder.path / "images" / "notes.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        folder.load()
    (record,) = caplog.records
    assert record.message.startswith("labels.csv has no row for more00.png, more01.png, ")
    assert record.message.endswith("more11.png and 2 more: left out")


def test_images_that_would_share_a_mask(folder):
    (folder.path / "masks").mkdir()
    for number in range(6):
        Image.fromarray(np.ones((40, 30), np.uint8)).save(folder.path / "masks" / f"{number}.png")
    folder.add("P9", "0.jpg", "normal", picture(10))
    assert "row 8, 0.jpg: has the same mask as 0.png in row 2: rename one of them" in folder.fault(masks="masks")
    assert len(folder.load().splits["all"]) == 7


def test_masks_that_are_not_there(folder):
    folder.rows[0] = ("P1", "0.png", "norml")
    message = folder.fault(masks="none", classes=CLASSES, allow_mixed_patients=True)
    assert "2 faults to mend" in message
    assert "data.masks: none is neither a folder of PNG files nor a .csv or .csv.gz file" in message
    assert "row 2, 0.png: label 'norml' is unknown, did you mean 'normal'?" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "labels.csv: not found: write it, a table with the columns patient_id, file, label"),
        (b"", "labels.csv: column 'patient_id' is missing; found: "),
        (b"patient_id,File\n", "labels.csv: column 'label' is missing; found: patient_id, file"),
        (b"patient_id,file,label,label\n", "labels.csv: column 'label' is there twice"),
        (b"patient_id,file,label\n\n,,\n", "labels.csv: no rows: write one for each image"),
        (
            "patient_id,file,label\nMüller,0.png,normal\n".encode("latin-1"),
            "labels.csv: not UTF-8 text: save it as CSV",
        ),
        (b"patient_id,file,label\nP1\n", "1 fault to mend (rows of labels.csv): row 2: has 1 cells, the header 3"),
        (b"patient_id,file,label\nP1,a,b,c\n", "row 2: has 4 cells, the header 3: put cells that hold a ',' in quotes"),
        (b"patient_id,file,label\nP1,a," + b"x" * 200_000, "labels.csv: not a CSV file: field larger than"),
    ],
)
def test_tables_that_cannot_be_read(folder, content, message):
    folder.write()
    table = folder.path / "labels.csv"
    table.unlink() if content is None else table.write_bytes(content)
    for attempt in (
        lambda: describe_dataset("radiographs", 16, root=str(folder.path)),
        lambda: load("radiographs", size=16, root=str(folder.path), classes=CLASSES),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert message in str(error.value)


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^data.root is empty: set it to the folder that holds images/ and labels.csv"):
        load("radiographs", size=16, root="")
    (tmp_path / "labels.csv").write_text("patient_id,file,label\nP1,a.png,normal\n")
    with pytest.raises(UserError, match="images: not found: put the images there"):
        load("radiographs", size=16, root=str(tmp_path), classes=CLASSES)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(UserError, match=r"labels.csv: cannot read the file: Is a directory"):
        load("radiographs", size=16, root=str(tmp_path))


def test_options_are_for_radiographs_alone(tmp_path):
    for option in ({"classes": ("a", "b")}, {"multi_label": True}):
        with pytest.raises(UserError, match=r"config field data.*radiographs only, breastmnist has its own"):
            describe_dataset("breastmnist", 28, **option)
    for option in ({"masks": "x"}, {"allow_mixed_patients": True}):
        with pytest.raises(UserError, match=r"config field data.*radiographs only, lidcshapes3d has its own"):
            load("lidcshapes3d", size=28, root=str(tmp_path), **option)


def test_messages_of_other_packages():
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 1000))) < 200
    Faults("folder").raise_any()


def test_the_order_of_labels_does_not_matter():
    one, other = labels.Row(2, "P", "a", "x|y"), labels.Row(3, "P", "b", "y | x")
    assert labels.same_labels(one, other, multi_label=True)
    assert not labels.same_labels(one, other, multi_label=False)
