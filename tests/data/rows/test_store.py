"""Rows on disk: made once, mapped, checked, shared by processes, and in memory where the disk takes no more."""

import concurrent.futures
import errno
import os
import shutil
import signal
import threading

import numpy as np
import pytest

from jaxboost import stopping
from jaxboost.data import dataset, mapped_array
from jaxboost.data.dataset import MappedRows, row_digests
from jaxboost.data.readers import npz
from jaxboost.data.rows import marks, part, place
from jaxboost.data.rows.store import Made, Store

SHAPE = (4, 4, 1)


def row(value, shape=SHAPE):
    return np.full(shape, value, np.uint8)


class Folder:
    """A store in a folder, opened anew by each `complete`; `made` has the keys that were made."""

    def __init__(self, path):
        self.path, self.made = path, []

    def complete(self, wanted, values=None, *, renew=False, **options):
        """`wanted` is key -> stamp, `values` key -> the value of the row's pixels; without one: the key's number."""
        store = Store(self.path, what="images", renew=renew, **options)

        def make(missing):
            for key in missing:
                self.made.append(key)
                yield Made(key, row((values or {}).get(key, int(key))), {"is": key})

        store.complete(wanted, make)
        return store

    def values(self, store, keys):
        return np.asarray(store.array(keys))[:, 0, 0, 0].tolist()

    @property
    def files(self):
        """Names, without those that say that this process uses them."""
        return sorted(path.name for path in self.path.iterdir() if not path.name.startswith(marks.PREFIX))

    def taken(self):
        made, self.made = self.made, []
        return made


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "rows")


def wanted(count, stamp="s"):
    return {str(number): stamp for number in range(count)}


def test_rows_are_made_once_and_again_if_they_changed(folder):
    store = folder.complete(wanted(5))
    assert folder.taken() == ["0", "1", "2", "3", "4"]
    assert folder.values(store, ["3", "0", "3"]) == [3, 0, 3]
    store = folder.complete(wanted(5))
    assert folder.taken() == []
    assert folder.values(store, list(wanted(5))) == [0, 1, 2, 3, 4]
    assert store.about("4") == {"is": "4"}
    store = folder.complete(wanted(5) | {"2": "t", "7": "s"}, {"2": 22})
    assert folder.taken() == ["2", "7"]
    assert folder.values(store, ["1", "2", "7"]) == [1, 22, 7]
    # Without a lock that it leaves behind, and without temporary files.
    assert {name.partition("-")[0] for name in folder.files} == {"rows"}
    store = folder.complete(wanted(5), {"1": 11}, renew=True)
    assert folder.taken() == list(wanted(5))
    assert folder.values(store, ["0", "1"]) == [0, 11]
    folder.complete(wanted(5), version="2")
    assert folder.taken() == list(wanted(5))
    assert len(list(folder.path.glob("*.npy"))) == 1


def test_rows_without_a_folder_are_in_memory():
    folder = Folder(None)
    assert folder.values(folder.complete(wanted(3)), ["2", "1"]) == [2, 1]
    folder.complete(wanted(3))
    assert folder.taken() == ["0", "1", "2"] * 2


@pytest.mark.parametrize("large", [1, 1 << 30])
def test_grey_rows_beside_rows_in_colour(tmp_path, monkeypatch, large):
    monkeypatch.setattr(npz, "LARGE_BYTES", large)
    rows = {"a": row(1), "b": np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "c": row(3)}
    for _ in range(2):
        store = Store(tmp_path, what="images")
        store.complete(dict.fromkeys(rows, ""), lambda keys: (Made(key, rows[key]) for key in keys))
        found = store.array(list("cab"))
        assert isinstance(found, MappedRows if large == 1 else np.ndarray)
        expected = np.stack([np.broadcast_to(rows[key], (4, 4, 3)) for key in "cab"])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found[1:], expected[1:])
        np.testing.assert_array_equal(found[[2, 0]], expected[[2, 0]])
        assert list(row_digests(found)) == list(row_digests(expected))


def test_known_digests_are_those_of_the_rows(folder, monkeypatch):
    monkeypatch.setattr(npz, "LARGE_BYTES", 1)
    images = folder.complete(wanted(6)).array(["4", "1", "5"])
    joined = MappedRows([images, np.asarray(images)]).take(np.array([5, 0, 1]))
    expected = list(row_digests(np.asarray(joined)))
    assert list(row_digests(joined)) == expected
    monkeypatch.setattr(dataset, "digest_of", None)
    assert list(row_digests(images)) == [expected[1], expected[2], expected[0]]


def damage(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def other_pixel(path):
    """Of a row that is not compared at each start, so only the file's time tells."""
    damage(path, lambda content: content.__setitem__(-3 * 16, 99))


DAMAGES = {
    "cut": (".npy", lambda path: os.truncate(path, path.stat().st_size - 5)),
    "empty": (".npy", lambda path: path.write_bytes(b"")),
    "other pixel": (".npy", other_pixel),
    "other shape": (".npy", lambda path: path.write_bytes(path.read_bytes().replace(b"4, 4, 1", b"4, 1, 4"))),
    "gone": (".npy", lambda path: path.unlink()),
    "cut index": (".json", lambda path: os.truncate(path, path.stat().st_size - 5)),
    "empty index": (".json", lambda path: path.write_bytes(b"")),
    "other key": (".json", lambda path: path.write_bytes(path.read_bytes().replace(b'"17"', b'"18"'))),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_noticed(folder, name, package_warnings):
    suffix, change = DAMAGES[name]
    folder.complete(wanted(300), {key: int(key) % 256 for key in wanted(300)})
    folder.taken()
    (path,) = folder.path.glob(f"*{suffix}")
    change(path)
    for _ in range(2):
        store = folder.complete(wanted(300), {key: int(key) % 256 for key in wanted(300)})
        assert folder.values(store, list(wanted(300))) == [number % 256 for number in range(300)]
    assert folder.taken() == list(wanted(300))
    (text,) = package_warnings
    assert "is damaged (" in text
    assert text.endswith("its images are made again")
    assert (folder.path / "damaged.npy").exists()


def test_a_copy_of_the_folder_is_compared_once(folder, monkeypatch, package_warnings):
    folder.complete(wanted(200))
    folder.taken()
    # Without the times of the files.
    moved = Folder(shutil.copytree(folder.path, folder.path.with_name("copy"), copy_function=shutil.copyfile))
    compared = []
    digest_of = part.digest_of
    monkeypatch.setattr(part, "digest_of", lambda row: compared.append(1) or digest_of(row))
    for count in (200, 64):
        compared.clear()
        assert moved.values(moved.complete(wanted(200)), ["7"]) == [7]
        assert len(compared) == count
    assert (moved.made, package_warnings) == ([], [])


def test_what_was_made_before_a_stop_is_kept(folder):
    store = Store(folder.path, what="images")

    def make(missing):
        for number, key in enumerate(missing):
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            yield Made(key, row(int(key)))

    with stopping.watch(), pytest.raises(stopping.Stopped):
        store.complete(wanted(6), make)
    assert folder.values(folder.complete(wanted(6)), list(wanted(6))) == list(range(6))
    assert folder.taken() == ["3", "4", "5"]


def test_what_a_killed_process_left_is_removed(folder):
    folder.path.mkdir()
    for name in (".rows-0123.part", "rows-0123.npy"):
        (folder.path / name).write_bytes(b"x")
    folder.complete(wanted(2))
    assert len(folder.files) == 2


def test_a_full_disk(folder, monkeypatch, package_warnings):
    """In the middle of the fourth row: the rows before it are kept as long as the process runs, others in memory."""
    write, count = mapped_array.ArrayFile.write, []

    def until_full(self, values):
        count.append(1)
        if len(count) == 4:
            self._file.write(b"12345")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, values)

    monkeypatch.setattr(mapped_array.ArrayFile, "write", until_full)
    store = folder.complete(wanted(6))
    assert folder.values(store, list(wanted(6))) == list(range(6))
    (text,) = package_warnings
    assert text == (
        f"the images are not all kept for the next start, and stay in memory: {folder.path} cannot be written"
        " (No space left on device): make room"
    )
    assert folder.files == []
    assert folder.taken() == list(wanted(6))
    assert folder.values(folder.complete(wanted(6)), ["5"]) == [5]
    assert folder.taken() == list(wanted(6))


def test_a_folder_that_cannot_be_written(folder, monkeypatch, package_warnings):
    folder.complete(wanted(3))
    folder.taken()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(part.pathlib.Path, "mkdir", refuse)
    # What is there is used.
    assert folder.values(folder.complete(wanted(3)), ["2"]) == [2]
    assert package_warnings == []
    assert folder.values(folder.complete(wanted(5)), ["1", "4"]) == [1, 4]
    assert folder.taken() == ["3", "4"]
    (text,) = package_warnings
    assert text.startswith(f"the images are not kept for the next start: {folder.path} cannot be written (Read-only")


def test_a_disk_without_room_is_not_filled(folder, package_warnings):
    needed = []

    def room(count):
        needed.append(count)
        return "they take much: make room"

    store = folder.complete(wanted(6), room=room)
    assert folder.values(store, ["5"]) == [5]
    assert needed == [6 * 16]
    (text,) = package_warnings
    assert text.endswith("and stay in memory: they take much: make room")


def test_one_makes_and_the_others_wait(folder):
    begun, goes_on, made = threading.Event(), threading.Event(), []

    def make(missing):
        for key in missing:
            begun.set()
            assert goes_on.wait(60)
            made.append(key)
            yield Made(key, row(int(key)))

    def complete():
        store = Store(folder.path, what="images")
        store.complete(wanted(3), make)
        return folder.values(store, ["0", "1", "2"])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(complete)
        assert begun.wait(60)
        second = pool.submit(complete)
        goes_on.set()
        assert [each.result(60) for each in (first, second)] == [[0, 1, 2]] * 2
    assert made == ["0", "1", "2"]


def test_rows_that_are_out_of_date_are_removed(folder):
    for stamp in "abcd":
        store = folder.complete(wanted(4, stamp))
    sizes = [len(np.load(path, mmap_mode="r")) for path in folder.path.glob("*.npy")]
    assert sum(sizes) <= 8
    assert folder.values(store, list(wanted(4, "d"))) == [0, 1, 2, 3]
    folder.taken()
    folder.complete(wanted(4, "d"))
    assert folder.taken() == []


def test_rows_by_content_are_never_out_of_date(folder):
    for first in (0, 10, 20):
        folder.complete({str(number): "" for number in range(first, first + 3)}, only_latest=False)
    folder.taken()
    folder.complete({"1": "", "12": "", "21": ""}, only_latest=False)
    assert folder.taken() == []


def test_many_small_parts_are_joined(folder):
    for count in range(1, 40):
        store = folder.complete(wanted(count))
    assert folder.values(store, list(wanted(39))) == list(range(39))
    assert len(list(folder.path.glob("*.npy"))) < 10
    folder.taken()
    assert folder.values(folder.complete(wanted(39)), ["38", "0"]) == [38, 0]
    assert folder.taken() == []


def test_a_part_is_closed_when_it_is_large(folder, monkeypatch):
    monkeypatch.setattr(part, "MOST_BYTES", 3 * 16)
    folder.complete(wanted(8))
    store = folder.complete(wanted(8))
    assert len(list(folder.path.glob("*.npy"))) == 3
    assert folder.values(store, list(wanted(8))) == list(range(8))


def test_a_note_holds_for_what_it_depends_on(folder):
    store, made = folder.complete(wanted(1)), []

    def note(of, update=lambda value: value):
        return store.notes.updated("search", of, lambda value: update(value) if value else made.append(of) or [of, 1])

    assert [note(of) for of in "aab"] == [["a", 1], ["a", 1], ["b", 1]]
    assert made == ["a", "b"]
    assert note("b", lambda value: [*value, 2]) == note("b") == ["b", 1, 2]
    (folder.path / "note-search.json").write_bytes((folder.path / "note-search.json").read_bytes().replace(b"1", b"2"))
    assert note("b") == ["b", 1]
    assert made == ["a", "b", "b"]


def test_entries_that_were_not_used_for_longest_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path))
    entries = [place.entry("data of mine/x", {"number": number}) for number in range(3)]
    assert entries[0].name.startswith("data_of_mine_x-")
    for number, entry in enumerate(entries):
        place.describe(entry, {"number": number})
        (entry / "rows-1.npy").write_bytes(bytes(1000))
        os.utime(entry / place.ABOUT, (number, number))
    place.describe(entries[0], {})
    assert place.make_room(entries[2], 500, 3700) == ""
    assert [entry.exists() for entry in entries] == [True, True, True]
    # The second was not used again.
    assert place.make_room(entries[2], 500, 3600) == ""
    assert [entry.exists() for entry in entries] == [True, False, True]
    assert place.make_room(entries[2], 500, 1000).endswith("and data.cache_gb=1e-06: raise it")
    assert [entry.exists() for entry in entries] == [True, False, True]
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 8, (1 << 30) + 400))
    assert "GB left: make room" in place.make_room(entries[2], 500, 10**9)
