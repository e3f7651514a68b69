"""Clinical columns: how cells become numbers, that training alone decides it, and that rows stay with their images."""

import dataclasses
import logging

import numpy as np
import pytest
from PIL import Image
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from jaxboost import data
from jaxboost.data import columns
from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.pipeline import batches
from jaxboost.data.sources.folder import table_columns
from jaxboost.data.sources.patient_table import with_patients
from jaxboost.data.splits import fraction
from jaxboost.errors import UserError

NAMES = ("age", "sex", "grade:category")
TRAIN = [("61", "F", "1"), ("70.5", "M", "2"), ("", "F", "10"), ("48", "F", "1.0"), ("5e1", "NA", "2")]
TEST = [("90", "M", "1"), ("nan", "X", "7"), ("61", "", "")]


def make_dataset(**cells):
    splits = {
        name: Split(
            images=np.zeros((len(rows), 1, 1, 1), np.uint8),
            labels=np.arange(len(rows))[:, np.newaxis] % 2,
            cells=np.array(rows, str),
        )
        for name, rows in cells.items()
    }
    return Dataset(info=DatasetInfo("mine", "binary-class", ("a", "b"), 1, 2, 1), splits=splits, baselines={})


def test_features_are_those_of_scikit_learn():
    found = columns.encoded(make_dataset(train=TRAIN, test=TEST), NAMES)
    ages = {"train": [61, 70.5, np.nan, 48, 50], "test": [90, np.nan, 61]}
    words = {
        name: [[sex, str(int(float(grade or -1)))] for _, sex, grade in rows]
        for name, rows in {"train": TRAIN, "test": TEST}.items()
    }
    # scikit-learn ignores NaN in mean and SD; its categories are those that we name here.
    scaler = StandardScaler().fit(np.array(ages["train"])[:, np.newaxis])
    encoder = OneHotEncoder(categories=[["F", "M"], ["1", "10", "2"]], handle_unknown="ignore", sparse_output=False)
    encoder.fit(words["train"])
    assert found.info.column_features == 8
    named = [name for column in found.info.columns for name in column.features]
    assert named == ["age", "age missing", "sex=F", "sex=M", "sex missing", "grade=1", "grade=10", "grade=2"]
    for name, split in found.splits.items():
        age = scaler.transform(np.array(ages[name])[:, np.newaxis])
        one_hot = encoder.transform(words[name])
        absent = np.isin([row[0] for row in words[name]], ["", "NA"])[:, np.newaxis]
        expected = [np.nan_to_num(age), np.isnan(age), one_hot[:, :2], absent, one_hot[:, 2:]]
        assert split.columns.dtype == np.float32
        np.testing.assert_allclose(split.columns, np.concatenate(expected, 1), rtol=1e-6, atol=1e-7)


def test_other_splits_change_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        found = columns.encoded(make_dataset(train=TRAIN, test=TEST), NAMES)
    other = columns.encoded(make_dataset(train=TRAIN, test=[("1e6", "M", "2")] * 9), NAMES)
    assert found.info.columns == other.info.columns
    np.testing.assert_array_equal(found.splits["train"].columns, other.splits["train"].columns)
    assert (
        "split test: column 'sex' has values that the training split does not have, in 1 of 3 samples: X" in caplog.text
    )
    assert "split test: column 'grade' is empty in 1 of 3 samples, and never in the training split" in caplog.text


def test_values_of_python_are_as_cells(caplog):
    found = columns.encoded(make_dataset(train=TRAIN, test=TEST), NAMES)
    given = {"age": np.array([90, np.nan, 61], np.float32), "sex": ["M", "X", None], "grade": [1, 7.0, float("nan")]}
    np.testing.assert_array_equal(columns.of_values(found.info.columns, given, 3), found.splits["test"].columns)
    for wrong, text in (
        (None, "columns is missing: the model reads age, sex, grade"),
        ({"age": [1, 2, 3], "sex": [*"FFM"]}, "columns: 'grade' is missing"),
        ({**given, "sex": ["M"]}, "'sex' has 1 values, for 3 images"),
        ({**given, "age": ["61", "old", ""]}, "column 'age': 'old' is no number"),
        ({**given, "sex": "FFM"}, "'sex' is of type str: give a list of 3 values"),
        ({**given, "age": 61}, "'age' is of type int: give a list of 3 values"),
        ({**given, "age": None}, "'age' is of type NoneType: give a list of 3 values"),
        ({**given, "age": np.float32(61)}, "'age' is of type float32: give a list"),
        ({**given, "age": np.zeros((3, 1))}, "'age' is of type ndarray: give a list"),
        ([61, 62, 63], "columns is of type list: give a dict, name -> list of 3 values"),
    ):
        with pytest.raises(UserError, match=text):
            columns.of_values(found.info.columns, wrong, 3)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([""] * 12, "data.columns: 'x' has no value in the training split"),
        ([f"n{i}" for i in range(101)], "'x' has 101 categories in the training split, more than 100"),
        (["1e308", "-1e308", "1e308"], "'x' has numbers that are too large"),
    ],
)
def test_columns_that_cannot_be_fitted(cells, text):
    with pytest.raises(UserError, match=text):
        columns.encoded(make_dataset(train=[(cell,) for cell in cells]), ("x",))


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (["5", "5.0"] * 6, "column 'x' has one value in the training split, '5'"),
        (["1", "9"] * 6, "column 'x' alone separates the classes"),
        (["", "9"] * 6, "column 'x' alone separates the classes"),
        (["no", "yes"] * 6, "column 'x' alone separates the classes"),
        (["1", "2", "3", "4"] * 3, ""),  # the classes alternate
        (["1"] * 11 + ["2"], ""),
        (["a", "b", "c", "a"] * 3, ""),
        ([f"visit {i}" for i in range(7)] + ["visit 0"] * 5, "column 'x' has 7 categories in 12 samples"),
        (["1", "9"] * 2, ""),  # too few
    ],
)
def test_warnings_of_the_training_split(cells, text, caplog):
    with caplog.at_level(logging.WARNING):
        columns.encoded(make_dataset(train=[(cell,) for cell in cells]), ("x",))
    assert text in caplog.text if text else not caplog.text


def test_a_value_that_training_never_saw_changes_nothing(caplog):
    """Nothing is learnt of a column with one value: in other splits, too, its feature is 0."""
    train = [("5", "F", "5.0", "F"), ("5.0", "F", "", "")] * 6
    dataset = make_dataset(train=train, test=[("7", "M", "7", "M"), ("5", "F", "", "")])
    with caplog.at_level(logging.WARNING):
        found = columns.encoded(dataset, ("dose", "sex", "level", "site"))
    named = [name for column in found.info.columns for name in column.features]
    assert named == ["dose", "sex=F", "level", "level missing", "site=F", "site missing"]
    assert (found.info.columns[0].mean, found.info.columns[0].sd) == (5, 0)
    np.testing.assert_array_equal(found.splits["test"].columns, [[0] * 6, [0, 0, 0, 1, 0, 1]])
    assert "column 'dose' has one value in the training split, '5': it tells nothing, and is 0 in every" in caplog.text
    assert "column 'site' has one value in the training split, 'F': only whether it is missing is read" in caplog.text
    # The report names such columns.
    assert [column.separates for column in found.info.columns] == [False, False, True, True]


def write_folder(root, rows, header="file,label,patient_id,Age,sex,split"):
    """Images whose first pixel is their number."""
    root.mkdir()
    for number in range(len(rows)):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4), np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def load(root, names=("age", "sex"), **options):
    return data.load("mine", source="folder", size=4, root=str(root), cache="off", columns=names, **options)


def test_rows_stay_with_their_images(tmp_path):
    rows = [
        f"{i}.png,{'ab'[i // 2 % 2]},p{i // 2},{i},{'FM'[i % 3 > 0]},{('train', 'test')[i >= 30]}" for i in range(40)
    ]
    root = write_folder(tmp_path / "mine", rows)

    def check(split):
        assert split.cells.tolist() == [[str(i), "FM"[i % 3 > 0]] for i in split.images[:, 0, 0, 0].tolist()]

    whole = load(root)
    divided = data.divide(whole, ratios=(0.5, 0.3, 0.2), seed=1, file=None)
    fold = data.fold_of(load(root, ignore_splits=True), count=3, fold=1, seed=2, val_share=0.25, file=None)
    part = fraction.take(divided, 0.5, 3)
    for each in (whole, divided, fold, part, whole.pooled()):
        for split in each.splits.values():
            check(split)
    assert len(part.splits["train"]) < len(divided.splits["train"])
    # A fold is fitted to its own training part.
    ages = {name: np.array(split.cells[:, 0], float) for name, split in fold.splits.items()}
    fitted = columns.encoded(fold, ("age", "sex"))
    assert fitted.info.columns[0].mean == pytest.approx(ages["train"].mean())
    train = fitted.splits["train"]
    iterator = batches.train_iterator(train, batch_size=4, seed=0, image_size=None)
    for batch in [next(iterator) for _ in range(8)]:
        age = batch["columns"][:, 0] * ages["train"].std() + ages["train"].mean()
        np.testing.assert_allclose(age, batch["image"][:, 0, 0, 0], atol=1e-4)


def test_a_published_set_with_a_table(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("file,age\ntest/0,3\ntrain/1,2\ntrain/0,1\n")
    dataset = make_dataset(train=[("",)] * 2, test=[("",)])
    splits = {name: dataclasses.replace(split, cells=None) for name, split in dataset.splits.items()}
    found = with_patients(
        dataclasses.replace(dataset, splits=splits), str(table), ignore_splits=False, columns=("age",)
    )
    assert {name: split.cells.tolist() for name, split in found.splits.items()} == {
        "train": [["1"], ["2"]],
        "test": [["3"]],
    }
    assert found.splits["train"].groups is None


ROWS = ["0.png,a,p0,61,F,train", "1.png,b,p1,70,M,train", "2.png,a,p2,50,F,test", "3.png,b,p3,42,M,test"]


@pytest.mark.parametrize(
    ("change", "names", "text"),
    [
        (("70,M", '"70,5",M'), ("age",), "row 3, 1.png: column 'age': '70,5' has a comma: write a decimal point"),
        (("42,M", "old,M"), ("age",), "row 5, 3.png: column 'age': 'old' is no number, unlike most of the column"),
        (("42,M", "inf,M"), ("age",), "row 5, 3.png: column 'age': 'inf' is not finite"),
        (("42,M", "1e999,M"), ("age",), "row 5, 3.png: column 'age': '1e999' is not finite"),
        (("42,M", "4_2,M"), ("age",), "'4_2' is no number"),
        (("42,M", "42,m"), ("sex",), "column 'sex': 'M' and 'm' differ only in their form"),
        (("61,F", "61,3"), ("sex",), "column 'sex' has texts and numbers, such as 'M' and '3'.*sex:category"),
        (("", ""), ("agee",), "column 'agee' of data.columns is missing, did you mean 'age'"),
        (("Age,sex", "sex,sex"), ("sex",), "column 'sex' of data.columns appears twice"),
        (("", ""), ("age", "AGE"), "data.columns: 'age' is there twice"),
        (("", ""), ("age", ""), "has an empty name"),
        (
            ("Age", '"Age, years"'),
            ("age", "years"),
            "'age' of data.columns is missing: if 'age, years' is meant, rename",
        ),
        (("Age", '"Age, years"'), ("age, years", "sex"), "'age, years' has a comma, which separates names: rename it"),
        (("", ""), ("label",), "data.columns: 'label' is the label of a sample"),
        (("", ""), ("Patient:category",), "data.columns: 'Patient' is the patient of a sample"),
    ],
)
def test_mistakes_in_one_line(change, names, text, tmp_path):
    root = write_folder(tmp_path / "mine", ROWS)
    content = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(content.replace(*change))
    with pytest.raises(UserError, match=text) as error:
        load(root, names)
    assert "\n" not in str(error.value)


def test_copies_of_an_image_have_the_same_values(tmp_path):
    rows = ["0.png,a,p0,61,F", "1.png,b,p1,70,M", "2.png,a,p0,61.0,", "3.png,b,p3,42,M", "4.png,b,p1,71,M"]
    root = write_folder(tmp_path / "mine", rows, "file,label,patient_id,Age,sex")
    for one, other in ((0, 2), (1, 4)):
        (root / f"{other}.png").write_bytes((root / f"{one}.png").read_bytes())
    with pytest.raises(
        UserError, match=r"has the same pixels as 1\.png in row 3: their clinical.* '71' and '70'"
    ) as error:
        load(root)
    assert "1 problem to fix" in str(error.value)


def test_class_folders_have_no_columns(tmp_path):
    for label in "ab":
        (tmp_path / "mine" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "mine" / label / "0.png")
    with pytest.raises(
        UserError, match=r"data\.columns needs labels\.csv, a table with the columns file, label and age, sex"
    ):
        load(tmp_path / "mine")


def test_names_on_the_command_line():
    found = [(each.name, each.categorical) for each in table_columns.parse(("age, sex:Category",))]
    assert found == [("age", False), ("sex", True)]
