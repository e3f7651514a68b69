"""A user's folder of 2-D images: its data set, and the problems that it can have."""

import csv
import functools
import importlib.util
import logging
import os
import pathlib

import numpy as np
import pydicom.data
import pytest
from PIL import Image

from jaxboost.data import describe_dataset, load
from jaxboost.data.dataset import DatasetInfo
from jaxboost.data.problems import Problems, reason
from jaxboost.data.sources.folder import labels
from jaxboost.errors import UserError

CLASSES = ("normal", "pneumoconiosis")


describe = functools.partial(describe_dataset, source="folder")


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
        return load("mine", source="folder", root=str(self.path), **({"size": 16} | options))

    def problem(self, **options):
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
        name="mine",
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
    assert describe("mine", 16, root=root).classes == CLASSES
    turned = folder.load(classes=CLASSES[::-1])
    assert turned.info.classes == CLASSES[::-1]
    assert turned.splits["all"].labels[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    three = describe("mine", 224, root="/nowhere", classes=("a", "b", "c"))
    assert (three.task, three.size, three.labels_per_sample) == ("multi-class", 224, 1)
    several = describe("mine", 224, classes=("a", "b", "c"), multi_label=True)
    assert (several.task, several.labels_per_sample) == ("multi-label, binary-class", 3)
    with pytest.raises(UserError, match=r"data.classes: 1 classes \(a\), at least 2 are needed"):
        describe("mine", 16, classes=("a",))
    with pytest.raises(UserError, match=r"data.classes: the classes 'TB' and 'tb' differ only in case"):
        describe("mine", 16, classes=("TB", "tb"))


def test_classes_that_are_found(folder):
    folder.rows[0] = ("P1", "0.png", "Normal")
    assert "labels.csv: the classes 'Normal' and 'normal' differ only in case" in folder.problem()
    folder.rows = [(patient, file, "normal") for patient, file, _ in folder.rows]
    folder.write()
    assert "labels.csv: 1 classes (normal), at least 2 are needed" in folder.problem()


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
    message = folder.problem(classes=("a", "b"), multi_label=True)
    assert "1 problem to fix (rows of labels.csv): row 5, 3.png: label 'c' is unknown, did you mean" in message


@pytest.mark.parametrize(
    "kind",
    ["grey", "grey as colour", "transparent", "palette", "jpeg", "deep", "two levels", "tiff", "float tiff", "npy"],
)
def test_pictures(empty, kind):
    grey = picture(0)
    other = {
        "grey": lambda: Image.fromarray(grey),
        "grey as colour": lambda: Image.fromarray(np.stack([grey] * 3, -1)),
        "transparent": lambda: Image.merge("LA", [Image.fromarray(grey), Image.new("L", (30, 40), 9)]),
        "palette": lambda: Image.fromarray(grey).convert("P"),
        "jpeg": lambda: Image.fromarray(grey),
        "deep": lambda: Image.fromarray(grey.astype(np.uint16) * 100 + 7),
        "two levels": lambda: Image.fromarray(grey > 99),
        "tiff": lambda: Image.fromarray(grey.astype(np.uint16) * 100 + 7),
        "float tiff": lambda: Image.fromarray(grey / np.float32(7) - 3),
        "npy": lambda: grey.astype(np.int32) * 1000 - 2**30,
    }[kind]()
    name = {"jpeg": "a.JPEG", "tiff": "a.tif", "float tiff": "a.TIFF", "npy": "a.npy"}.get(kind, "a.png")
    empty.add("P1", name, "x")
    np.save(empty.path / "images" / name, other) if kind == "npy" else other.save(empty.path / "images" / name)
    empty.add("P2", "b.png", "y", picture(1))
    # The size as it is stored: nothing is resampled.
    found = empty.load(size=30).splits["all"].images[0, ..., 0].astype(int)
    stretched = np.rint((grey - float(grey.min())) / np.ptp(grey) * 255)
    expected = {"two levels": (grey > 99) * 255} | dict.fromkeys(("deep", "tiff", "float tiff", "npy"), stretched)
    expected = expected.get(kind, grey).astype(np.uint8)
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
    assert "1 problem to fix (rows of labels.csv): row 9, 7.dicom: is not a DICOM file" in folder.problem()
    folder.rows.pop()
    folder.write()
    np.testing.assert_array_equal(folder.load().splits["all"].images[6, ..., 0], np.rint(pixels / 16))


def test_without_pydicom(folder, monkeypatch):
    for number in (6, 7):
        folder.add("P6", f"{number}.dcm", "normal")
        (folder.path / "images" / f"{number}.dcm").write_text("")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydicom" else find(name))
    assert "2 DICOM files need the package pydicom: run this with `uv run --extra dicom ...`" in folder.problem()


def test_all_problems_at_once(folder, monkeypatch):
    monkeypatch.setattr("jaxboost.data.problems.LISTED", 99)
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
    message = folder.problem(classes=CLASSES, masks="masks")
    expected = [
        "row 7, 5.png: patient 'P5' is 'pneumoconiosis' here and 'normal' in row 19: correct one, or set "
        "data.allow_mixed_patients=True",
        "row 8, 6.png: label 'pneumoconiosys' is unknown, did you mean 'pneumoconiosis'?",
        f"row 8, 6.png: its mask {masks / '6.png'} is missing",
        "row 9, 7.png: patient_id is empty",
        "row 9, 7.png: its mask is empty",
        f"row 10, gone.png: not found in {images}",
        "row 11, ./0.png: is listed in row 2 already",
        "row 12, text.png: is neither a PNG nor a JPEG nor a TIFF file that can be read",
        "row 13, cut.png: the label is empty",
        "row 13, cut.png: is a damaged PNG file: it ends early",
        "row 14, film.gif: 'normal|pneumoconiosis' is several labels: give one, or set data.multi_label=True",
        "row 14, film.gif: is not one of .dcm, .dicom, .png, .jpg, .jpeg, .tif, .tiff, .npy",
        f"row 15, ../labels.csv: is not below {folder.path}",
        "row 16: file is empty",
        "row 17, blank.png: shows nothing: every value is 255",
        "row 18, copy.png: has the same pixels as 3.png in row 5: 'P9' and 'P3' are one patient, or one file is wrong",
        "row 20: has 1 cells, the header 3: put cells that hold a ',' in quotes",
    ]
    for problem in expected:
        assert problem in message
    # Row 12 to 14's patient is 'normal', '', 'normal|...': one more conflict, and nothing else.
    assert message.startswith(
        f"{folder.path}: {len(expected) + 1} problems to fix (rows of labels.csv): row 7, 5.png: "
    )


def test_a_dozen_is_listed_and_all_are_in_the_log(empty, caplog):
    for number in range(20):
        empty.add(f"P{number}", f"{number}.png", CLASSES[number % 2])
    message = empty.problem(classes=CLASSES)
    assert "20 problems to fix" in message
    assert message.count("not found in") == 12
    assert message.endswith("; and 8 more, all listed in the lines above")
    assert "row 13, 11.png" in message
    listed = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert listed == [f"row {number + 2}, {number}.png: not found in {empty.path / 'images'}" for number in range(20)]


def test_patients_with_different_labels(folder):
    folder.rows[1] = ("P1", "1.png", "pneumoconiosis")
    message = folder.problem()
    assert message.endswith(
        "1 problem to fix (rows of labels.csv): row 2, 0.png: patient 'P1' is 'normal' here and 'pneumoconiosis' in "
        "row 3: correct one, or set data.allow_mixed_patients=True"
    )
    assert folder.load(allow_mixed_patients=True).splits["all"].labels[:2, 0].tolist() == [0, 1]


def test_copies_of_one_patient(folder, caplog):
    folder.add("P1", "copy.png", "normal", picture(0))
    with caplog.at_level(logging.WARNING):
        assert len(folder.load().splits["all"]) == 7
    assert "images with the same pixels, each taken as one patient: 0.png = copy.png" in caplog.text
    folder.rows[-1] = ("P1", "copy.png", "pneumoconiosis")
    folder.write()
    message = folder.problem(allow_mixed_patients=True)
    assert "copy.png: has the same pixels as 0.png in row 2: their labels differ, 'pneumoconiosis'" in message


def test_images_without_a_row(folder, caplog):
    for number in range(14):
        Image.fromarray(picture(0)).save(folder.path / "images" / f"more{number:02}.png")
    (folder.path / "images" / "._hidden.png").write_text("")
    (folder.path / "images" / "notes.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        info = folder.load(size=20).info
    # A study's report tells how many images were not taken.
    assert info.excluded == {"images without a row in labels.csv": 14}
    (record,) = caplog.records
    assert record.message == (
        "left out: thumbnails and other files that systems make: 1 (._hidden.png); images without a row in labels.csv:"
        f" 14 ({', '.join(f'more{number:02}.png' for number in range(12))} and 2 more); files that are not images: 1"
        " (notes.txt)"
    )


def test_images_that_would_share_a_mask(folder):
    (folder.path / "masks").mkdir()
    for number in range(6):
        Image.fromarray(np.ones((40, 30), np.uint8)).save(folder.path / "masks" / f"{number}.png")
    folder.add("P9", "0.jpg", "normal", picture(10))
    assert "row 8, 0.jpg: has the same mask as 0.png in row 2: rename one of them" in folder.problem(masks="masks")
    assert len(folder.load().splits["all"]) == 7


def test_missing_masks(folder):
    folder.rows[0] = ("P1", "0.png", "norml")
    message = folder.problem(masks="none", classes=CLASSES, allow_mixed_patients=True)
    assert "2 problems to fix" in message
    assert "data.masks: none is neither a folder of PNG files nor a .csv or .csv.gz file" in message
    assert "row 2, 0.png: label 'norml' is unknown, did you mean 'normal'?" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": found neither labels.csv nor two class folders or more: write labels.csv, a table with the columns"),
        (b"", "labels.csv: column 'file' or 'path' is missing; found: "),
        (b"patient_id,File\n", "labels.csv: column 'label' is missing; found: patient_id, file"),
        (b"patient_id,file,label,label\n", "labels.csv: column 'label' appears twice"),
        (b"path,file,label\n", "labels.csv: column 'file' or 'path' appears twice: path, file, label"),
        (b"patient_id,file,label\n\n,,\n", "labels.csv: no rows: write one for each image"),
        (
            "patient_id,file,label\nMüller,0.png,normal\n".encode("latin-1"),
            "labels.csv: not UTF-8 text: save it as CSV",
        ),
        (b"patient_id,file,label\nP1\n", "1 problem to fix (rows of labels.csv): row 2: has 1 cells, the header 3"),
        (b"patient_id,file,label\nP1,a,b,c\n", "row 2: has 4 cells, the header 3: put cells that hold a ',' in quotes"),
        (b"patient_id,file,label\nP1,a," + b"x" * 200_000, "row 2: label has 200000 characters: look for a missing"),
    ],
)
def test_tables_that_cannot_be_read(folder, content, message):
    folder.write()
    table = folder.path / "labels.csv"
    table.unlink() if content is None else table.write_bytes(content)
    for attempt in (
        lambda: describe("mine", 16, root=str(folder.path)),
        lambda: load("mine", source="folder", size=16, root=str(folder.path), classes=CLASSES),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert message in str(error.value)


def test_missing_folders(tmp_path):
    with pytest.raises(UserError, match=r"^data.root is empty: set it to the folder that holds labels.csv or a folder"):
        load("mine", source="folder", size=16, root="")
    with pytest.raises(UserError, match=r"^data.root: there is no folder .*/none: check the path"):
        load("mine", source="folder", size=16, root=str(tmp_path / "none"))
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(UserError, match=r"labels.csv: cannot read the file: Is a directory"):
        load("mine", source="folder", size=16, root=str(tmp_path))


def test_options_of_the_folder_source_only(tmp_path):
    for option in ({"classes": ("a", "b")}, {"multi_label": True}, {"masks": "x"}):
        with pytest.raises(
            UserError, match=r"config field data.*is for data.source='folder' only, not for breastmnist"
        ):
            describe_dataset("breastmnist", 28, **option)
    for option in ({"masks": "x"}, {"allow_mixed_patients": True}, {"window": (0, 1)}, {"spacing": 1.0}):
        with pytest.raises(
            UserError, match=r"config field data.*is for data.source='folder' only, not for lidcshapes3d"
        ):
            load("lidcshapes3d", size=28, root=str(tmp_path), **option)


def test_sources_and_names():
    with pytest.raises(UserError, match=r"config field data.source: 'foldr' is unknown, did you mean 'folder'\?"):
        describe_dataset("mine", 28, source="foldr", classes=CLASSES)
    for name in ("", "my set", "a/b", "-a"):
        with pytest.raises(UserError, match=rf"config field data.name: '{name}' names the results and files"):
            describe(name, 28, classes=CLASSES)
    with pytest.raises(UserError, match=r"data.name: 'breastmnist' is a published data set, and data.source='folder'"):
        describe("breastmnist", 28, classes=CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": 2.0}, r"^data.spacing=2.0 is for volumes, and model.backbone takes 2-D images"),
        ({"ndim": 3, "masks": "m"}, r"^data.masks='m' is for 2-D images, and model.backbone takes volumes"),
    ],
)
def test_invalid_options(folder, options, message):
    with pytest.raises(UserError, match=message):
        folder.load(**options)


def test_files_below_the_root(folder):
    expected = folder.load().splits["all"]
    folder.rows = [(patient, f"images/{file}", label) for patient, file, label in folder.rows]
    folder.write(header=("patient", "path", "label"))
    found = folder.load().splits["all"]
    np.testing.assert_array_equal(found.images, expected.images)
    (folder.path / "images").rename(folder.path / "elsewhere")
    folder.rows = [(patient, file.replace("images", "elsewhere"), label) for patient, file, label in folder.rows]
    folder.rows.append(("P5", "gone.png", CLASSES[1]))
    folder.write()
    assert f"row 8, gone.png: not found in {folder.path}" in folder.problem()
    folder.rows.pop()
    folder.write()
    np.testing.assert_array_equal(folder.load().splits["all"].images, expected.images)


def test_without_patients(folder, caplog):
    folder.rows = [(file, label) for _, file, label in folder.rows]
    folder.write(header=("file", "label"))
    assert folder.load().splits["all"].groups is None
    assert "mine has no patient ids: every file counts as a separate patient" in caplog.text
    # Files with the same pixels are of one patient, so that they do not come to different splits.
    Image.fromarray(picture(0)).save(folder.path / "images" / "copy.png")
    folder.rows.append(("copy.png", "normal"))
    folder.write(header=("file", "label"))
    assert folder.load().splits["all"].groups.tolist() == [*(f"{number}.png" for number in range(6)), "0.png"]
    folder.rows[-1] = ("copy.png", CLASSES[1])
    folder.write(header=("file", "label"))
    assert "row 8, copy.png: has the same pixels as 0.png in row 2: their labels differ" in folder.problem()


HEADER = ("patient_id", "file", "label", "split")


def add_splits(folder):
    """Rows 2 to 7 become those of one patient of each class in train, val and test."""
    split = ("train", "train", "val", "val", "test", "test")
    folder.rows = [(f"P{number}", f"{number}.png", CLASSES[number % 2], split[number]) for number in range(6)]


def test_official_splits(folder):
    add_splits(folder)
    folder.write(header=HEADER)
    dataset = folder.load()
    assert dataset.info.n_samples == {"train": 2, "val": 2, "test": 2}
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.splits["val"].names.tolist() == ["2.png", "3.png"]
    assert dataset.splits["test"].groups.tolist() == ["P4", "P5"]
    assert dataset.splits["test"].labels.tolist() == [[0], [1]]


def test_invalid_splits(folder):
    add_splits(folder)
    folder.add("P1", "6.png", CLASSES[1], picture(6))
    folder.rows[-1] = ("P1", "6.png", CLASSES[1], "test")
    folder.rows.append(("P9", "5.png", CLASSES[1], "tset"))
    folder.rows.append(("P9", "4.png", CLASSES[1], ""))
    folder.rows[3] = ("P3", "3.png", CLASSES[1], "train")
    folder.write(header=HEADER)
    message = folder.problem()
    for problem in (
        "row 3, 1.png: patient 'P1' is in train here and in test in row 8: give every patient to one split",
        "row 9, 5.png: split 'tset' is unknown, did you mean 'test'?",
        "row 10, 4.png: split is empty",
        "split 'val' has no sample of class 'pneumoconiosis'",
    ):
        assert problem in message
    add_splits(folder)
    folder.rows = [(*row[:3], row[3].replace("test", "train")) for row in folder.rows]
    folder.write(header=HEADER)
    fix = "give train and test, and val if there is one, or no splits at all"
    assert f"1 problem to fix: split 'test' has no sample: {fix}" in folder.problem()
    folder.rows = [(*row[:3], row[3].replace("val", "test")) for row in folder.rows]
    folder.write(header=HEADER)
    found = folder.load()
    assert list(found.splits) == list(found.info.n_samples) == ["train", "test"]


def test_ignored_splits(folder):
    """With folds the splits of a folder do not count: a patient may be in two, and a split may lack a class."""
    add_splits(folder)
    folder.rows[0] = ("P5", "0.png", CLASSES[1], "train")
    folder.rows[5] = ("P5", "5.png", CLASSES[1], "train")
    folder.rows[3] = ("P5", "3.png", CLASSES[1], "test")
    folder.rows[4] = ("P4", "4.png", CLASSES[0], "")
    folder.write(header=HEADER)
    assert "5 problems to fix" in folder.problem()
    dataset = folder.load(ignore_splits=True)
    assert list(dataset.splits) == ["all"]
    # In the order that the splits had, on which the folds depend.
    assert dataset.splits["all"].names.tolist() == [f"{number}.png" for number in (0, 1, 5, 2, 3, 4)]
    Image.fromarray(picture(0)).save(folder.path / "images" / "copy.png")
    folder.rows.append(("P5", "copy.png", CLASSES[1], "val"))
    folder.write(header=HEADER)
    assert len(folder.load(ignore_splits=True).splits["all"]) == 7


def test_the_mask_of_a_file_that_a_table_spells_in_another_case(folder):
    folder.rows = [(patient, file.upper(), label) for patient, file, label in folder.rows]
    (folder.path / "masks").mkdir()
    lungs = np.zeros((40, 30), np.uint8)
    lungs[5:20, 3:9] = 255
    for number in range(6):
        (folder.path / "images" / f"{number}.png").rename(folder.path / "images" / f"x{number}.png")
        Image.fromarray(lungs).save(folder.path / "masks" / f"x{number}.png")
    folder.rows = [(patient, f"X{file}", label) for patient, file, label in folder.rows]
    by_folder = folder.load(masks="masks").splits["all"].images
    runs = " ".join(f"{30 * row + 4} 6" for row in range(5, 20))
    lines = [f"x{number}.png,{runs},,40,30" for number in range(6)]
    (folder.path / "lungs.csv").write_text("\n".join(["image_id,Left Lung,Right Lung,Height,Width", *lines]))
    np.testing.assert_array_equal(folder.load(masks="lungs.csv").splits["all"].images, by_folder)


@pytest.mark.parametrize("root", ["~no_such_user/data", "x" * 300, "a\0b"])
def test_roots_that_no_system_has(folder, root):
    """Python's own functions raise RuntimeError, OSError or ValueError here."""
    with pytest.raises(UserError, match=r"^data\.root: "):
        load("mine", source="folder", size=16, root=root)
    folder.write()
    message = folder.problem(masks=root)
    assert "data.masks: " in message


def test_a_root_that_may_not_be_entered(folder, monkeypatch):
    """The tests may run as a user whom no permission stops."""
    stat = os.stat

    def deny(path, **options):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", deny)
    with pytest.raises(UserError, match=r"^data\.root: .*secret cannot be read \(Permission denied\)$"):
        load("mine", source="folder", size=16, root=str(folder.path / "secret"))


def test_copies_in_two_splits(folder):
    add_splits(folder)
    folder.rows = [row[1:] for row in folder.rows]
    Image.fromarray(picture(0)).save(folder.path / "images" / "copy.png")
    folder.rows.append(("copy.png", "normal", "test"))
    folder.write(header=HEADER[1:])
    message = folder.problem()
    assert "row 8, copy.png: has the same pixels as 0.png in row 2: their splits differ, test and train" in message


def test_a_class_without_samples(folder):
    message = folder.problem(classes=(*CLASSES, "tb", "edema"))
    assert message.endswith("1 problem to fix: the data set has no sample of class 'tb', 'edema'")


def test_a_class_that_looks_misspelt(folder, caplog):
    folder.rows[5] = ("P5", "5.png", "Pneumoconiosys")
    folder.load()
    warning = "class 'Pneumoconiosys' has one sample and is spelt nearly like 'pneumoconiosis'"
    assert warning in caplog.text
    caplog.clear()
    folder.load(classes=(*CLASSES, "Pneumoconiosys"))
    assert warning not in caplog.text


def write_class_folders(path, splits=("",)):
    """Three pictures of each class, or of each class in each split."""
    number = 0
    for split in splits:
        for label in CLASSES:
            (path / split / label / f"more_{label}").mkdir(parents=True)
            for place in (f"{label}_a", f"{label}_b", f"more_{label}/{label}_c"):
                Image.fromarray(picture(number)).save(path / split / label / f"{place}.png")
                number += 1


def test_class_folders(tmp_path, caplog):
    write_class_folders(tmp_path)
    (tmp_path / "normal" / "Thumbs.db").write_text("")
    (tmp_path / "normal" / ".hidden.png").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "masks").mkdir()
    for label in CLASSES:
        for place in "abc":
            Image.fromarray(np.full((40, 30), 255, np.uint8)).save(tmp_path / "masks" / f"{label}_{place}.png")
    root = str(tmp_path)
    assert describe("mine", 16, root=root, masks="masks").classes == CLASSES
    dataset = load("mine", source="folder", size=16, root=root, masks="masks")
    assert dataset.info.classes == CLASSES
    split = dataset.splits["all"]
    expected = ["more_normal/normal_c.png", "normal_a.png", "normal_b.png"]
    assert split.names[:3].tolist() == [f"normal/{name}" for name in expected]
    assert split.labels[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert split.groups[:3].tolist() == ["normal/more_normal", "normal/normal_a.png", "normal/normal_b.png"]
    assert len(set(split.groups)) == 6
    np.testing.assert_array_equal(
        split.images[1, ..., 0], np.asarray(Image.fromarray(picture(0)).resize((16, 16), Image.Resampling.BICUBIC))
    )
    assert (
        "left out: hidden files and folders: 1 (normal/.hidden.png); thumbnails and other files that systems make: 1"
        " (normal/Thumbs.db); files outside of the class folders: 1 (notes.txt)"
    ) in caplog.text
    assert dataset.info.excluded == {}
    Image.fromarray(picture(9)).save(tmp_path / "loose.png")
    found = load("mine", source="folder", size=16, root=root, masks="masks")
    assert found.info.excluded == {"files outside of the class folders": 1}


def test_class_folders_of_splits(tmp_path):
    write_class_folders(tmp_path, ("train", "val", "test"))
    root = str(tmp_path)
    # The same folder in each is the same patient in each.
    with pytest.raises(UserError, match="train/normal/more_normal/ and val/normal/more_normal/ are folders"):
        load("mine", source="folder", size=16, root=root)
    for folder in list(tmp_path.glob("*/*/more_*")):
        folder.rename(folder.with_name(f"{folder.name}_{folder.parts[-3]}"))
    dataset = load("mine", source="folder", size=16, root=root)
    assert dataset.info.n_samples == {"train": 6, "val": 6, "test": 6}
    assert dataset.splits["val"].names[0] == "val/normal/more_normal_val/normal_c.png"
    (tmp_path / "val").rename(tmp_path / "valid")
    with pytest.raises(UserError) as error:
        load("mine", source="folder", size=16, root=root)
    assert f"{tmp_path}: 1 problem to fix: the folder valid/ is next to train, val, test: did you mean 'val'?" in str(
        error.value
    )
    assert "no sample" not in str(error.value)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "valid"), ("training", "validation", "testing")])
def test_splits_of_another_name_are_not_classes(names, tmp_path):
    write_class_folders(tmp_path, names)
    with pytest.raises(
        UserError, match="look like splits and would be taken for classes: name them train/, val/, test/"
    ):
        load("mine", source="folder", size=16, root=str(tmp_path))


def test_invalid_class_folders(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "normal" / "text.png").write_text("text")
    (tmp_path / "normal" / "brain.nii.gz").write_text("")
    with pytest.raises(UserError) as error:
        load("mine", source="folder", size=16, root=str(tmp_path), classes=("normal", "silicosis"))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: 4 problems to fix: the folder pneumoconiosis/ is not one of data.classes")
    assert "normal/text.png: is neither a PNG nor" in message
    assert "normal/brain.nii.gz: is a volume, and model.backbone takes 2-D images" in message
    assert "the data set has no sample of class 'silicosis'" in message
    (tmp_path / "pneumoconiosis").rename(tmp_path / ".pneumoconiosis")
    with pytest.raises(UserError, match=r"found neither labels\.csv nor two class folders or more"):
        load("mine", source="folder", size=16, root=str(tmp_path))


def test_colour(folder):
    colour = np.random.default_rng(9).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    folder.add("P1", "colour.png", "normal", colour)
    np.save(folder.path / "images" / "colour.npy", colour[::-1])
    folder.add("P1", "colour.npy", "normal")
    dataset = folder.load()
    images = dataset.splits["all"].images
    assert (dataset.info.channels, images.shape) == (3, (8, 16, 16, 3))
    resized = np.asarray(Image.fromarray(colour).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images[6], resized)
    grey = np.asarray(Image.fromarray(picture(0)).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3, -1))


def test_windows_are_of_floating_point_images(folder):
    ramp = np.linspace(-1, 2, 1200, dtype=np.float32).reshape(40, 30)
    np.save(folder.path / "images" / "float.npy", ramp)
    folder.add("P1", "float.npy", "normal")
    images = folder.load(size=30, window=(0.0, 1.0)).splits["all"].images
    # The least third is black, the greatest white.
    assert (images[6][:9].max(), images[6][-9:].min()) == (0, 255)
    np.testing.assert_array_equal(images[:6], folder.load(size=30).splits["all"].images[:6])
    assert "float.npy: shows nothing within data.window=(5.0, 6.0): every value is 0" in folder.problem(
        window=(5.0, 6.0)
    )


def test_8_bits_among_16(folder, caplog):
    """Both kinds are read, and a warning says that they have no common scale."""
    folder.load()
    assert "more than 8 bits" not in caplog.text
    folder.add("P9", "deep.png", "normal", picture(9).astype(np.uint16) * 100 + 7)
    folder.write()
    folder.load()
    assert "images of more than 8 bits, each scaled from its least" in caplog.text
    assert ": deep.png: if their values have a common scale, set data.window to its ends" in caplog.text
    caplog.clear()
    folder.load(window=(0, 65535))
    assert "more than 8 bits" not in caplog.text


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_images_that_cannot_be_read(folder):
    images = folder.path / "images"
    arrays = {
        "nan": np.array([[0, np.nan], [np.inf, 1]]),
        "four": np.zeros((4, 4, 4), np.uint8),
        "complex": np.zeros((4, 4), complex),
        "objects": np.array([[{}]]),
        "none": np.zeros((0, 4)),
        "constant": np.ones((4, 4)),
    }
    for name, array in arrays.items():
        np.save(images / f"{name}.npy", array)
        folder.add("P1", f"{name}.npy", "normal")
    pages = [Image.fromarray(picture(number)) for number in (7, 8)]
    pages[0].save(images / "pages.tif", save_all=True, append_images=pages[1:])
    (images / "cut.tif").write_bytes((images / "pages.tif").read_bytes()[:100])
    (images / "empty.npy").write_bytes(b"")
    for name in ("pages.tif", "cut.tif", "empty.npy"):
        folder.add("P1", name, "normal")
    message = folder.problem()
    for problem in (
        "row 8, nan.npy: has 2 values that are NaN or infinite",
        "row 9, four.npy: has the shape (4, 4, 4), not (H, W) or (H, W, 3)",
        "row 10, complex.npy: holds values of type complex128, not real numbers",
        "row 11, objects.npy: cannot be read as an .npy file (",
        "row 12, none.npy: is empty: its shape is (0, 4): write it again",
        "row 13, constant.npy: shows nothing: every value is 1",
        "row 14, pages.tif: has 2 pages: give one file for each image",
        "row 15, cut.tif: ",
        "row 16, empty.npy: cannot be read as an .npy file (",
    ):
        assert problem in message
    assert ": 9 problems to fix" in message


def test_real_dicom_files(folder):
    """Files that pydicom carries: a CT slice with a window of its own, and two that are no single images."""
    for number, name in enumerate(("CT_small.dcm", "rtdose.dcm", "rtplan.dcm")):
        source = pydicom.data.get_testdata_file(name, download=False)
        (folder.path / "images" / name).write_bytes(pathlib.Path(source).read_bytes())
        folder.add(f"D{number}", name, "normal")
    message = folder.problem()
    assert "2 problems to fix" in message
    assert "row 9, rtdose.dcm: has 15 frames: " in message
    assert "row 10, rtplan.dcm: is a DICOM file without an image" in message
    del folder.rows[-2:]
    folder.write()
    image = folder.load(size=128).splits["all"].images[6, ..., 0]
    stored = pydicom.dcmread(folder.path / "images" / "CT_small.dcm").pixel_array
    assert image.shape == stored.shape == (128, 128)
    # It has no window: the least and greatest of its values are black and white.
    np.testing.assert_allclose(image, (stored - stored.min()) * (255 / np.ptp(stored.astype(int))), atol=0.51)


def test_messages_of_other_packages():
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 1000))) < 200
    Problems("folder").raise_any()


def test_the_order_of_labels_does_not_matter():
    for multi_label in (True, False):
        one, other = (
            labels.Entry(2, "a", cell, labels.parse(cell, multi_label=multi_label)) for cell in ("x|y", "y | x")
        )
        assert labels.same_labels(one, other) == multi_label
