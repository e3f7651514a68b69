"""Names in labels.csv and the files that they mean."""

import os
import pathlib
import unicodedata

import numpy as np
import pytest
from PIL import Image

from jaxboost.data import load
from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import file_names, labels, layouts, patients
from jaxboost.errors import UserError


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)


def write(root, *files):
    """Images 0, 1, ... under these names."""
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)


def table(root, *cells):
    """labels.csv with these names; their classes are x and y in turn."""
    lines = [f'"{cell}",{"xy"[number % 2]}' for number, cell in enumerate(cells)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]))


def read(root):
    split = load("mine", source="folder", size=8, root=str(root)).splits["all"]
    return split.names.tolist(), [image[..., 0] for image in split.images]


def check(root, numbers, expected=None):
    """That the rows are the images `numbers`."""
    found, images = read(root)
    for number, image in zip(numbers, images, strict=True):
        np.testing.assert_array_equal(image, pixels(number))
    if expected is not None:
        assert found == expected


def refused(root):
    with pytest.raises(UserError) as error:
        read(root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("inner", ["", "images/"])
@pytest.mark.parametrize("kind", ["as it is", "through a link", "relative root", "link in the table", "untidy"])
def test_absolute_paths(tmp_path, monkeypatch, inner, kind):
    root = tmp_path / "data"
    write(root, f"{inner}a/0.png", f"{inner}b/1.png")
    (tmp_path / "link").symlink_to("data")
    start = {"link in the table": tmp_path / "link", "untidy": f"{tmp_path}/./data//"}.get(kind, root)
    table(root, f"{start}/{inner}a/0.png", f"{start}/{inner}b/1.png")
    monkeypatch.chdir(tmp_path)
    given = {"through a link": tmp_path / "link", "relative root": pathlib.Path("data")}.get(kind, root)
    # The same names as in a table of relative paths: the data may move.
    check(given, [0, 1], ["a/0.png", "b/1.png"])


def test_an_absolute_path_is_the_file_itself(tmp_path):
    """A file of the same name below images/ is another."""
    write(tmp_path, "images/a/0.png", "a/0.png", "images/1.png")
    table(tmp_path, tmp_path / "a/0.png", tmp_path / "images/a/0.png", "1.png", "1.png")
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text().rpartition("\n")[0])
    check(tmp_path, [1, 0, 2], [f"{tmp_path}/a/0.png", "a/0.png", "1.png"])


def test_absolute_links_stay_links(tmp_path):
    write(tmp_path / "store", "0.png", "1.png")
    root = tmp_path / "data"
    root.mkdir()
    for number in range(2):
        (root / f"{number}.png").symlink_to(tmp_path / "store" / f"{number}.png")
    table(root, root / "0.png", root / "1.png")
    check(root, [0, 1], ["0.png", "1.png"])


def test_absolute_paths_outside_of_the_folder(tmp_path):
    root = tmp_path / "data"
    write(root, "a/0.png", "a/1.png")
    write(tmp_path / "other", "a/0.png")
    table(root, "/home/me/data/a/0.png", tmp_path / "other/a/0.png", "a/1.png", "a/../../x.png", root / "gone.png")
    message = refused(root)
    assert f"row 2, /home/me/data/a/0.png: is not below {root}: write its path below that folder, such as a/0.png" in (
        message
    )
    assert f"row 3, {tmp_path}/other/a/0.png: is not below {root}" in message
    assert "row 5, a/../../x.png: is not below" in message
    assert "row 6, gone.png: not found in" in message
    assert "4 problems" in message


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é한.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("disk", "cell"),
    [
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        (DECOMPOSED.upper(), COMPOSED),
        ("a/x.png", "a\\x.png"),
        ("a/x.png", ".\\a\\x.png"),
        ("a/x.png", "./a//x.png"),
        ("a/x.png", "A/X.PNG"),
        ("a/x.PNG", "a/x.png"),
        ("a/x y.png", "a/x  y.png"),
        ("a/x y.png", "a/x\u00a0y.png"),
        ("a/x\u00a0y.png", "a/x y.png"),
        ("a/ x .png", "a/ x .png "),
        ("a/x.png", "\ufeffa/x.png\u200b"),
        ("a/x.png", "a/\u200bx.png"),
        ("a/x.png", "C:\\data\\a\\x.png"),
        ("a/x.png", "d:/scans/set 1/A/x.png"),
        ("a/x.png", "\\\\server\\share\\a\\x.png"),
        ("images/a/x.png", "images\\a\\x.png"),
        ("images/a/x.png", "C:\\d\\images\\a\\x.png"),
        ("images/a/x.png", "C:\\d\\a\\x.png"),
        ("a\\x.png", "a\\x.png"),
        (".hidden/x.png", ".hidden/x.png"),
    ],
)
def test_names_as_other_systems_write_them(tmp_path, disk, cell, caplog):
    base = "images/" if disk.startswith("images/") else ""
    write(tmp_path, disk, f"{base}zz.png")
    table(tmp_path, cell, "zz.png")
    check(tmp_path, [0, 1], [cell.strip().strip("\ufeff\u200b"), "zz.png"])
    written = disk in (cell, cell.strip(), f"images/{cell}") or cell.startswith(("./", "\ufeff"))
    assert ("in the table" in caplog.text or "of the table" in caplog.text) is not written


@pytest.mark.parametrize(
    ("files", "cell"),
    [
        (("a/x.png", "a/X.png"), "a/X.PNG"),
        ((COMPOSED, DECOMPOSED), COMPOSED.upper()),
        (("a/x.png", "a/X.png"), "C:\\d\\a\\X.PNG"),
    ],
)
def test_names_that_may_mean_several_files(tmp_path, files, cell):
    write(tmp_path, *files, "zz.png")
    table(tmp_path, cell, "zz.png")
    message = refused(tmp_path)
    assert "row 2, " in message
    assert f"can mean {files[1]} or {files[0]}: " in message or f"can mean {files[0]} or {files[1]}: " in message


def test_names_that_differ_only_by_their_form(tmp_path):
    """Each is the file that has exactly this name."""
    write(tmp_path, "x.png", "X.png", COMPOSED, DECOMPOSED)
    table(tmp_path, "X.png", "x.png", DECOMPOSED, COMPOSED)
    check(tmp_path, [1, 0, 3, 2])


def test_two_rows_of_one_file(tmp_path):
    write(tmp_path, "x.png", "y.png")
    table(tmp_path, "x.png", "y.png", "X.PNG", tmp_path / "y.png", ".\\y.png", "./x.png")
    message = refused(tmp_path)
    assert "4 problems" in message
    for problem in (
        "row 4, X.PNG: is listed in row 2",
        "row 5, y.png: is listed in row 3",
        "row 6, .\\y.png: is listed",
    ):
        assert problem in message


def test_paths_of_windows_from_two_folders(tmp_path):
    write(tmp_path, "a/x.png", "b/y.png")
    table(tmp_path, "C:\\d\\a\\x.png", "C:\\e\\b\\y.png")
    message = refused(tmp_path)
    assert "it is not clear which of 'c:\\\\d', 'c:\\\\e' is " in message
    table(tmp_path, "C:\\D\\a\\x.png", "c:\\d\\b\\y.png")
    check(tmp_path, [0, 1])


@pytest.mark.parametrize(
    ("cell", "hint"), [("x", "is a/x.png meant?"), ("x.png", "is a/x.png meant?"), ("b/x.tif", "is a/x.png meant?")]
)
def test_hints_about_the_meant_file(tmp_path, cell, hint):
    write(tmp_path, "a/x.png", "y.png")
    table(tmp_path, cell, "y.png")
    assert f"row 2, {cell}: not found in {tmp_path}: {hint}" in refused(tmp_path)


def test_many_rows(tmp_path, monkeypatch):
    """The work grows as the rows do: with their square, these would take minutes."""
    count = 20_000
    listing = {f"i{number}.png": tmp_path / f"i{number}.png" for number in range(count)}
    monkeypatch.setattr(file_names, "walk", lambda *_, **__: file_names.Listing(files=listing))
    monkeypatch.setattr(layouts.importlib.util, "find_spec", lambda name: None)
    cells = [f"{name.upper()},P{number}.0,{number % 2}.0" for number, name in enumerate(listing)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,patient_id,label", *cells, "x.dcm,P0,1"]))
    (tmp_path / "x.dcm").write_bytes(b"")
    problems = Problems(tmp_path)
    rows = layouts.read_entries(tmp_path, problems)
    problems.raise_any()
    patients.add_problems(rows, problems, patients.TABLE, allow_mixed=False)
    labels.to_numbers(rows, ("0", "1"), problems, multi_label=False)
    found = layouts.locate(tmp_path, rows, 2, Problems(tmp_path), None)
    assert len(found) == count
    assert found[rows[7]] == listing["i7.png"]
    assert os.fspath(found[rows[-2]]) == str(tmp_path / f"i{count - 1}.png")
