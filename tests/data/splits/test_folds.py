"""Cross-validation: folds by patient, stratified, reproducible, and kept in a file that is checked."""

import csv
import pathlib

import numpy as np
import pytest

from jaxboost.data import fold_of, load
from jaxboost.data.dataset import Dataset, DatasetInfo, Split, join_splits
from jaxboost.data.splits import patients
from jaxboost.data.splits import table as tables
from jaxboost.data.splits.folds import assign, read, split
from jaxboost.errors import UserError

CLASSES = ("normal", "silicosis")
INFO = DatasetInfo("some", "binary-class", CLASSES, 1, 2, 2)


def cohort(seed=0, patients=60, classes=2):
    """Labels (n, 1) and patients (n,): 1 to 4 samples per patient with one label, shuffled."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = (groups * 7 % 10 < 4).astype(np.int64) if classes == 2 else groups % classes
    order = rng.permutation(len(groups))
    return labels[order, None], np.array([f"P{group:03}" for group in groups[order]])


def data_set(labels, groups=None, task="binary-class", classes=CLASSES, sizes=(0.7, 0.1, 0.2), **baselines):
    n = len(labels)
    bounds = np.cumsum([round(share * n) for share in sizes[:-1]])
    images = np.arange(n, dtype=np.uint16).view(np.uint8).reshape(n, 1, 2, 1)
    names = ("train", "val", "test") if len(sizes) == 3 else ("all",)
    parts = np.split(np.arange(n), bounds)
    splits = {
        name: Split(images=images[rows], labels=labels[rows], groups=None if groups is None else groups[rows])
        for name, rows in zip(names, parts, strict=True)
    }
    info = DatasetInfo("some", task, classes, 1, 2, 2, {name: len(rows) for name, rows in splits.items()}, "")
    values = {
        key: {name: value[rows] for name, rows in zip(names, parts, strict=True)} for key, value in baselines.items()
    }
    return Dataset(info=info, splits=splits, baselines=values)


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_by_patient_and_stratified(seed):
    labels, groups = cohort(seed)
    folds = assign(labels, groups, count=5, seed=seed)
    assert folds.dtype == np.int64
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    for patient in set(groups.tolist()):
        assert len(set(folds[groups == patient].tolist())) == 1
    for fold in range(5):
        assert len(labels[folds == fold]) == pytest.approx(len(labels) / 5, rel=0.2)
        assert labels[folds == fold].mean() == pytest.approx(labels.mean(), abs=0.07)


def test_the_seed_is_the_only_source_of_randomness():
    labels, groups = cohort()
    first, again, other = (assign(labels, groups, count=5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_patients():
    labels = np.arange(40)[:, None] % 4 // 3
    folds = assign(labels, None, count=5, seed=0)
    assert np.bincount(folds).tolist() == [8] * 5
    assert np.bincount(folds[labels[:, 0] == 1]).tolist() == [2] * 5


def test_several_labels_are_stratified_by_their_combinations():
    rng = np.random.default_rng(0)
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])
    labels = np.repeat(sets, [20, 10, 15, 5], axis=0)
    # Two rare combinations, which count as their most frequent label.
    labels = np.concatenate([labels, [[1, 1, 1], [0, 1, 1]]])
    labels = labels[rng.permutation(len(labels))]
    folds = assign(labels, None, count=5, seed=0)
    for number, row in zip((4, 2, 3, 1), sets, strict=True):
        counts = np.bincount(folds[(labels == row).all(1)], minlength=5)
        assert counts.tolist() == [number] * 5
    # All combinations differ: stratification is impossible, and nothing fails.
    codes = np.arange(8)[:, None] >> np.arange(3) & 1
    assert np.bincount(assign(codes, None, count=4, seed=0)).tolist() == [2] * 4


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_splits_of_every_fold(share):
    labels, groups = cohort(patients=120)
    folds = assign(labels, groups, count=5, seed=0)
    tested = []
    for fold in range(5):
        parts = split(labels, groups, folds, fold, val_share=share, seed=0, classes=CLASSES)
        assert list(parts) == ["train", "val", "test"]
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
        assert all((np.diff(rows) > 0).all() for rows in parts.values())
        sides = [set(groups[rows]) for rows in parts.values()]
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
        rest = len(labels) - len(parts["test"])
        assert len(parts["val"]) == pytest.approx(share * rest, abs=0.04 * rest)
        assert labels[parts["val"]].mean() == pytest.approx(labels.mean(), abs=0.1)
        assert (folds[parts["test"]] == fold).all()
        tested += parts["test"].tolist()
    assert sorted(tested) == list(range(len(labels)))


def test_validation_has_every_class_where_possible():
    # One class has 5 patients: four of them are not in the test fold, for 10 parts.
    labels = np.array([0] * 100 + [1] * 5)[:, None]
    folds = assign(labels, None, count=5, seed=0)
    for seed in range(5):
        parts = split(labels, None, folds, 0, val_share=0.1, seed=seed)
        assert 1 in labels[parts["val"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "data.folds=1: use 2 or more"),
        ({"count": 25}, "class 'silicosis' has 24 patients, fewer than the 25 folds: use fewer"),
        ({"classes": (*CLASSES, "tb")}, "class 'tb' has 0 patients"),
        ({"classes": (), "count": 25}, "class '1' has 24 patients"),
    ],
)
def test_invalid_folds(options, message):
    labels, groups = cohort()
    with pytest.raises(UserError, match=f"^{message}"):
        assign(labels, groups, **({"count": 5, "seed": 0, "classes": CLASSES} | options))


def test_no_validation_split():
    labels, groups = cohort()
    parts = split(labels, groups, assign(labels, groups, count=5, seed=0), 2, val_share=0, seed=0)
    assert parts.keys() == {"train", "test"}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))


def test_invalid_splits():
    labels, groups = cohort()
    folds = assign(labels, groups, count=5, seed=0)
    for share in (0.6, -1, 1):
        with pytest.raises(UserError, match=f"^data.val_share={share}: use 0 to 0.5"):
            split(labels, groups, folds, 0, val_share=share, seed=0)
    with pytest.raises(UserError, match=r"^fold 0: 48 patients are left .* too few for data.val_share=0.02"):
        split(labels, groups, folds, 0, val_share=0.02, seed=0)
    for name, number in (("normal", 0), ("silicosis", 1)):
        # Fold 0 has only patients of the other class. Then fold 1 has all patients of the class.
        other = np.unique(groups[labels[:, 0] != number])[:5]
        folds = np.where(np.isin(groups, other), 0, 2)
        with pytest.raises(UserError, match=f"^fold 0: its test split has no '{name}': use fewer folds"):
            split(labels, groups, folds, 0, val_share=0.2, seed=0, classes=CLASSES)
        folds = np.where(labels[:, 0] == number, 1, 0)
        with pytest.raises(UserError, match=f"^fold 1: its train split has no '{name}': use fewer folds"):
            split(labels, groups, folds, 1, val_share=0.2, seed=0, classes=CLASSES)
    once = np.array([0] * 20 + [1] * 2)[:, None]
    with pytest.raises(UserError, match=r"fold 1: its (train|val) split has no 'silicosis'"):
        split(once, None, np.arange(22) % 2, 1, val_share=0.2, seed=0, classes=CLASSES)


def test_a_patient_in_two_splits():
    sides = {"train": np.array(["P1", "P2"]), "val": np.array(["P3"]), "test": np.array(["P2"])}
    with pytest.raises(
        UserError, match=r"^here: patient 'P2' is in train and in test: give every patient to one split"
    ):
        patients.check(sides, "here")
    labels, groups = cohort()
    # Folds with a patient's images in several of them.
    with pytest.raises(UserError, match=r"fold 0: patient 'P[0-9]+' is in train and in "):
        split(labels, groups, np.arange(len(labels)) % 5, 0, val_share=0.2, seed=0)


def write(path, samples, folds):
    tables.write(path, "fold", samples, INFO, folds, fix="give another data.folds_file")


@pytest.fixture
def table(tmp_path):
    """A file of folds, its samples and folds."""
    labels, groups = cohort(patients=20)
    names = np.array([f"a, {index}.dcm" for index in range(len(labels))])
    folds = assign(labels, groups, count=3, seed=0)
    path = tmp_path / "new" / "folds.csv"
    samples = Split(images=labels, labels=labels, groups=groups, names=names)
    write(path, samples, folds)
    return path, samples, folds


def test_round_trip(table):
    path, samples, folds = table
    assert [entry.name for entry in path.parent.iterdir()] == ["folds.csv"]
    np.testing.assert_array_equal(read(path, samples, count=3), folds)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["patient_id", "file", "label", "fold"]
    assert rows[0] == {
        "patient_id": samples.groups[0],
        "file": "a, 0.dcm",
        "label": rows[0]["label"],
        "fold": str(folds[0]),
    }
    assert rows[0]["label"] in CLASSES
    # The order of the rows does not matter.
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]))
    np.testing.assert_array_equal(read(path, samples, count=3), folds)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheet_saved_it(table, separator):
    """Excel writes semicolons where a comma is the decimal sign, and a mark at the start."""
    path, samples, folds = table
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator, lineterminator="\r\n").writerows([*rows, []])
    np.testing.assert_array_equal(read(path, samples, count=3), folds)


def test_names_with_blanks_and_commas(tmp_path):
    names = np.array([" a.png", "b; c,d.png", 'e"f.png', "#g.png"])
    samples = Split(
        images=names, labels=np.zeros((4, 1), np.int64), groups=np.array([" p", "q ", "r", "s"]), names=names
    )
    write(tmp_path / "folds.csv", samples, np.arange(4))
    np.testing.assert_array_equal(read(tmp_path / "folds.csv", samples, count=4), np.arange(4))


def test_one_name_of_two_samples_is_not_written(tmp_path):
    """A table goes by the names: its next reader could not tell the two apart."""
    labels = np.array([[0], [1]])
    samples = Split(images=labels, labels=labels, names=np.array(["a.png", "a.png"]))
    with pytest.raises(UserError, match=r"folds\.csv: the folds cannot be written: several samples are named 'a\.png'"):
        write(tmp_path / "folds.csv", samples, np.array([0, 1]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("lacking", "said"), [(1, "a, 0.dcm: "), (2, "a, 0.dcm, a, 1.dcm: ")])
def test_missing_rows_are_named(table, lacking, said):
    path, samples, _ = table
    tampered(path, lambda rows: [rows[0], *rows[1 + lacking :]])
    with pytest.raises(UserError, match=f": no row for {said}correct it"):
        read(path, samples, count=3)


def tampered(path, change):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows = rows if (changed := change(rows)) is None else changed
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def cell(row, column, value):
    def change(rows):
        rows[row][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell(0, 1, "name"), "its columns are patient_id, name, label, fold, not patient_id, file, label, fold"),
        (lambda rows: rows[:-1], r": no row for a, [0-9]+.dcm: "),
        (lambda rows: [*rows, rows[3]], r" row [0-9]+: 'a, 2.dcm' is listed twice"),
        (lambda rows: [*rows, ["P1", "b", "normal", "0"]], r" row [0-9]+: 'b' is not in the data set"),
        (cell(4, 0, "P999"), " row 5: 'a, 3.dcm' is of patient 'P[0-9]+' in the data set, not 'P999'"),
        (cell(2, 3, "3"), r" row 3: fold '3' is not one of 0 to 2 \(data.folds=3\)"),
        (cell(2, 3, "one"), " row 3: fold 'one' is not one of 0 to 2"),
        (lambda rows: [*rows[:2], ["x"], *rows[3:]], " row 3: has 1 cells"),
        (lambda rows: rows.clear(), ": its columns are , not"),
    ],
)
def test_a_tampered_file(table, change, message):
    path, samples, _ = table
    tampered(path, change)
    with pytest.raises(UserError, match=message) as error:
        read(path, samples, count=3)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith(": correct it, or delete it and run again")


def test_a_patient_in_two_folds_of_a_file(table):
    path, samples, folds = table
    patient, rows = next((p, rows) for p in samples.groups if len(rows := np.flatnonzero(samples.groups == p)) > 1)
    tampered(path, cell(rows[1] + 1, 3, str((folds[rows[1]] + 1) % 3)))
    with pytest.raises(
        UserError, match=rf"row {rows[1] + 2}: patient '{patient}' is in fold . here and in fold . in row"
    ):
        read(path, samples, count=3)


def test_a_file_of_another_count(table):
    path, samples, _ = table
    with pytest.raises(UserError, match=r"row [0-9]+: fold '2' is not one of 0 to 1 \(data.folds=2\)"):
        read(path, samples, count=2)
    with pytest.raises(UserError, match=r": fold 3 is empty \(data.folds=5\)"):
        read(path, samples, count=5)


def test_files_that_cannot_be_read_or_written(tmp_path):
    labels = np.array([[0]])
    samples = Split(images=labels, labels=labels, names=np.array(["a"]))
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="cannot be read as a table of folds"):
            read(path, samples, count=2)
    with pytest.raises(UserError, match=r"folds\.csv: the folds cannot be written .*: give another data.folds_file"):
        write(tmp_path / "file" / "folds.csv", samples, labels[0])


def identity(images):
    """The numbers of samples of `data_set`."""
    return images.reshape(len(images), 2).copy().view(np.uint16)[:, 0]


@pytest.mark.parametrize("sizes", [(0.7, 0.1, 0.2), (1,)])
def test_fold_of(tmp_path, sizes):
    labels, groups = cohort()
    volumes = np.random.default_rng(0).random(len(labels))
    dataset = data_set(labels, groups, sizes=sizes, volume=volumes)
    file = tmp_path / "folds.csv"
    tested = []
    for fold in range(3):
        found = fold_of(dataset, count=3, fold=fold, seed=1, val_share=0.2, file=file)
        assert list(found.splits) == ["train", "val", "test"]
        assert found.info.n_samples == {name: len(part) for name, part in found.splits.items()}
        assert sum(found.info.n_samples.values()) == len(labels)
        for name, part in found.splits.items():
            rows = identity(part.images)
            np.testing.assert_array_equal(part.labels, labels[rows])
            np.testing.assert_array_equal(part.groups, groups[rows])
            np.testing.assert_array_equal(found.baselines["volume"][name], volumes[rows])
            assert len(set(part.names)) == len(part)
        patients.check({name: part.groups for name, part in found.splits.items()}, "")
        without = fold_of(dataset, count=3, fold=fold, seed=1, val_share=0.2, file=None)
        assert [part.names.tolist() for part in without.splits.values()] == [
            part.names.tolist() for part in found.splits.values()
        ]
        tested += identity(found.splits["test"].images).tolist()
    assert sorted(tested) == list(range(len(labels)))
    first = pathlib.Path(file).read_text().splitlines()[1].split(",")
    assert first[:3] == [groups[0], "train/0" if len(sizes) == 3 else "all/0", CLASSES[labels[0, 0]]]


def test_an_existing_file_overrides_the_seed(tmp_path):
    labels, groups = cohort()
    dataset = data_set(labels, groups)
    file = tmp_path / "folds.csv"

    def tested(seed, file):
        return fold_of(dataset, count=3, fold=0, seed=seed, val_share=0.2, file=file).splits["test"].names.tolist()

    first = tested(0, file)
    content = file.read_bytes()
    assert tested(7, file) == first
    assert file.read_bytes() == content
    assert tested(7, None) != first


def test_fold_of_a_data_set_without_patients(tmp_path, caplog):
    labels = np.arange(30)[:, None] % 2
    found = fold_of(data_set(labels), count=3, fold=2, seed=0, val_share=0.25, file=tmp_path / "folds.csv")
    assert "some has no patient ids: images of one patient may be in several folds" in caplog.text
    assert {name: part.groups for name, part in found.splits.items()} == {"train": None, "val": None, "test": None}
    assert found.info.n_samples == {"train": 15, "val": 5, "test": 10}
    assert (tmp_path / "folds.csv").read_text().splitlines()[1].startswith("train/0,train/0,normal,")


def test_fold_of_several_labels(tmp_path):
    labels = (np.arange(60)[:, None] >> np.arange(2)) & 1
    dataset = data_set(labels, task="multi-label, binary-class", classes=("a", "b"), sizes=(1,))
    fold_of(dataset, count=3, fold=0, seed=0, val_share=0.2, file=tmp_path / "folds.csv")
    rows = (tmp_path / "folds.csv").read_text().splitlines()[1:5]
    assert [row.split(",")[2] for row in rows] == ["", "a", "b", "a|b"]
    one = data_set(labels[:, :1], task="multi-label, binary-class", classes=("a",), sizes=(1,))
    fold_of(one, count=3, fold=0, seed=0, val_share=0.2, file=tmp_path / "one.csv")
    assert [row.split(",")[2] for row in (tmp_path / "one.csv").read_text().splitlines()[1:3]] == ["", "a"]


@pytest.mark.parametrize("fold", [-1, 3])
def test_no_such_fold(fold):
    with pytest.raises(UserError, match=f"^data.fold={fold}: use 0 to 2, for data.folds=3"):
        fold_of(data_set(*cohort()), count=3, fold=fold, seed=0, val_share=0.2, file=None)


def test_joined_splits():
    labels, groups = cohort()
    parts = list(data_set(labels, groups).splits.values())
    joined = join_splits(parts)
    np.testing.assert_array_equal(joined.labels, labels)
    np.testing.assert_array_equal(joined.groups, groups)
    assert joined.names is None
    assert join_splits([parts[0], Split(parts[1].images, parts[1].labels)]).groups is None
    taken = joined.take(np.array([3, 1]))
    np.testing.assert_array_equal(taken.groups, groups[[3, 1]])
    np.testing.assert_array_equal(identity(taken.images), [3, 1])


def test_folds_of_the_silhouettes(lidc_root):
    dataset = load("lidcsilhouettes", size=28, root=str(lidc_root))
    found = fold_of(dataset, count=5, fold=0, seed=0, val_share=0.2, file=None)
    patients.check({name: part.groups for name, part in found.splits.items()}, "")
    sizes = found.info.n_samples
    assert sum(sizes.values()) == sum(dataset.info.n_samples.values()) == 2011
    assert sizes["test"] == pytest.approx(2011 / 5, rel=0.05)
    assert sizes["val"] == pytest.approx(2011 * 0.8 / 5, rel=0.05)
    for part in found.splits.values():
        assert part.labels.mean() == pytest.approx(0.32, abs=0.03)
