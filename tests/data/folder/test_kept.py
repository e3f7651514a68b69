"""A user's folder is decoded once: what is read at the next start, what is noticed, and what stays as it was."""

import csv
import os
import shutil
import signal
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jaxboost import data, stopping
from jaxboost.config import get_config
from jaxboost.data import decoding
from jaxboost.data.dataset import MappedRows
from jaxboost.data.readers import dicom_patient, npz, versions
from jaxboost.data.rows import place
from jaxboost.data.sources.folder import duplicates, reading, samples
from jaxboost.data.splits import candidates, near_duplicates
from jaxboost.errors import UserError
from jaxboost.runs import datasets
from tests.data.dicoms import write_dicom
from tests.data.natural_images import natural_images

COUNT = 12


def picture(number, shape=(20, 16)):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


class Folder:
    """A folder of pictures; `read` has the names of the files that were read since it was asked last."""

    def __init__(self, root, monkeypatch, count=COUNT):
        self.root, self._read = root, []
        for number in range(count):
            path = root / "ab"[number % 2] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Uncompressed: other pixels take as many bytes.
            Image.fromarray(picture(number)).save(path, compress_level=0)
        read = samples.read

        def noted(item, reading):
            self._read.append(item.path.name)
            return read(item, reading)

        monkeypatch.setattr(samples, "read", noted)

    def load(self, **options):
        return data.load("mine", source="folder", root=str(self.root), **{"size": 8, **options})

    @property
    def read(self):
        found, self._read = sorted(self._read), []
        return found

    @property
    def names(self):
        return sorted(path.name for path in self.root.rglob("*.png"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return Folder(tmp_path / "images", monkeypatch)


def same(one, other):
    """Whether two data sets are equal, pixel by pixel."""
    assert one.info == other.info
    for name, split in one.splits.items():
        for field in ("images", "labels", "names"):
            np.testing.assert_array_equal(getattr(split, field), getattr(other.splits[name], field))


def fingerprint(dataset):
    config = get_config()
    config.data.source = "folder"
    return datasets.fingerprint(dataset, config)


def test_a_file_is_read_once(folder):
    first = folder.load()
    assert folder.read == folder.names
    same(folder.load(), first)
    assert folder.read == []
    # As they are without the cache, in memory and on disk.
    for options in ({"cache": "off"}, {"cache": "renew"}):
        same(folder.load(**options), first)
        assert folder.read == folder.names
    # Another size is another entry.
    folder.load(size=9)
    assert folder.read == folder.names
    folder.load()
    assert folder.read == []


def test_what_is_mapped_is_what_was_in_memory(folder, monkeypatch):
    Image.fromarray(picture(99, (20, 16, 3))).save(folder.root / "b" / "colour.png")
    in_memory = folder.load(cache="off")
    assert type(in_memory.splits["all"].images) is np.ndarray
    folder.load()
    monkeypatch.setattr(npz, "LARGE_BYTES", 100)
    mapped = folder.load()
    assert isinstance(mapped.splits["all"].images, MappedRows)
    assert mapped.splits["all"].images.shape == (COUNT + 1, 8, 8, 3)
    same(mapped, in_memory)
    assert fingerprint(mapped) == fingerprint(in_memory)
    divided = [data.divide(each, ratios=(0.5, 0.25, 0.25), seed=0, file=None) for each in (mapped, in_memory)]
    same(*divided)
    assert fingerprint(divided[0]) == fingerprint(divided[1])


def test_the_fingerprint_is_that_of_earlier_versions(folder):
    """Runs of earlier versions compare it."""
    found = fingerprint(folder.load())
    assert found == {
        "data": "1014392589da0e047a38625a349cac558c9eacc0086ea0d88b37ed6aa04ae6ce",
        "splits": "b393f6177b4259a43abb44864b34c2c62b19a89c7a9a141c732d5d6d701d4e7d",
    }
    Image.fromarray(picture(99, (20, 16, 3))).save(folder.root / "b" / "colour.png")
    assert fingerprint(folder.load())["data"] == "f815f4ba40665bfabaa6c8f10c2283b9e61e41d130fc3672409c1e5cc6d6ee57"


def new_content(path):
    Image.fromarray(picture(77)).save(path)


def same_size_and_time(path):
    """The content alone has changed; no program can set the time of the change back."""
    before = path.stat()
    Image.fromarray(picture(77)).save(path, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def another_file(path):
    """Of the same size and time, as `cp -p` or rsync make it."""
    other = path.with_suffix(".other")
    Image.fromarray(picture(78)).save(other, "png", compress_level=0)
    shutil.copystat(path, other)
    os.replace(other, path)


@pytest.mark.parametrize("change", [new_content, same_size_and_time, another_file])
def test_a_changed_file_alone_is_read_again(folder, change):
    folder.load()
    change(folder.root / "a" / "004.png")
    assert folder.read == folder.names
    same(folder.load(), folder.load(cache="off"))
    assert folder.read == sorted(["004.png", *folder.names])


def test_files_that_come_and_go(folder):
    folder.load()
    assert folder.read
    new_content(folder.root / "a" / "new.png")
    (folder.root / "b" / "003.png").unlink()
    dataset = folder.load()
    assert folder.read == ["new.png"]
    assert len(dataset.splits["all"]) == COUNT
    assert "b/003.png" not in dataset.splits["all"].names


def test_other_code_that_reads_reads_again(folder, monkeypatch):
    folder.load()
    assert folder.read
    monkeypatch.setattr(reading.versions, "_version", lambda name: "2")
    folder.load()
    assert folder.read == folder.names


def test_problems_are_found_at_each_start_in_the_order_of_the_files(folder):
    texts = []
    for name in ("a/006.png", "b/001.png", "b/009.png"):
        (folder.root / name).write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(UserError) as error:
            folder.load()
        texts.append(str(error.value))
    assert texts[0] == texts[1]
    assert "3 problems to fix: a/006.png: is neither a PNG" in texts[0]
    assert [texts[0].index(name) for name in ("a/006", "b/001", "b/009")] == sorted(
        texts[0].index(name) for name in ("a/006", "b/001", "b/009")
    )
    # The sound files were read once.
    assert sorted(folder.read) == sorted([*folder.names, "001.png", "006.png", "009.png"])


def test_warnings_are_given_at_each_start(tmp_path, monkeypatch, package_warnings):
    folder = Folder(tmp_path / "images", monkeypatch)
    # A copy, one with more than 8 bits, and a thumbnail.
    shutil.copy(folder.root / "a" / "002.png", folder.root / "a" / "copy.png")
    Image.fromarray(picture(5).astype(np.uint16) * 200).save(folder.root / "b" / "deep.png")
    (folder.root / "b" / "Thumbs.db").write_bytes(b"x")
    found = []
    for _ in range(2):
        package_warnings.clear()
        folder.load()
        found.append(list(package_warnings))
    assert found[0] == found[1]
    text = "\n".join(found[0])
    for part in ("a/002.png = a/copy.png", "more than 8 bits, each scaled", "b/Thumbs.db", "has no patient ids"):
        assert part in text
    assert folder.read == folder.names


def test_the_warning_of_dark_volumes_stays(tmp_path, package_warnings):
    for number in range(4):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(number).integers(0, 2, (9, 9, 9), np.uint8))
    for _ in range(2):
        package_warnings.clear()
        data.load("mine", source="folder", root=str(tmp_path / "images"), size=8, ndim=3)
        assert any("the greatest value of all volumes is 1 of 255" in text for text in package_warnings)


def test_a_changed_mask_is_noticed(folder):
    masks = folder.root.parent / "masks"
    masks.mkdir()
    for number in range(COUNT):
        Image.fromarray(np.full((20, 16), 255, np.uint8)).save(masks / f"{number:03d}.png")
    folder.load(masks=str(masks))
    assert folder.read == folder.names
    mask = np.zeros((20, 16), np.uint8)
    mask[3:9, 2:8] = 255
    Image.fromarray(mask).save(masks / "005.png")
    found = folder.load(masks=str(masks))
    assert folder.read == ["005.png"]
    same(found, folder.load(masks=str(masks), cache="off"))
    assert folder.read == folder.names
    # In a table, the rows of other images do not matter.
    table = folder.root.parent / "masks.csv"

    def write(runs):
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image_id", "Left Lung", "Right Lung", "Height", "Width"])
            rows.writerows([f"{number:03d}", runs.get(number, "1 300"), "", 20, 16] for number in range(COUNT))

    write({})
    folder.load(masks=str(table))
    assert folder.read == folder.names
    write({7: "40 200"})
    folder.load(masks=str(table))
    assert folder.read == ["007.png"]


def test_the_search_for_nearly_equal_images_is_done_once(tmp_path, monkeypatch, package_warnings):
    monkeypatch.setattr(duplicates, "SEARCHES_KEPT", 2)
    folder = Folder(tmp_path / "images", monkeypatch, count=0)
    pictures = natural_images(10, (48, 48), seed=11)
    for number, values in enumerate([*pictures, pictures[3][:, ::-1]]):
        path = folder.root / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    # The images are never all in memory.
    monkeypatch.setattr(npz, "LARGE_BYTES", 100)
    monkeypatch.setattr(MappedRows, "__array__", None)
    searches, find, mixed = [], near_duplicates.find, {"allow_mixed_patients": True}
    monkeypatch.setattr(near_duplicates, "find", lambda *given, **known: searches.append(1) or find(*given, **known))
    found = []
    for _ in range(2):
        package_warnings.clear()
        folder.load(size=32)
        found.append(list(package_warnings))
    assert len(searches) == 1
    assert found[0] == found[1]
    assert any("a/010.png ~ b/003.png (mirrored or turned;" in text for text in found[0])
    assert len(np.unique(folder.load(size=32, duplicates="join", **mixed).splits["all"].groups)) == 10
    assert len(searches) == 1
    Image.fromarray(pictures[4][::-1]).save(folder.root / "b" / "005.png")
    assert len(np.unique(folder.load(size=32, duplicates="join", **mixed).splits["all"].groups)) == 9
    assert len(searches) == 2


def test_unchanged_images_are_not_compared_again(tmp_path, monkeypatch, package_warnings):
    """The note of the search: what is found with it is what is found without a cache."""
    monkeypatch.setattr(duplicates, "SEARCHES_KEPT", 2)
    monkeypatch.setattr(candidates, "SAMPLE", 2)
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path / "cache"))
    folder = Folder(tmp_path / "images", monkeypatch, count=0)
    pictures, compared, find = natural_images(12, (48, 48), seed=11), [], near_duplicates.find

    def save(number, values, label="a"):
        path = folder.root / label / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path, compress_level=0)
        return path

    def noted(*given, known=None, **options):
        compared.append(None if known is None else int(known.fresh.sum()))
        return find(*given, known=known, **options)

    def load(**options):
        found = []
        for cache in ("auto", "off"):
            package_warnings.clear()
            folder.load(size=32, cache=cache, **options)
            found.append([text for text in package_warnings if "nearly equal" in text])
            if cache == "auto":
                taken = compared.copy()
            compared.clear()
        assert found[0] == found[1]
        return taken, "".join(found[0])

    monkeypatch.setattr(near_duplicates, "find", noted)
    for number in range(9):
        save(number, pictures[number], "ab"[number % 2])
    copy = save(20, pictures[4][:, ::-1])
    taken, text = load()
    assert (taken, "a/004.png ~ a/020.png" in text) == ([None], True)
    assert load() == ([], text)
    added = save(21, pictures[5] // 2)
    assert load()[0] == [1]
    # Exchanged: the same images with other names, each a patient of its own.
    copy.rename(folder.root / "other.png")
    added.rename(copy)
    (folder.root / "other.png").rename(added)
    taken, text = load()
    assert (taken, "a/004.png ~ a/021.png" in text) == ([4], True)
    added.unlink()
    taken, text = load()
    assert (taken, "a/004.png" in text) == ([1], False)
    # Another version of the search finds all anew, and so does one whose note is damaged.
    monkeypatch.setattr(versions, "identity", lambda files: "another version")
    assert [load()[0] for _ in range(2)] == [[None], []]
    notes = list((tmp_path / "cache").rglob("note-near-duplicates-*.json"))
    for note in notes:
        note.write_bytes(note.read_bytes().replace(b'"gap": ""', b'"gap": "none"'))
    assert [load() for _ in range(2)] == [([None], text), ([], text)]
    assert len(notes) == 1


def test_many_files_are_read_by_processes(tmp_path, monkeypatch):
    """The same pixels and problems as threads give; `samples.read` of the workers is not the one of this process."""
    folder = Folder(tmp_path / "images", monkeypatch, count=210)
    (folder.root / "a" / "100.png").write_bytes(b"nothing")
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "cores", lambda: 2)
    with pytest.raises(UserError, match=r"1 problem to fix: a/100\.png: is neither a PNG"):
        folder.load()
    Image.fromarray(picture(1000)).save(folder.root / "a" / "100.png")
    found = folder.load()
    monkeypatch.setattr(decoding, "workers_for", lambda *_: 0)
    same(found, folder.load(cache="off"))


def test_a_stop_while_files_are_read_keeps_what_was_read(folder, monkeypatch):
    monkeypatch.setattr(decoding, "cores", lambda: 1)
    original, count = decoding.call, []

    def stopped(*given, **options):
        for result in original(*given, **options):
            count.append(1)
            if len(count) == 6:
                signal.raise_signal(signal.SIGTERM)
            yield result

    monkeypatch.setattr(decoding, "call", stopped)
    with stopping.watch(), pytest.raises(stopping.Stopped):
        folder.load()
    assert folder.read
    found = folder.load()
    # Five were kept.
    assert len(folder.read) == COUNT - 5
    same(found, folder.load(cache="off"))


def test_memory_does_not_grow_with_the_folder(tmp_path, monkeypatch):
    """Reading and the fingerprint need memory for some images, not for all."""
    monkeypatch.setattr(npz, "LARGE_BYTES", 1000)
    monkeypatch.setattr(decoding, "cores", lambda: 1)
    folder = Folder(tmp_path / "images", monkeypatch, count=24)
    # Of one patient: nothing to search.
    for name in "ab":
        (folder.root / name).rename(folder.root / "moved")
        (folder.root / name).mkdir()
        (folder.root / "moved").rename(folder.root / name / "patient")
    size = 24 * 512 * 512
    for _ in range(2):
        tracemalloc.start()
        try:
            dataset = folder.load(size=512, allow_mixed_patients=True)
            fingerprint(dataset)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert dataset.splits["all"].images.nbytes == size
        assert peak < size / 2


def test_the_cache_is_where_it_is_wanted(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path / "shared"))
    folder.load()
    (entry,) = (tmp_path / "shared" / "jaxboost-images").iterdir()
    assert entry.name.startswith("images-")
    assert f'"folder": "{folder.root}"' in (entry / place.ABOUT).read_text()
    monkeypatch.delenv(place.ENVIRONMENT)
    monkeypatch.setattr(place.pooch, "os_cache", lambda name: tmp_path / "user" / name)
    folder.load()
    assert (tmp_path / "user" / "jaxboost" / "jaxboost-images").is_dir()


def test_a_bound_on_the_disk_space(folder, package_warnings):
    assert len(folder.load(cache_gb=COUNT * 64 / 1e9 - 1e-9).splits["all"]) == COUNT
    assert any("stay in memory: they take" in text and "raise it" in text for text in package_warnings)
    assert folder.read == folder.names
    folder.load()
    assert folder.read == folder.names


def test_patients_of_dicom_tags_are_kept_as_hashes_alone(tmp_path, monkeypatch):
    for number in range(4):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(path, picture(number), PatientID=f"SECRET{number // 2 * 2 + number % 2}")
    read, patient_of = [], dicom_patient.patient_of
    monkeypatch.setattr(dicom_patient, "patient_of", lambda path: read.append(path.name) or patient_of(path))

    def load():
        read.clear()
        return data.load("mine", source="folder", root=str(tmp_path / "images"), size=8, patient="tag")

    first = load().splits["all"].groups.tolist()
    assert sorted(read) == ["0.dcm", "1.dcm", "2.dcm", "3.dcm"]
    assert load().splits["all"].groups.tolist() == first
    assert read == []
    for path in place.home().rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()
    # Ids that may be one are a problem also where one of them is known already.
    write_dicom(tmp_path / "images" / "a" / "2.dcm", picture(2), PatientID="secret3")
    with pytest.raises(UserError, match="has a patient id in its tags that is written nearly like that of"):
        load()
    assert read == ["2.dcm"]
