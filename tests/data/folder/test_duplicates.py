"""data.duplicates: nearly equal images of different patients are reported, joined or refused before splits are made."""

import csv
import logging

import numpy as np
import pytest
from PIL import Image

from jaxboost import data
from jaxboost.data.sources.folder import duplicates
from jaxboost.data.splits import folds, ratios
from jaxboost.errors import UserError
from jaxboost.runs import datasets
from tests.data.natural_images import natural_images

PICTURES = natural_images(16, (48, 48), seed=11)


class Folder:
    """A folder with labels.csv; a picture is its number in PICTURES, and what is done to it."""

    def __init__(self, root):
        self.root, self.rows = root, []

    def add(self, file, label, number, patient="", split="", change=lambda picture: picture):
        change(Image.fromarray(PICTURES[number])).save(self.root / file)
        self.rows.append({"file": file, "label": label, "patient_id": patient, "split": split})

    def load(self, **options):
        columns = [name for name in self.rows[0] if any(row[name] for row in self.rows)]
        with (self.root / "labels.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(self.rows)
        return data.load("mine", source="folder", root=str(self.root), **{"size": 32, **options})

    def problem(self, **options):
        with pytest.raises(UserError) as error:
            self.load(**options)
        assert "\n" not in str(error.value)
        return str(error.value)


def part(picture):
    return picture.crop((4, 6, 44, 46)).resize((60, 60), Image.Resampling.BICUBIC)


def smaller(picture):
    return picture.resize((30, 30), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Twelve different pictures, and three copies of one of them, each of which is like the one before."""
    made = Folder(tmp_path)
    for number in range(12):
        made.add(f"{number:02d}.png", "ab"[number % 2], number, patient=f"P{number}")
    made.add("copy1.png", "a", 0, patient="Q1", change=part)
    made.add("copy2.jpg", "a", 0, patient="Q2", change=smaller)
    made.add("own.png", "a", 2, patient="P2", change=part)
    return made


PAIRS = "00.png ~ copy1.png (one is a crop of the other), 00.png ~ copy2.jpg"


def test_warn(folder, caplog):
    dataset = folder.load()
    assert f"nearly equal images of different patients, in different splits now or when splits are made: {PAIRS}" in (
        caplog.text
    )
    assert "(2 pairs)" in caplog.text
    # Those of one patient are no leak.
    assert "own.png" not in caplog.text
    assert dataset.splits["all"].groups.tolist()[-3:] == ["Q1", "Q2", "P2"]


def test_no_warning_without_near_duplicates(folder, caplog):
    folder.rows = [row for row in folder.rows if not row["file"].startswith("copy")]
    for mode in (duplicates.WARN, duplicates.JOIN, duplicates.REFUSE):
        folder.load(duplicates=mode)
    assert "nearly" not in caplog.text


def test_refuse(folder):
    message = folder.problem(duplicates="refuse")
    assert "2 problems to fix (rows of labels.csv): row 2: nearly equal images of different patients, 00.png" in message
    fix = "delete one, give both one patient, or set data.duplicates=join"
    assert f"00.png ~ copy1.png (one is a crop of the other): {fix}" in message
    assert "00.png ~ copy2.jpg" in message


@pytest.mark.parametrize("known", [True, False])
def test_join(folder, known, caplog):
    if not known:
        for row in folder.rows:
            row["patient_id"] = ""
    before = folder.load()
    dataset = folder.load(duplicates="join")
    groups = dataset.splits["all"].groups.tolist()
    first, own = ("P0", "P2") if known else ("00.png", "02.png")
    assert [groups[row] for row in (0, 12, 13, 14)] == [first, first, first, own]
    assert len(set(groups)) == 12
    assert "each taken as one patient: 00.png ~ copy1.png" in caplog.text
    # Everything else stays.
    np.testing.assert_array_equal(dataset.splits["all"].images, before.splits["all"].images)
    np.testing.assert_array_equal(dataset.splits["all"].names, before.splits["all"].names)


def test_a_chain_of_patients_becomes_one(folder):
    # P2's other image is like P4's, and P4's other one like P6's.
    folder.add("chain1.png", "a", 4, patient="P2", change=part)
    folder.add("chain2.png", "a", 6, patient="P4", change=smaller)
    split = folder.load(duplicates="join").splits["all"]
    owner = dict(zip(split.names.tolist(), split.groups.tolist(), strict=True))
    assert {owner[f"{name}.png"] for name in ("02", "04", "06", "chain1", "chain2", "own")} == {"P2"}


def test_joined_patients_come_to_one_split_and_one_fold(folder):
    dataset = folder.load(duplicates="join")
    alike = {"00.png", "copy1.png", "copy2.jpg"}
    for seed in range(5):
        divided = ratios.divide(dataset, ratios=(0.6, 0.2, 0.2), seed=seed, file=None)
        assert sum(bool(alike & set(split.names.tolist())) for split in divided.splits.values()) == 1
        parts = [
            folds.fold_of(dataset, count=3, fold=fold, seed=seed, val_share=0.5, file=None).splits for fold in range(3)
        ]
        for splits in parts:
            assert sum(bool(alike & set(split.names.tolist())) for split in splits.values()) == 1


def test_the_fingerprint_changes_with_what_is_joined(folder):
    config = type("Config", (), {"data": type("Data", (), {"source": "folder"})})
    one, other = (datasets.fingerprint(folder.load(duplicates=mode), config)["data"] for mode in ("warn", "join"))
    assert one != other


def test_labels_that_differ(folder, caplog):
    folder.rows[12]["label"] = "b"
    folder.load()
    assert "00.png ~ copy1.png (one is a crop of the other; labels 'a' and 'b')" in caplog.text
    message = folder.problem(duplicates="join")
    assert (
        "00.png ~ copy1.png (one is a crop of the other; labels 'a' and 'b'): one patient with two labels: correct one"
        in message
    )
    assert folder.load(duplicates="join", allow_mixed_patients=True).splits["all"].groups[12] == "P0"


def split(folder, **places):
    """Every file is in train, but 08 and 09 in val, and 10 and 11 in test, and those that are named."""
    for row in folder.rows:
        stem = row["file"].partition(".")[0]
        usual = {"08": "val", "09": "val", "10": "test", "11": "test"}.get(stem, "train")
        row["split"] = places.get(stem, usual)


def test_splits_of_the_folder(folder, caplog):
    split(folder, copy1="test")
    folder.load()
    assert (
        "00.png ~ copy1.png (one is a crop of the other; splits train and test), copy1.png ~ copy2.jpg" in caplog.text
    )
    assert "2 problems to fix" in folder.problem(duplicates="refuse")
    message = folder.problem(duplicates="join")
    assert "data.duplicates=join moves no image out of its split: delete one, give both one split" in message
    # In a cross-validation all are divided anew.
    whole = folder.load(duplicates="join", ignore_splits=True).splits["all"]
    owner = dict(zip(whole.names.tolist(), whole.groups.tolist(), strict=True))
    assert [owner[name] for name in ("00.png", "copy1.png", "copy2.jpg", "own.png")] == ["P0", "P0", "P0", "P2"]
    assert "2 problems" in folder.problem(duplicates="refuse", ignore_splits=True)


def test_copies_in_one_split(folder, caplog):
    split(folder)
    for mode in (duplicates.WARN, duplicates.JOIN, duplicates.REFUSE):
        assert folder.load(duplicates=mode).splits["train"].groups.tolist()[-3:] == ["Q1", "Q2", "P2"]
    assert "nearly" not in caplog.text
    # Without val, train is divided.
    folder.rows = [row for row in folder.rows if row["split"] != "val"]
    assert folder.load(duplicates="join").splits["train"].groups.tolist()[-3:] == ["P0", "P0", "P2"]
    assert "2 problems" in folder.problem(duplicates="refuse")


def test_volumes(tmp_path, caplog):
    for number, volume in enumerate(natural_images(6, (20, 20, 20), seed=3)):
        for patient, change in ("p", 1.0), ("q", 0.8):
            if number < 2 or patient == "p":
                folder = tmp_path / "ab"[number % 2] / f"{patient}{number}"
                folder.mkdir(parents=True)
                np.save(folder / "0.npy", (volume * change).astype(np.uint8))
    with caplog.at_level(logging.WARNING):
        data.load("mine", source="folder", size=16, root=str(tmp_path), ndim=3)
    assert "a/p0/0.npy ~ a/q0/0.npy, b/p1/0.npy ~ b/q1/0.npy (2 pairs)" in caplog.text


def test_limits_of_the_search_warn(folder, caplog, monkeypatch):
    monkeypatch.setattr(duplicates.near_duplicates, "MOST_FOR_PARTS", 10)
    folder.load()
    gap = "crops of another image are not looked for among more than 10 images"
    assert f"nearly equal images of different patients may have been missed: {gap}" in caplog.text
    assert "00.png ~ copy2.jpg (1 pair)" in caplog.text
    for mode in ("join", "refuse"):
        message = folder.problem(duplicates=mode)
        assert f"data.duplicates={mode}: {gap}: name the patients, or set data.duplicates=warn" in message
    monkeypatch.setattr(duplicates.near_duplicates, "_MAX_CANDIDATES", {2: 0})
    folder.load()
    assert f"may have been missed: {gap}; more pairs look alike than can be compared closely" in caplog.text
    monkeypatch.setattr(duplicates.near_duplicates, "MOST_FOR_PARTS", 100)
    message = folder.problem(duplicates="join")
    assert "data.duplicates=join: more pairs look alike than can be compared closely: name the patients" in message


@pytest.mark.parametrize(
    ("size", "gap"),
    [
        (7, "data.size=7 is too small to look for them, which takes 8 or more"),
        (19, "data.size=19 is too small to find a crop of another image, which takes 20"),
        (20, ""),
    ],
)
def test_small_images_are_a_gap(folder, size, gap, caplog):
    """What is not looked for is said, and stops a run that relies on it."""
    folder.rows = [row for row in folder.rows if not row["file"].startswith("copy")]
    folder.load(size=size)
    assert ("may have been missed: " + gap in caplog.text) == bool(gap)
    for mode in ("join", "refuse"):
        if gap:
            assert f"1 problem to fix: data.duplicates={mode}: {gap}: " in folder.problem(duplicates=mode, size=size)
        else:
            folder.load(duplicates=mode, size=size)
