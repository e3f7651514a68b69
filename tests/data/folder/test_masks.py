"""Lung masks: PNG files and run lengths, and the rectangle around them."""

import csv
import gzip

import numpy as np
import pytest
from PIL import Image

from jaxboost.data.problems import ProblemError
from jaxboost.data.sources.folder.masks import bounding_box, open_masks, stem
from jaxboost.errors import UserError


def lungs(height=20, width=30):
    """Two separate boxes: rows 4..15, columns 5..24 around both."""
    left, right = np.zeros((2, height, width), bool)
    left[6:16, 17:25] = True
    right[4:12, 5:11] = True
    return left, right


def run_lengths(mask):
    """'start length' for every run, from 1, row by row."""
    flat = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(int), [0]])))
    return " ".join(f"{start + 1} {end - start}" for start, end in flat.reshape(-1, 2))


def row_of(name, *, size=True, **cells):
    left, right = lungs()
    row = {"image_id": name, "Landmarks": "1,2,3", "Left Lung": run_lengths(left), "Right Lung": run_lengths(right)}
    row["Heart"] = run_lengths(np.ones((20, 30), bool))
    return row | ({"Height": 20, "Width": 30} if size else {}) | cells


def write_table(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.dcm", "a"),
        ("a.PNG", "a"),
        ("1.2.840.10008", "1.2.840.10008"),
        ("1.2.840.10008.dicom", "1.2.840.10008"),
        ("train/patient1/view.jpg", "view"),
        (r"train\view.jpeg", "view"),
        (" a ", "a"),
    ],
)
def test_stem(name, expected):
    assert stem(name) == expected


def test_the_rectangle_around_both_lungs():
    left, right = lungs()
    assert bounding_box(left | right, (20, 30)) == (5, 4, 25, 16)
    assert bounding_box(np.ones((20, 30), bool), (20, 30)) == (0, 0, 30, 20)
    single = np.zeros((20, 30), bool)
    single[19, 0] = True
    assert bounding_box(single, (20, 30)) == (0, 19, 1, 20)


@pytest.mark.parametrize(("scale", "box"), [(4, (20, 16, 100, 64)), (0.5, (2, 2, 13, 8))])
def test_a_mask_of_another_resolution(scale, box):
    left, right = lungs()
    assert bounding_box(left | right, (int(20 * scale), int(30 * scale))) == box


def test_empty_masks_and_other_proportions():
    with pytest.raises(ProblemError, match=r"^its mask is empty$"):
        bounding_box(np.zeros((20, 30), bool), (20, 30))
    with pytest.raises(
        ProblemError, match="its mask of 30 x 20 pixels has other proportions than the image of 20 x 20: give"
    ):
        bounding_box(np.ones((20, 30), bool), (20, 20))
    assert bounding_box(np.ones((1000, 1000), bool), (999, 1000)) == (0, 0, 1000, 999)


@pytest.mark.parametrize("value", [1, 255, True, 40000])
def test_png_masks(tmp_path, value):
    left, right = lungs()
    dtype = {True: bool, 40000: np.uint16}.get(value, np.uint8)
    Image.fromarray((left | right).astype(dtype) * dtype(value)).save(tmp_path / "1.2.png")
    mask = open_masks(tmp_path, {"1.2"})("1.2", (20, 30))
    np.testing.assert_array_equal(mask, left | right)


def test_png_masks_that_fail(tmp_path):
    (tmp_path / "b.png").write_bytes(b"text")
    masks = open_masks(tmp_path, {"a", "b"})
    with pytest.raises(ProblemError, match=r"^its mask .*/a\.png is missing$"):
        masks("a", (20, 30))
    with pytest.raises(ProblemError, match=r"^its mask .*/b\.png is neither a PNG nor a JPEG nor a TIFF file"):
        masks("b", (20, 30))


@pytest.mark.parametrize("name", ["masks.csv", "masks.csv.gz"])
@pytest.mark.parametrize("column", ["image_id", "dicom_id", "Image Index", "ImageID", "Path", "file"])
def test_tables(tmp_path, name, column):
    rows = [{"Unnamed: 0": 0, column: row.pop("image_id")} | row for row in (row_of("x/a.png"), row_of("other"))]
    masks = open_masks(write_table(tmp_path / name, rows), {"a"})
    left, right = lungs()
    # The heart does not count.
    np.testing.assert_array_equal(masks("a", (200, 300)), left | right)
    with pytest.raises(ProblemError, match=f"^its mask is missing in {name}$"):
        masks("other", (20, 30))


def test_a_table_without_sizes_and_one_with_fractions(tmp_path):
    left, right = lungs()
    masks = open_masks(write_table(tmp_path / "masks.csv", [row_of("a", size=False)]), {"a"})
    np.testing.assert_array_equal(masks("a", (20, 30)), left | right)
    masks = open_masks(write_table(tmp_path / "masks.csv", [row_of("a", Height="20.0", Width="30.0")]), {"a"})
    np.testing.assert_array_equal(masks("a", (20, 30)), left | right)


def test_one_lung_alone(tmp_path):
    masks = open_masks(write_table(tmp_path / "masks.csv", [row_of("a", **{"Left Lung": ""})]), {"a"})
    np.testing.assert_array_equal(masks("a", (20, 30)), lungs()[1])


def test_long_run_lengths(tmp_path):
    mask = np.zeros((300, 300), bool)
    mask[:, ::2] = True
    row = row_of("a", Height=300, Width=300, **{"Left Lung": run_lengths(mask), "Right Lung": ""})
    assert len(row["Left Lung"]) > 131072
    found = open_masks(write_table(tmp_path / "masks.csv", [row]), {"a"})("a", (300, 300))
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"Left Lung": "1 2 3"}, "cannot reshape"),
        ({"Left Lung": "1 x"}, "invalid literal"),
        ({"Left Lung": "0 2"}, "run 0 2 is outside of 30 x 20 pixels"),
        ({"Left Lung": "600 2"}, "run 600 2 is outside of 30 x 20 pixels"),
        ({"Left Lung": "5 -2"}, "run 5 -2 is outside"),
        ({"Height": "tall"}, "could not convert"),
        ({"Height": "-3"}, "negative"),
    ],
)
def test_broken_run_lengths(tmp_path, cells, message):
    masks = open_masks(write_table(tmp_path / "masks.csv", [row_of("b"), row_of("a", **cells)]), {"a"})
    with pytest.raises(ProblemError, match=rf"^its mask in row 3 of masks\.csv cannot be read \(.*{message}"):
        masks("a", (20, 30))


def test_two_masks_for_an_image(tmp_path):
    masks = open_masks(write_table(tmp_path / "masks.csv", [row_of("a"), row_of("x/a.png")]), {"a"})
    with pytest.raises(ProblemError, match=r"masks\.csv has several masks for it, in rows 2, 3"):
        masks("a", (20, 30))


def test_no_masks(tmp_path):
    with pytest.raises(UserError, match=r"^data.masks: .*/none is neither a folder of PNG files nor a \.csv"):
        open_masks(tmp_path / "none", set())
    with pytest.raises(UserError, match=r"^--masks: .*none\.csv is not there: check the path$"):
        open_masks(tmp_path / "none.csv", set(), "--masks")
    (tmp_path / "bad.csv.gz").write_bytes(b"text")
    with pytest.raises(UserError, match=r"bad\.csv\.gz cannot be read \(Not a gzipped file"):
        open_masks(tmp_path / "bad.csv.gz", set())
    for lacking, message in (
        ("Left Lung", "column 'Left Lung'"),
        ("image_id", "a column that names the image, such as 'image_id'"),
    ):
        row = row_of("a")
        del row[lacking]
        with pytest.raises(UserError, match=f"lacks {message}; found: "):
            open_masks(write_table(tmp_path / "bad.csv", [row]), {"a"})


def test_masks_of_absurd_size(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxboost.data.sources.folder.masks.MAX_PIXELS", 599)
    table = write_table(tmp_path / "masks.csv", [row_of("a") | {"Height": 10**9, "Width": 10**9}])
    with pytest.raises(ProblemError, match=r"^its mask in row 2 .*its size of 1000000000 x 1000000000 is .* too large"):
        open_masks(table, ["a"])("a", (20, 30))
    for height in (20, 21):
        Image.new("1", (30, height), 1).save(tmp_path / f"{height}.png")
    # As many pixels as the image has are always read.
    assert open_masks(tmp_path, ["20"])("20", (20, 30)).all()
    with pytest.raises(ProblemError, match=r"21\.png has 30 x 21 = 630 pixels, more than data\.max_pixels=600"):
        open_masks(tmp_path, ["21"])("21", (20, 30))
