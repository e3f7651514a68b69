"""Files that training and prediction find in a folder: links, thumbnails, masks, pipes, and unusual names."""

import logging
import os
import pathlib
import socket

import numpy as np
import pytest
from PIL import Image

from jaxboost.data import load, walk
from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import companions, inputs, labels, layouts
from jaxboost.errors import UserError


def picture(path, seed=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(os.fsencode(path.name)) if seed is None else seed
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Class folders a and b with two images each."""
    for number, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png")):
        picture(tmp_path / "data" / name, number)
    return tmp_path / "data"


OWN = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


def rows(root, **options):
    problems = Problems(root)
    found = layouts.read_entries(root, problems, **options)
    problems.raise_any()
    return found


def files(root, **options):
    return [row.file for row in rows(root, **options)]


def found(root, **options):
    return [path.relative_to(root).as_posix() for path in inputs.find([str(root)], 2, **options)]


def refused(attempt):
    with pytest.raises(UserError) as error:
        attempt()
    assert "\n" not in str(error.value)
    assert "row 0" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "a/@eadir/0.png",
        "a/#recycle/0.png",
        "a/@Recycle/p1/0.png",
        "a/@Recently-Snapshot/0.png",
        "a/__MACOSX/0.png",
        "a/.AppleDouble/0.png",
        "a/._0.png",
        "a/$RECYCLE.BIN/0.png",
        "a/System Volume Information/0.png",
        "a/lost+found/0.png",
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/Thumbnails/0.png",
        "a/SYNOFILE_THUMB_XL.png",
        "__MACOSX/a/0.png",
        "@eaDir/0.png",
        ".git/annex/objects/x/0.png",
        "$RECYCLE.BIN/0.png",
    ],
)
def test_files_made_by_systems_are_left_out_and_counted(root, name, caplog):
    picture(root / name)
    assert files(root) == OWN
    assert "left out: " in caplog.text
    assert ": 1 (" in caplog.text
    caplog.clear()
    assert found(root) == OWN
    assert ": 1 (" in caplog.text


def test_folders_made_by_systems_are_neither_splits_nor_classes(tmp_path):
    for split in ("train", "test"):
        for label in "ab":
            picture(tmp_path / split / label / "0.png")
    for name in ("__MACOSX", "@eaDir", "#recycle", ".Trash-1000", "lost+found"):
        picture(tmp_path / name / "train" / "a" / "._0.png")
    assert [(row.split, row.label) for row in rows(tmp_path)] == [
        ("train", "a"),
        ("train", "b"),
        ("test", "a"),
        ("test", "b"),
    ]


def test_a_row_of_a_thumbnail_is_a_problem(root):
    picture(root / "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg")
    (root / "a/._1.png").write_bytes(b"\0\5\x16\7")
    table = ["file,label", *(f"{name},{name[0]}" for name in OWN)]
    (root / "labels.csv").write_text("\n".join([*table, "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg,a", "a/._1.png,a"]))
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert message.count("is a file that a system made, such as a thumbnail") == 2
    assert "2 problems" in message


LINKED = [
    ("../.git/annex/objects/x/0.png", "`git annex get`"),
    ("../../.dvc/cache/files/md5/0c/1", "`dvc pull`"),
    ("nowhere.png", "restore what it leads to, or remove the link"),
    ("c.png", "restore what it leads to, or remove the link"),
]


@pytest.mark.parametrize(("target", "step"), LINKED)
def test_links_to_nothing_are_problems(root, target, step):
    (root / "a/c.png").symlink_to(target)
    for attempt in (lambda: files(root), lambda: found(root)):
        message = refused(attempt)
        assert "1 problem to fix: a/c.png: is a link to " in message
        assert step in message
    assert found(root, skip_faulty=True) == OWN
    assert step in refused(lambda: inputs.find([str(root / "a/c.png")], 2))
    (root / "labels.csv").write_text("file,label\na/0.png,a\na/1.png,a\nb/0.png,b\nb/1.png,b\na/c.png,a\n")
    assert step in refused(lambda: load("mine", source="folder", size=8, root=str(root)))


def test_links_to_missing_folders(root):
    (root / "c").symlink_to("../.git/annex/objects/c")
    assert "1 problem to fix: c: is a link to" in refused(lambda: files(root))
    (root / "c").unlink()
    (root / "a/patient").symlink_to("/nowhere")
    assert "1 problem to fix: a/patient: is a link to /nowhere" in refused(lambda: files(root))
    assert "1 problem to fix: a/patient: is a link to /nowhere" in refused(lambda: found(root))


def test_irrelevant_broken_links_are_counted(root, caplog):
    (root / "a/notes.txt").symlink_to("nowhere.txt")
    assert files(root) == found(root) == OWN
    assert caplog.text.count("links and other entries that cannot be read: 1 (") == 2


def test_linked_files_and_folders_are_read(root, tmp_path):
    for number in range(3):
        picture(tmp_path / "elsewhere" / f"{number}.png", 10 + number)
    (root / "b/patient7").symlink_to(tmp_path / "elsewhere")
    (root / "a/single.png").symlink_to(tmp_path / "elsewhere/0.png")
    (root / "c").symlink_to(tmp_path / "third")
    picture(tmp_path / "third/0.png", 30)
    expected = [*OWN[:2], "a/single.png", *OWN[2:], *(f"b/patient7/{number}.png" for number in range(3)), "c/0.png"]
    assert files(root) == expected
    # Two names of one file: in training its pixels tell, in prediction one row is enough.
    assert len(found(root)) == len(expected) - 1


def test_a_loop_of_links_ends(root, caplog):
    (root / "a/loop").symlink_to(root)
    (root / "b/self").symlink_to(".")
    (root / "b/up").symlink_to(root.parent.parent)
    picture(root / "a/deep/2.png")
    (root / "a/deep/up").symlink_to("..")
    expected = sorted([*OWN, "a/deep/2.png"], key=lambda name: name.split("/"))
    assert files(root) == expected
    assert "links that lead back to a folder that contains them: 4 (a/deep/up/, a/loop/, b/self/, b/up/)" in caplog.text
    assert sorted(found(root)) == sorted(expected)


def test_one_file_under_two_names_is_read_once(root, caplog):
    (root / "a/again.png").symlink_to("0.png")
    (root / "a/first").symlink_to("../a2/p1")
    (root / "a/second").symlink_to("../a2/p1")
    (root / ".a2/p1").mkdir(parents=True)
    (root / "a/first").unlink(), (root / "a/second").unlink()
    picture(root / ".a2/p1/9.png")
    (root / "a/first").symlink_to("../.a2/p1")
    (root / "a/second").symlink_to("../.a2/p1")
    expected = [*OWN[:2], "a/first/9.png", *OWN[2:]]
    assert files(root) == expected
    assert "links to files and folders that are read under another name: 2 (a/again.png, a/second/)" in caplog.text
    assert found(root) == expected


def test_one_folder_in_two_classes_is_a_problem(root):
    picture(root / "a/p1/7.png")
    (root / "b/p1").symlink_to("../a/p1")
    assert "b/p1/: is the same folder as a/p1/, in another class or split: remove one" in refused(lambda: files(root))


def test_linked_classes_beside_the_folder_that_they_are_in(root):
    """What is wrong is said, not that there is one class."""
    (root / "pool").mkdir()
    for name in "ab":
        (root / name).rename(root / "pool" / name)
        (root / name).symlink_to(f"pool/{name}")
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert "a/: is the same folder as pool/a/, in another class or split: remove one" in message


def test_one_file_in_two_classes_is_a_problem(root):
    (root / "b/a0.png").symlink_to("../a/0.png")
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert "has the same pixels as" in message
    assert "their labels differ" in message


@pytest.mark.parametrize(
    ("content", "step"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "fetch it with `git lfs pull`"),
        (b"/annex/objects/MD5E-s12--0123.png\n", "fetch it with `git annex get`"),
        (b"../../.git/annex/objects/Xx/0K/MD5E-s12--0123.png", "fetch it with `git annex get`"),
        (b"<!DOCTYPE html><html><body>404", "download it again"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "download it again"),
    ],
)
@pytest.mark.parametrize("name", ["c.png", "c.npy", "c.tif"])
def test_placeholder_texts_are_problems(root, name, content, step):
    (root / "a" / name).write_bytes(content)
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert f"1 problem to fix: a/{name}: is a " in message
    assert step in message
    preprocessing = inputs.Preprocessing(ndim=2, size=8, window=(), spacing=0.0, masked=False, image_size=8, resize=0)
    assert step in refused(lambda: inputs.read(inputs.find([str(root)], 2), preprocessing))
    (root / "labels.csv").write_bytes(content)
    assert step in refused(lambda: files(root))


@pytest.mark.parametrize(
    ("name", "said", "step"),
    [("c.png.dvc", "a/c.png: is tracked by DVC", "`dvc pull`"), (".c.png.icloud", "a/c.png: is in iCloud", "Finder")],
)
def test_placeholders_of_files_that_were_not_fetched(root, name, said, step):
    (root / "a" / name).write_text("md5: 0")
    for attempt in (lambda: files(root), lambda: found(root)):
        message = refused(attempt)
        assert said in message
        assert step in message
    # Once the file is there, its placeholder is none.
    picture(root / "a/c.png")
    assert "a/c.png" in files(root)
    assert "a/c.png" in found(root)


def test_folders_that_cannot_be_listed(root, monkeypatch):
    """The tests may run as a user whom no permission stops."""
    picture(root / "a/p1/0.png", 9)
    scandir = os.scandir

    def deny(path):
        if pathlib.Path(path).name == "p1":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    expected = "1 problem to fix: a/p1: the folder cannot be listed (Permission denied): check its permissions"
    assert expected in refused(lambda: files(root))
    assert expected in refused(lambda: found(root))
    assert found(root, skip_faulty=True) == OWN
    (root / "labels.csv").write_text("file,label\na/0.png,a\na/1.png,a\nb/0.png,b\n")
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert "the folder cannot be listed (Permission denied)" in message


def make(kind, path):
    if kind == "a named pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))


@pytest.mark.parametrize("kind", ["a named pipe", "a socket"])
def test_only_regular_files_are_opened(root, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(kind, root / "a/c.png")
    for attempt in (lambda: files(root), lambda: found(root), lambda: inputs.find([str(root / "a/c.png")], 2)):
        assert f"c.png: is {kind}: give a regular file" in refused(attempt)
    (root / "a/c.png").unlink()
    make(kind, root / "labels.csv")
    assert f"labels.csv: is {kind}: give a regular file" in refused(lambda: files(root))
    (root / "labels.csv").unlink()
    make(kind, root / "a/c.png")
    (root / "labels.csv").write_text("file,label\na/0.png,a\na/1.png,a\nb/0.png,b\na/c.png,b\n")
    load_it = dict(source="folder", size=8, root=str(root))
    assert f"row 5, a/c.png: is {kind}: give a regular file" in refused(lambda: load("mine", **load_it))
    (root / "labels.csv").write_text("file,label\na/0.png,a\nb/1.png,b\n")
    (root / "masks").mkdir()
    make(kind, root / "masks/0.png")
    picture(root / "masks/1.png")
    assert f"is {kind}: give a regular file" in refused(lambda: load("mine", masks="masks", **load_it))
    make(kind, root / "masks.csv")
    assert f"masks.csv is {kind}: give a regular file" in refused(lambda: load("mine", masks="masks.csv", **load_it))
    make(kind, tmp_path / "root")
    assert f"root is {kind}, not a folder" in refused(lambda: layouts.open_folder(str(tmp_path / "root")))


def test_roots_that_are_not_folders(root, tmp_path):
    assert "0.png is a file, not a folder: give the folder" in refused(
        lambda: layouts.open_folder(str(root / "a/0.png"))
    )
    (tmp_path / "data.zip").write_bytes(b"PK\3\4")
    assert "decompress it" in refused(lambda: layouts.open_folder(str(tmp_path / "data.zip")))
    (tmp_path / "gone").symlink_to("nowhere")
    assert "is a link to nowhere" in refused(lambda: layouts.open_folder(str(tmp_path / "gone")))
    assert "device" in refused(lambda: layouts.open_folder("/dev/null"))
    assert "device" in refused(lambda: inputs.find(["/dev/null"], 2))


def test_a_table_that_is_a_link_to_nothing(root):
    """The class folders beside it are not read in its place."""
    (root / "labels.csv").symlink_to(".git/annex/objects/x/labels.csv")
    assert "labels.csv: is a link to" in refused(lambda: files(root))
    (root / "labels.csv").unlink()
    (root / "Labels.CSV").write_text("file,label\n")
    assert "Labels.CSV: name it labels.csv" in refused(lambda: files(root))


@pytest.mark.parametrize(
    ("mask", "image"),
    [
        ("x_mask.png", "x.png"),
        ("x-mask.PNG", "x.png"),
        ("X_Mask.png", "x.PNG"),
        ("x_mask_1.png", "x.png"),
        ("benign (1)_mask.png", "benign (1).png"),
        ("benign (1)_mask_1.png", "benign (1).png"),
        ("x.mask.png", "x.png"),
        ("x_seg.png", "x.jpg"),
        ("x_Segmentation.png", "x.png"),
        ("x_label.nii.gz", "x.png"),
        ("x_label.nii.gz", "x.nii.gz"),
        ("x_roi.png", "x.png"),
        ("x_gt.png", "x.png"),
        ("mask_x.png", "x.png"),
        ("x_mask.png", "x_image.png"),
        ("s1/x_mask.npy", "s1/x.npy"),
        ("s1_seg.nii.gz", "s1_t1.nii.gz"),
        ("masks/x.png", "images/x.png"),
        ("p/masks/x.png", "p/x.png"),
        ("p/labels/x_mask.png", "p/images/x.png"),
    ],
)
def test_masks_beside_images_are_recognised(mask, image):
    assert companions.masks_among([image, mask]) == {mask: image}


@pytest.mark.parametrize(
    "names",
    [
        ["x_mask.png", "y.png"],
        ["x_mask.png", "y/x.png"],
        ["mask.png", "x.png"],
        ["unmasked.png", "un.png"],
        ["x1.png", "x.png"],
        ["x_left.png", "x_right.png"],
        ["labels/x.png", "masks/y.png"],
        ["x_label.png", "x_left.png"],
    ],
)
def test_names_that_are_not_masks(names):
    assert companions.masks_among(names) == {}


def test_masks_are_left_out_and_counted(root, caplog):
    picture(root / "a/0_mask.png")
    (root / "b/0_label.nii.gz").write_bytes(b"")
    assert files(root) == OWN
    assert "masks or small copies of other images: 2 (a/0_mask.png, b/0_label.nii.gz)" in caplog.text
    caplog.clear()
    assert found(root) == OWN
    assert "masks or small copies of other images: 1 (" in caplog.text
    (root / "labels.csv").write_text("file,label\na/0.png,a\na/0_mask.png,a\nb/0.png,b\n")
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert "row 3, a/0_mask.png: seems to be a mask or small copy of a/0.png" in message


def test_images_and_masks_are_not_classes(tmp_path):
    for name in ("images/0.png", "masks/0.png"):
        picture(tmp_path / name)
    assert "images/, masks/ would be taken for a class: write labels.csv" in refused(lambda: files(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ("stage_2_train_images", "stage_2_test_images"),
        ("train_images", "test_images"),
        ("Train Set", "Validation Set", "Test Set"),
        ("training-data", "a"),
    ],
)
def test_folders_of_splits_are_not_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "0.png")
    splits = ", ".join(f"{name}/" for name in sorted(names) if name != "a")
    assert f"{splits} look like splits" in refused(lambda: files(tmp_path))


@pytest.mark.parametrize("names", [("images_001", "images_002"), ("Images 1", "b"), ("mask", "b"), ("a", "b", "masks")])
def test_folders_of_all_images_are_not_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "0.png")
    assert "would be taken for a class" in refused(lambda: files(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ("mask", "no_mask"),
        ("masks", "nomasks"),
        ("Mask", "without mask"),
        ("test_negative", "test_positive"),
        ("training injury", "other injury"),
        ("1", "2"),
        ("valve", "testis"),
        ("thumbs", "fingers"),
    ],
)
def test_folders_of_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "0.png")
    assert {row.label for row in rows(tmp_path)} == set(names)


def test_small_copies_are_left_out_and_counted(root, caplog):
    for name in ("a/thumbs/0.png", "b/Preview/1.jpg", "a/1_superpixels.png"):
        picture(root / name)
    picture(root / "b/thumbs/2.png")
    assert files(root) == sorted([*OWN, "b/thumbs/2.png"])
    assert "small copies of other images: 3 (a/1_superpixels.png, a/thumbs/0.png, b/Preview/1.jpg)" in caplog.text
    assert found(root) == sorted([*OWN, "b/thumbs/2.png"])


def test_copies_that_editors_keep_are_left_out(root, caplog):
    for name in ("0.png~", "0.png.bak", "0.png.orig", ".0.png.swp"):
        (root / "a" / name).write_bytes((root / "a/0.png").read_bytes())
    assert files(root) == OWN
    assert "files that are not images: 3 (a/0.png.bak, a/0.png.orig, a/0.png~)" in caplog.text


@pytest.mark.parametrize("table", ["train.csv", "Labels.xlsx", "data/stage_2_train_labels.csv"])
def test_tables_of_other_names_are_named(tmp_path, table):
    picture(tmp_path / "train/0.png")
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text("image_id,label\n0,1\n")
    assert f"; if {table} has the labels, save it as {tmp_path}/labels.csv" in refused(lambda: files(tmp_path))


def test_archives_of_windows_without_folders(tmp_path):
    for name in ("a\\0.png", "b\\0.png"):
        picture(tmp_path / name)
    assert "; a\\0.png has backslashes in place of folders: unpack its archive again" in refused(
        lambda: files(tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("c.png.crdownload", "download it again, it is not complete"),
        ("c.part", "download it again, it is not complete"),
        ("c.bmp", "convert it to PNG or TIFF"),
        ("c.gif", "convert it to PNG or TIFF"),
        ("c.webp", "convert it to PNG or TIFF"),
        *((f"c{ending}", "convert it to NIfTI (.nii.gz)") for ending in (".mha", ".nrrd", ".mgz", ".img", ".hdr")),
        *((f"c{ending}", "write each image of it as an .npy file") for ending in (".mat", ".h5", ".npz")),
        *((f"c{ending}", "decompress it") for ending in (".zip", ".tar", ".tar.gz", ".7z", ".rar", ".png.gz")),
        ("IM000001", "it holds a DICOM file: give its name the extension .dcm"),
        ("1.2.840.113619.2.55", "it holds a DICOM file: give its name the extension .dcm"),
        ("c.jfif", "it holds a JPEG file: give its name the extension .jpg"),
    ],
)
def test_other_formats_say_what_to_do(root, name, step, caplog):
    mark = b"\xff\xd8\xff" if name.endswith("jfif") else bytes(128) + b"DICM"
    (root / "a" / name).write_bytes(mark)
    assert f"a/{name}: is not read: {step}" in refused(lambda: files(root))
    assert found(root) == OWN
    assert step in caplog.text
    (root / "labels.csv").write_text(f"file,label\na/0.png,a\na/{name},a\nb/0.png,b\n")
    message = refused(lambda: load("mine", source="folder", size=8, root=str(root)))
    assert f"row 3, a/{name}: is not one of " in message
    assert step in message


def test_only_archives(tmp_path):
    for name in ("a/images.zip", "b/images.zip"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"PK\3\4")
    assert "decompress it" in refused(lambda: files(tmp_path))
    assert "decompress it" in refused(lambda: found(tmp_path))
    (tmp_path / "b/images.zip").unlink()
    (tmp_path / "b").rmdir()
    assert "decompress it" in refused(lambda: files(tmp_path))


def test_names_that_are_not_utf8(root, tmp_path, caplog):
    raw = os.fsencode(root / "a")
    os.rename(raw + b"/1.png", raw + b"/caf\xe9.png")
    os.rename(os.fsencode(root / "b"), os.fsencode(root) + b"/b\xfc")
    dataset = load("mine", source="folder", size=8, root=str(root))
    assert dataset.splits["all"].names.tolist() == ["a/0.png", "a/caf\\xe9.png", "b\\xfc/0.png", "b\\xfc/1.png"]
    assert dataset.info.classes == ("a", "b\\xfc")
    np.testing.assert_array_equal(
        dataset.splits["all"].images[1, ..., 0], np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    )
    caplog.clear()
    paths = inputs.find([str(root)], 2)
    written = f"{root}/a/caf\\xe9.png, {root}/b\\xfc/0.png, {root}/b\\xfc/1.png"
    assert caplog.messages == [f"--input: 3 file names are not plain UTF-8: they are written as {written}"]
    assert [walk.printable(path.relative_to(root)) for path in paths] == dataset.splits["all"].names.tolist()
    # A table that has the name as it is written here.
    (root / "labels.csv").write_text("file,label\na/0.png,a\na/caf\\xe9.png,a\nb\\xfc/0.png,b\n")
    assert len(load("mine", source="folder", size=8, root=str(root)).splits["all"]) == 3
    (root / "labels.csv").write_text("file,label\na/0.png,a\na/café.png,a\nb\\xfc/0.png,b\n")
    assert "names that are not UTF-8, such as a/caf\\xe9.png" in refused(
        lambda: load("mine", source="folder", size=8, root=str(root))
    )


def test_names_that_become_one(root):
    raw = os.fsencode(root / "a")
    os.rename(raw + b"/0.png", raw + b"/caf\xe9.png")
    os.rename(raw + b"/1.png", raw + b"/caf\\xe9.png")
    assert "two files have this name once it is written in UTF-8" in refused(lambda: files(root))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.png", "plain.png"),
        ("café 한국.png", "café 한국.png"),
        (b"caf\xe9.png", "caf\\xe9.png"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("two\nlines\t.png", "two\\x0alines\\x09.png"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_printable_names(name, text):
    assert walk.printable(os.fsdecode(name)) == text
    assert text.encode().decode() == text


def test_no_file_is_asked_for_its_type(root, monkeypatch):
    """One stat for each folder, none for a file: on a network they take most of the time."""
    for number in range(50):
        picture(root / "a" / f"m{number:02}.png")
    counted = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **options: counted.append(args) or stat(*args, **options))
    assert len(walk.walk(root).files) == 54
    assert len(counted) < 20


def test_left_out_files_are_logged_in_one_line(root, caplog):
    caplog.set_level(logging.INFO)
    picture(root / "a/@eaDir/0.png")
    (root / "a/notes.txt").write_text("")
    (root / "README.md").write_text("")
    (root / "empty").mkdir()
    files(root)
    (record,) = caplog.records
    assert record.message == (
        "left out: thumbnails and other files that systems make: 1 (a/@eaDir/); files outside of the class folders: 1"
        " (README.md); files that are not images: 1 (a/notes.txt); class folders without images: 1 (empty/)"
    )
    caplog.clear()
    files(root, quiet=True)
    assert not caplog.records
    assert labels.FILE == "labels.csv"
