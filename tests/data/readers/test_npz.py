"""Arrays of an archive: in memory, or mapped from copies that were made from this archive."""

import io
import json
import os
import resource
import shutil
import tracemalloc
import types
import zipfile

import numpy as np
import pytest

from jaxboost.data.readers import npz
from jaxboost.errors import UserError
from tests.mutations import mutations

LARGE, SMALL = "images", "labels"


@pytest.fixture(autouse=True)
def threshold(monkeypatch):
    monkeypatch.setattr(npz, "LARGE_BYTES", 1000)


@pytest.fixture
def archive(tmp_path):
    return write(tmp_path / "data.npz")


def write(path, value=0):
    """`images` is above the threshold; the archive itself is not, as its content is the same everywhere."""
    np.savez_compressed(path, images=np.full((20, 10, 10), value, np.uint8), labels=np.arange(20))
    return path


def open_all(path, *folders, md5="a"):
    return npz.open_npz(path, [LARGE, SMALL], md5=md5, folders=folders)


def content(folder):
    """Every file and folder below, hidden ones too, with the bytes of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def no_unpacking(monkeypatch):
    monkeypatch.setattr(npz, "_unpack", lambda *args: pytest.fail("unpacked again"))


def test_large_arrays_are_mapped_and_small_ones_read(archive, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    arrays = open_all(archive, folder)
    assert isinstance(arrays[LARGE], np.memmap)
    assert os.path.samefile(arrays[LARGE].filename, folder / "images.npy")
    assert not arrays[LARGE].flags.writeable
    assert type(arrays[SMALL]) is np.ndarray
    whole = open_all(archive)
    assert [type(array) for array in whole.values()] == [np.ndarray] * 2
    for name, array in whole.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert sorted(content(folder)) == ["images.npy", "images.npy.json"]
    no_unpacking(monkeypatch)
    np.testing.assert_array_equal(open_all(archive, folder)[LARGE], whole[LARGE])


def test_small_arrays_are_not_copied(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "LARGE_BYTES", 1 << 20)
    assert type(open_all(archive, tmp_path / "folder")[LARGE]) is np.ndarray
    assert list(content(tmp_path)) == ["data.npz"]


def test_the_threshold_is_the_size_of_the_stored_array(archive, tmp_path, monkeypatch):
    stored = 128 + 20 * 10 * 10  # the header of an .npy file, and the array
    monkeypatch.setattr(npz, "LARGE_BYTES", stored + 1)
    assert type(open_all(archive, tmp_path / "folder")[LARGE]) is np.ndarray
    monkeypatch.setattr(npz, "LARGE_BYTES", stored)
    assert isinstance(open_all(archive, tmp_path / "folder")[LARGE], np.memmap)


def test_a_large_array_is_never_in_memory(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, images=np.zeros((32, 1 << 20), np.uint8), labels=np.arange(32))
    tracemalloc.start()
    try:
        images = open_all(path, tmp_path / "folder")[LARGE]
        assert images[31].sum() == 0
        assert tracemalloc.get_traced_memory()[1] < images.nbytes / 3
        tracemalloc.reset_peak()
        open_all(path, tmp_path / "folder")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.reset_peak()
        open_all(path)
        assert tracemalloc.get_traced_memory()[1] > images.nbytes
    finally:
        tracemalloc.stop()


def test_copies_of_another_archive_are_made_again(archive, tmp_path):
    folder = tmp_path / "folder"
    before = open_all(archive, folder, md5="a")[LARGE]
    assert (open_all(write(archive, 7), folder, md5="b")[LARGE] == 7).all()
    # Whoever has mapped the old copy keeps it.
    assert (before == 0).all()
    assert (open_all(write(archive, 0), folder, md5="a")[LARGE] == 0).all()


@pytest.mark.parametrize("damage", ["altered", "cut", "no note", "broken note", "gone"])
def test_copies_that_were_changed_are_made_again(damage, archive, tmp_path):
    folder = tmp_path / "folder"
    open_all(archive, folder)
    copy, note = folder / "images.npy", folder / "images.npy.json"
    status = copy.stat()
    if damage == "altered":
        copy.write_bytes(copy.read_bytes()[:-1] + b"x")
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif damage == "cut":
        copy.write_bytes(copy.read_bytes()[:-1])
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "gone":
        copy.unlink()
    elif damage == "no note":
        note.unlink()
    else:
        note.write_bytes(b"\xff")
    assert (open_all(archive, folder)[LARGE] == 0).all()
    assert json.loads(note.read_bytes()) == {"size": 2128, "mtime_ns": copy.stat().st_mtime_ns, "md5": "a"}


def test_folders_that_cannot_be_written_are_skipped(archive, tmp_path, monkeypatch):
    first, second = tmp_path / "read-only" / "data", tmp_path / "cache" / "data"
    first.parent.mkdir()
    monkeypatch.setattr(npz.os, "access", lambda path, mode: path != first.parent)
    images = open_all(archive, first, second)[LARGE]
    assert os.path.samefile(images.filename, second / "images.npy")
    assert content(first.parent) == {}


def test_copies_in_a_folder_that_cannot_be_written_are_used(archive, tmp_path, monkeypatch):
    first, second = tmp_path / "read-only", tmp_path / "cache"
    open_all(archive, first)
    no_unpacking(monkeypatch)
    monkeypatch.setattr(npz.os, "access", lambda path, mode: False)
    assert os.path.samefile(open_all(archive, first, second)[LARGE].filename, first / "images.npy")


def test_no_room(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2127))
    before = content(tmp_path)
    with pytest.raises(UserError) as error:
        open_all(archive, tmp_path / "new" / "folder")
    assert str(error.value) == (
        f"{archive}: unpacking its large arrays needs 0.0 MiB, but {tmp_path} has 0.0 MiB left: "
        "make room there, or choose a folder with more space (data.root or MEDMNIST_ROOT)"
    )
    assert content(tmp_path) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2128))
    open_all(archive, tmp_path / "new" / "folder")
    # None is needed for what is there already.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
    open_all(archive, tmp_path / "new" / "folder")


def test_a_copy_that_cannot_be_written_to_its_end(archive, tmp_path):
    before = content(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Of any file that is written: less than the copy needs.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"images\.npy: cannot be written \(File too large\): make room there"):
            open_all(archive, tmp_path / "new" / "folder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path) == before


def test_a_file_in_place_of_the_folder(archive, tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises(UserError, match=r"folder/images\.npy: cannot be written \(File exists\)"):
        open_all(archive, tmp_path / "folder")


@pytest.mark.parametrize("damage", ["bits", "cut", "objects", "no header"])
def test_a_broken_archive_leaves_nothing_behind(damage, archive, tmp_path):
    if damage == "bits":
        broken = bytearray(archive.read_bytes())
        broken[70] ^= 255
        archive.write_bytes(broken)
    elif damage == "objects":
        np.savez_compressed(archive, images=np.array([{}] * 2000, object), labels=np.arange(20))
    else:
        whole = io.BytesIO()
        np.save(whole, np.zeros(5000, np.uint8))
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("images.npy", whole.getvalue()[:-1] if damage == "cut" else bytes(2000))
            file.writestr("labels.npy", whole.getvalue())
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"data\.npz: cannot read array images: ") as error:
        open_all(archive, tmp_path / "new" / "folder")
    assert "\n" not in str(error.value)
    assert content(tmp_path) == before


@pytest.mark.parametrize("folders", [(), ("folder",)])
def test_problems_of_an_archive(folders, archive, tmp_path):
    folders = [tmp_path / name for name in folders]
    with pytest.raises(UserError, match=r"data\.npz: array masks is missing; found: images, labels$"):
        npz.open_npz(archive, ["masks"], md5="a", folders=folders)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"data\.npz: cannot read the archive: "):
        open_all(archive, *folders)


def npy(shape, values=b"", dtype="|u1"):
    """The header of an .npy file that announces `shape`, and some values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + values


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy((400_000, 1_000_000)), r"its shape \(400000, 1000000\) of uint8 does not fit its 128 bytes$"),
        (npy((2**62, 2**62)), "does not fit its 128 bytes$"),
        (npy((-1,), bytes(9)), "does not fit its 137 bytes$"),
        (npy((8,), bytes(9)), "does not fit its 137 bytes$"),
        (b"no array", "the magic string is not correct"),
        (npy((8,), bytes(8)).replace(b"'shape': (8,)", b"'shape': [8, "), "."),
        (npy((8,), bytes(8)).replace(b"'|u1'", b"'|Z1'"), "."),
        (npy((8,), bytes(8))[:20], "."),
    ],
)
def test_wrong_headers_of_arrays(archive, member, message):
    """A header of 373 GB would be believed, and its memory be asked for."""
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("images.npy", member)
        file.writestr("labels.npy", npy((1,), b"1"))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"data\.npz: cannot read array images: .*" + message):
            open_all(archive)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_archives_that_unpack_to_too_much(tmp_path):
    """32 MB of zeros in 32 KB; the limit is that of all arrays together."""
    path = tmp_path / "data.npz"
    np.savez_compressed(path, images=np.zeros(1 << 24, np.uint8), labels=np.zeros(1 << 24, np.uint8))
    arrays = npz.open_npz(path, [LARGE, SMALL], most_bytes=1 << 25)
    assert [array.nbytes for array in arrays.values()] == [1 << 24] * 2
    del arrays
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="cannot read array labels: its 16777344 bytes are too many"):
            npz.open_npz(path, [LARGE, SMALL], most_bytes=(1 << 25) - 1)
        with pytest.raises(UserError, match="cannot read array images: its 16777344 bytes are too many"):
            npz.open_npz(path, [LARGE, SMALL], most_bytes=1000)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * (1 << 24)
    finally:
        tracemalloc.stop()


def test_a_pipe_in_place_of_the_archive(tmp_path):
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(UserError, match=r"data\.npz: cannot read the archive: it is a named pipe, not a regular file"):
        open_all(tmp_path / "data.npz")
    # A single array is refused by its first bytes, whatever it announces.
    (tmp_path / "single.npz").write_bytes(npy((400_000, 1_000_000)))
    with pytest.raises(UserError, match=r"single\.npz: a single array, not an \.npz archive"):
        open_all(tmp_path / "single.npz")


def test_damaged_archives_are_read_or_refused(archive, tmp_path):
    refused = 0
    for _, damaged in mutations(archive.read_bytes(), 40):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            open_all(tmp_path / "damaged.npz")
        except UserError:
            refused += 1
    assert refused > 10


def test_a_note_describes_one_state_of_a_file(tmp_path):
    file, folders = tmp_path / "file", [tmp_path / "first", tmp_path / "second"]
    file.write_bytes(b"abc")
    assert not npz.is_noted(file, folders, "a")
    npz.write_note(file, folders[1:], npz.make_note(file, "a"))
    assert npz.is_noted(file, folders, "a")
    assert not npz.is_noted(file, folders, "b")
    assert not npz.is_noted(file, folders[:1], "a")
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not npz.is_noted(file, folders, "a")
    file.write_bytes(b"abcd")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not npz.is_noted(file, folders, "a")
    file.write_bytes(b"abc")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert npz.is_noted(file, folders, "a")
    file.unlink()
    assert not npz.is_noted(file, folders, "a")


def test_written_archives_are_read_back(tmp_path):
    arrays = {"a": np.arange(3), "b": np.ones((2, 2), np.float32)}
    npz.write_npz(tmp_path / "new" / "file.npz", arrays)
    found = npz.open_npz(tmp_path / "new" / "file.npz", ["b", "a"])
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert list(content(tmp_path / "new")) == ["file.npz"]
