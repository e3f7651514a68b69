"""What must not happen to rows on disk: that good ones are removed, foreign files touched, or damage overlooked."""

import errno
import os
import shutil
import stat
import time

import numpy as np
import pytest

from jaxboost import launched
from jaxboost.data import dataset, mapped_array
from jaxboost.data.dataset import MappedRows
from jaxboost.data.readers import npz
from jaxboost.data.rows import marks, opening, part, place, store
from jaxboost.data.rows.store import Made, Store
from jaxboost.data.sources.folder import reading, samples
from jaxboost.errors import UserError
from jaxboost.runs import together


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path))
    return place.home()


def complete(folder, count=6, *, first=0, value=0, stamp="s", **options):
    """A store with the rows `first` to `count`, whose keys were made; the row of key k has the pixels k + value."""
    made, found = [], Store(folder, what="images", **options)

    def make(missing):
        for key in missing:
            made.append(key)
            yield Made(key, np.full((4, 4, 1), int(key) + value, np.uint8))

    found.complete({str(number): stamp for number in range(first, count)}, make)
    return found, made


def values(found, count=6):
    return np.asarray(found.array([str(number) for number in range(count)]))[:, 0, 0, 0].tolist()


def arrays(folder):
    return sorted(path.name for path in folder.glob("rows-*.npy"))


def another(folder, host="other", age=0.0):
    """Marks a folder as used by a process on another machine."""
    mark = folder / f"{marks.PREFIX}{host}-1-0123"
    mark.touch()
    os.utime(mark, (time.time() - age,) * 2)
    return mark


def entry(number, size=1000):
    made = place.entry("x", {"number": number})
    place.describe(made, {"number": number})
    (made / "rows-1.npy").write_bytes(bytes(size))
    os.utime(made / place.ABOUT, (number + 1, number + 1))
    return made


def test_only_our_own_files_make_room(home):
    ours, new = entry(0), entry(1)
    (ours / "mine.png").write_bytes(b"x")
    for name in ("pictures", "pictures with text"):
        (home / name).mkdir()
        (home / name / "a.png").write_bytes(bytes(5000))
        (home / name / "rows-1.npy").write_bytes(b"x")
    (home / "pictures with text" / place.ABOUT).write_text('{"text": 1}')
    assert home.name == "jaxboost-images"
    assert place.make_room(new, 500, 1800) == ""
    assert [path.name for path in ours.iterdir()] == ["mine.png"]
    assert [len(list((home / name).iterdir())) for name in ("pictures", "pictures with text")] == [2, 3]


def test_nothing_is_removed_if_that_does_not_make_enough_room(home, monkeypatch):
    old, new = entry(0), entry(1)
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 8, 1 << 30))
    assert "GB left: make room" in place.make_room(new, 5000, 10**9)
    assert old.exists()


def test_entries_in_use_stay(home):
    used, held, left, new = (entry(number) for number in range(4))
    another(used)
    another(left, age=marks.LEASE + 60)
    lease = place.lock(held)
    lease.acquire()
    assert place.make_room(new, 500, 4000) == ""
    assert [each.exists() for each in (used, held, left)] == [True, True, False]
    assert "those that other processes use" in place.make_room(new, 500, 2500)
    lease.release()
    assert place.make_room(new, 500, 3000) == ""
    assert [each.exists() for each in (used, held)] == [True, False]


def test_a_process_says_that_it_uses_a_folder(tmp_path):
    complete(tmp_path)
    (mark,) = tmp_path.glob(f"{marks.PREFIX}*")
    about = tmp_path / place.ABOUT
    about.touch()
    for file in (mark, about):
        os.utime(file, (1, 1))
    marks._own.touch()
    assert min(mark.stat().st_mtime, about.stat().st_mtime) > time.time() - 100
    marks.forget(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("how", ["renewed", "another version", "changed files"])
def test_what_another_machine_has_mapped_stays_until_it_ends(tmp_path, how):
    complete(tmp_path)
    before, mark = arrays(tmp_path), another(tmp_path)
    for number in range(3):
        found, made = {
            "renewed": lambda: complete(tmp_path, value=10, renew=True),
            "another version": lambda: complete(tmp_path, value=10, version="2"),
            "changed files": lambda number=number: complete(tmp_path, value=10, stamp=f"t{number}"),
        }[how]()
        assert values(found) == [10, 11, 12, 13, 14, 15]
        assert (len(made) == 6) == (number == 0 or how == "changed files")
    assert set(before) <= set(arrays(tmp_path))
    mark.unlink()
    options = {"version": "2"} if how == "another version" else {}
    found, made = complete(tmp_path, value=10, stamp="t2" if how == "changed files" else "s", **options)
    assert (values(found), made) == ([10, 11, 12, 13, 14, 15], [])
    assert not set(before) & set(arrays(tmp_path))


def test_processes_of_this_machine_keep_what_they_have_mapped(tmp_path):
    found, _ = complete(tmp_path)
    before = arrays(tmp_path)
    another(tmp_path, host=marks._host())
    complete(tmp_path, value=10, renew=True)
    assert not set(before) & set(arrays(tmp_path))
    assert values(found) == [0, 1, 2, 3, 4, 5]


def refused(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM])
def test_a_refused_read_is_no_damage(tmp_path, monkeypatch, number):
    complete(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(mapped_array, "open_array", refused(number))
        with pytest.raises(UserError, match=rf"cannot be read \({os.strerror(number)}\): .*, or remove") as error:
            complete(tmp_path)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert complete(tmp_path)[1] == []


def test_many_parts_may_be_open(monkeypatch):
    limits = []
    monkeypatch.setattr(opening.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(opening.resource, "setrlimit", lambda _, limit: limits.append(limit))
    for count in (100, 700, 9000):
        opening.allow_files(count)
    assert limits == [(1912, 4096), (4096, 4096)]


def test_a_large_store_has_larger_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "MOST_BYTES", 16)
    monkeypatch.setattr(part, "MOST_PARTS", 4)
    assert values(complete(tmp_path, 40)[0], 40) == list(range(40))
    assert len(arrays(tmp_path)) == 4


def test_a_disk_that_is_full_at_the_end_of_joining_keeps_all(tmp_path, monkeypatch):
    for count in range(1, 4):
        complete(tmp_path, count)
    monkeypatch.setattr(store, "_SPARE_PARTS", 2)
    replace = os.replace

    def full(source, target):
        # The joined part.
        if str(target).endswith(".npy") and len(arrays(tmp_path)) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    found, _ = complete(tmp_path, 4)
    assert values(found, 4) == [0, 1, 2, 3]
    assert len(arrays(tmp_path)) == 4
    assert complete(tmp_path, 4)[1] == []
    monkeypatch.undo()
    found, made = complete(tmp_path, 4)
    assert (values(found, 4), made, found.is_kept) == ([0, 1, 2, 3], [], True)


def test_rows_in_memory_are_not_kept(tmp_path):
    assert not complete(tmp_path, room=lambda needed: "no room")[0].is_kept
    assert not complete(None)[0].is_kept
    assert complete(tmp_path)[0].is_kept


def remove_and_refuse(folder, monkeypatch):
    write, count = mapped_array.ArrayFile.write, []

    def gone(self, values):
        count.append(1)
        if len(count) == 4:
            shutil.rmtree(folder)
            raise OSError(errno.ESTALE, "Stale file handle")
        write(self, values)

    monkeypatch.setattr(mapped_array.ArrayFile, "write", gone)


def test_a_folder_that_is_removed_while_rows_are_written(tmp_path, monkeypatch, package_warnings):
    remove_and_refuse(tmp_path / "rows", monkeypatch)
    found, made = complete(tmp_path / "rows")
    assert values(found) == list(range(6))
    assert len(made) == 6
    assert "the folder is gone" in package_warnings[0]


def test_rows_that_are_lost_with_their_folder_are_made_again(tmp_path, monkeypatch):
    """As on a network file system, where the open file is lost too."""
    remove_and_refuse(tmp_path / "rows", monkeypatch)
    monkeypatch.setattr(mapped_array.ArrayFile, "mapped", refused(errno.ESTALE))
    found, made = complete(tmp_path / "rows")
    assert values(found) == list(range(6))
    assert made == ["0", "1", "2", "3", "4", "5", "0", "1", "2"]


def test_zeros_after_a_power_cut_are_noticed(tmp_path, monkeypatch, package_warnings):
    compared, digest_of = [], part.digest_of
    monkeypatch.setattr(part, "digest_of", lambda row: compared.append(1) or digest_of(row))
    monkeypatch.setattr(store, "_SAMPLE", 2)
    complete(tmp_path)
    # The rows are compared at the next start, and then known to be on the disk.
    for count in (6, 2):
        compared.clear()
        assert complete(tmp_path)[1] == []
        assert len(compared) == count
    complete(tmp_path, renew=True)
    (file,) = tmp_path.glob("*.npy")
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-4 * 16 : -3 * 16] = bytes(16)
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    found, made = complete(tmp_path)
    assert (values(found), len(made)) == (list(range(6)), 6)
    assert "row 2 of" in package_warnings[0]


def test_rows_are_renewed_once_for_all_processes_of_a_command(tmp_path, monkeypatch):
    complete(tmp_path)
    assert len(complete(tmp_path, value=10, renew=True)[1]) == 6
    # As another process of the same command, and as one that waited for this one.
    assert complete(tmp_path, renew=True)[1] == []
    monkeypatch.setenv(launched._VARIABLE, repr(time.time() + 1))
    waiting = Store(tmp_path, what="images", renew=True)
    assert len(complete(tmp_path, value=20, renew=True)[1]) == 6
    waiting.complete({str(number): "s" for number in range(6)}, None)
    assert values(waiting) == [20, 21, 22, 23, 24, 25]


def test_a_command_passes_its_start_on(monkeypatch):
    monkeypatch.delenv(launched._VARIABLE, raising=False)
    launched.pass_on()
    passed = launched.seconds()
    monkeypatch.setattr(launched, "_imported", passed + 100)
    launched.pass_on()
    assert launched.seconds() == passed


def test_copies_on_several_machines_have_entries_of_their_own(home, tmp_path, monkeypatch):
    images, how = tmp_path / "images", samples.Reading(ndim=2, size=8)
    images.mkdir()

    def folder():
        return reading.open_store(images, how, place.Keeping(), masked=False).folder

    first = folder()
    assert folder() == first
    images.rename(tmp_path / "other")
    images.mkdir()
    second = folder()
    assert second != first
    monkeypatch.setattr(place.os, "statvfs", lambda _: type("Found", (), {"f_fsid": 7}))
    assert folder() not in (first, second)


def test_images_of_patients_are_for_their_owner_alone(home):
    made = place.entry("x", {})
    place.describe(made, {})
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    place.describe(made, {})
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_processes_compare_images_by_known_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "LARGE_BYTES", 1)
    images, labels = complete(tmp_path)[0].array(["0", "3"]), np.arange(2)
    cells = np.array([["61"], ["40"]])
    in_memory = together._digest(np.asarray(images), labels, cells)
    monkeypatch.setattr(dataset, "digest_of", None)
    monkeypatch.setattr(MappedRows, "__getitem__", None)
    assert isinstance(images, MappedRows)
    assert together._digest(images, labels, cells) == in_memory
    assert together._digest(images.take(np.array([1, 0])), labels, cells) != in_memory
    assert together._digest(images, labels, cells[::-1]) != in_memory
