"""Large MedMNIST files, tested with small ones and a low threshold: verified once, memory-mapped, never read whole."""

import logging
import os
import pathlib
import shutil
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from jaxboost.config import table
from jaxboost.data import fold_of, load
from jaxboost.data.dataset import MappedRows, Split, join_splits
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.pipeline.elements import SplitSource
from jaxboost.data.readers import npz
from jaxboost.data.sources import medmnist
from jaxboost.errors import UserError
from jaxboost.runs import datasets
from jaxboost.training import source_tokens

FLAG = "pathmnist"
LARGE_BYTES = 600


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(npz, "LARGE_BYTES", LARGE_BYTES)


@pytest.fixture
def sums(monkeypatch):
    """The files whose MD5 sum was computed."""
    taken = []
    digest_of = medmnist.digest_of
    monkeypatch.setattr(medmnist, "digest_of", lambda path, kind: taken.append(path) or digest_of(path, kind))
    return taken


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def load_flag(root, flag=FLAG):
    return load(flag, size=28, root=str(root))


def cohort(n=30):
    """Arrays of a binary data set with enough samples for folds; no two images are alike."""
    arrays, first = {}, 0
    for split, count in {"train": n, "val": n // 3, "test": n // 3}.items():
        numbers = np.arange(first, first := first + count, dtype=np.uint8)
        arrays[f"{split}_images"] = np.broadcast_to(numbers[:, None, None], (count, 28, 28)).copy()
        arrays[f"{split}_labels"] = numbers[:, None] % 2
    return arrays


@pytest.fixture
def both(write_official, tmp_path, monkeypatch):
    """The same data set in memory and memory-mapped."""
    write_official("breastmnist", 28, **cohort())
    in_memory = load_flag(tmp_path, "breastmnist")
    monkeypatch.setattr(npz, "LARGE_BYTES", LARGE_BYTES)
    return in_memory, load_flag(tmp_path, "breastmnist")


def test_a_large_file_is_checked_once(large, sums, write_official, tmp_path):
    path = write_official(FLAG, 28)
    load_flag(tmp_path)
    assert sums == [path]
    images = [f"unpacked/pathmnist/{split}_images.npy" for split in ("test", "train", "val")]
    notes = ["unpacked/pathmnist/pathmnist.npz.json", *(f"{image}.json" for image in images)]
    assert files(tmp_path) == sorted(["pathmnist.npz", *images, *notes])
    load_flag(tmp_path)
    assert sums == [path]


def test_a_small_file_is_checked_every_time(sums, write_official, tmp_path):
    path = write_official(FLAG, 28)
    load_flag(tmp_path)
    load_flag(tmp_path)
    assert sums == [path, path]
    assert files(tmp_path) == ["pathmnist.npz"]


def test_a_file_with_another_time_is_checked_again(large, sums, write_official, tmp_path, monkeypatch):
    path = write_official(FLAG, 28)
    load_flag(tmp_path)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    monkeypatch.setattr(npz, "_unpack", lambda *args: pytest.fail("unpacked again"))
    load_flag(tmp_path)
    load_flag(tmp_path)
    assert sums == [path, path]


def test_a_tampered_file_of_the_same_size_is_found(large, write_official, tmp_path):
    path = write_official(FLAG, 28)
    load_flag(tmp_path)
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(UserError, match=r"pathmnist\.npz: altered or truncated \(MD5 "):
            load_flag(tmp_path)


def test_another_release_of_the_file_is_unpacked_again(large, write_official, tmp_path):
    write_official(FLAG, 28)
    load_flag(tmp_path)
    images = np.full((3, 28, 28, 3), 9, np.uint8)
    write_official(FLAG, 28, train_images=images)
    np.testing.assert_array_equal(load_flag(tmp_path).splits["train"].images, images)


def test_a_downloaded_large_file_is_not_checked_again(large, sums, info, write_official, server, tmp_path):
    server.files["/file.npz"] = write_official(FLAG, 28).read_bytes()
    info[FLAG]["url"] = f"{server.url}/file.npz"
    root = tmp_path / "root"
    load_flag(root)
    assert len(sums) == 1
    load_flag(root)
    assert len(sums) == 1
    assert isinstance(load_flag(root).splits["train"].images, np.memmap)


def test_a_root_that_cannot_be_written(large, sums, write_official, tmp_path, monkeypatch):
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
    write_official(FLAG, 28, folder=roots[0])
    shutil.copyfile(roots[0] / "pathmnist.npz", roots[1] / "pathmnist.npz")
    monkeypatch.setattr(npz.os, "access", lambda path, mode: path not in roots)
    monkeypatch.setattr(medmnist.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    images = [load_flag(root).splits["train"].images for root in roots]
    for root, mapped in zip(roots, images, strict=True):
        assert files(root) == ["pathmnist.npz"]
        assert pathlib.Path(mapped.filename).is_relative_to(tmp_path / "cache" / "jaxboost" / "unpacked")
        load_flag(root)
    # The notes of one root are not used for another.
    assert images[0].filename != images[1].filename
    assert len(sums) == 2


def test_a_check_that_cannot_be_noted(write_official, tmp_path, monkeypatch, caplog):
    """Without large arrays the folder of the copies is not needed."""
    path = write_official(FLAG, 28)
    monkeypatch.setattr(npz, "LARGE_BYTES", path.stat().st_size)
    (tmp_path / "unpacked").write_text("")
    monkeypatch.setattr(medmnist.pooch, "os_cache", lambda name: tmp_path / "unpacked" / name)
    with caplog.at_level(logging.WARNING):
        dataset = load_flag(tmp_path)
    assert f"{path}: its MD5 sum will be checked at every start, because the result cannot be saved: " in caplog.text
    assert not isinstance(dataset.splits["train"].images, np.memmap)


def test_elements_are_plain_arrays(both):
    source = SplitSource(both[1].splits["train"])
    image = source[3]["image"]
    assert type(image) is np.ndarray
    assert (image.dtype, image.shape, image.flags.writeable) == (np.uint8, (28, 28, 1), False)
    rows = both[1].splits["train"].take(np.array([3]))
    np.testing.assert_array_equal(SplitSource(rows)[0]["image"], image)
    assert type(SplitSource(rows)[0]["image"]) is np.ndarray


def test_folds_of_a_mapped_data_set(both):
    in_memory, mapped = (fold_of(each, count=3, fold=1, seed=0, val_share=0.2, file=None) for each in both)
    for name, split in mapped.splits.items():
        expected = in_memory.splits[name]
        assert isinstance(split.images, MappedRows)
        assert (split.images.shape, split.images.dtype) == (expected.images.shape, expected.images.dtype)
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.names, expected.names)
        for size in (28, 32):
            for left, right in zip(
                batches.eval_batches(split, batch_size=4, image_size=size),
                batches.eval_batches(expected, batch_size=4, image_size=size),
                strict=True,
            ):
                np.testing.assert_array_equal(left["image"], right["image"])
    left, right = (
        next(batches.train_iterator(each.splits["train"], batch_size=8, seed=3, image_size=28))
        for each in (mapped, in_memory)
    )
    np.testing.assert_array_equal(left["image"], right["image"])
    config = table.get_config()
    config.data.source = "folder"
    assert datasets.fingerprint(mapped, config) == datasets.fingerprint(in_memory, config) != {}
    config.data.source = ""
    assert datasets.fingerprint(mapped, config) == {}


def test_source_tokens_of_a_mapped_data_set(both, tmp_path):
    encoded, seen = [], []

    def encoder(batch):
        seen.append(batch["image"].shape)
        return jnp.asarray(batch["image"][:, :2, :3, 0], jnp.float32)

    for name, dataset in zip(("memory", "mapped"), both, strict=True):
        found = source_tokens.encode(
            dataset, encoder, batch_size=8, image_size=28, augment=Augment(), folder=tmp_path / name, key="an encoder"
        )
        encoded.append(found.splits)
    assert set(seen) == {(8, 28, 28, 1)}
    for name, split in encoded[0].items():
        assert split.images.shape == (len(split), 2, 3)
        np.testing.assert_array_equal(encoded[1][name].images, split.images)
    assert encoded[0]["test"].images[3][0, 0] == both[0].splits["test"].images[3, 0, 0]


def test_pooled_and_selected_rows_stay_on_disk(large, write_official, tmp_path):
    """Pooling, selection and a batch need memory for the batch, not for the images."""
    n, size = 200, 224
    images = np.zeros((n, size, size), np.uint8)
    images[:, 0, 0] = np.arange(n)
    replaced = {"train_images": images, "train_labels": np.arange(n, dtype=np.uint8)[:, None] % 2}
    write_official("breastmnist", size, **replaced)
    tracemalloc.start()
    try:
        dataset = load("breastmnist", size=size, root=str(tmp_path))
        pooled = join_splits(list(dataset.splits.values()))
        picked = pooled.take(np.arange(len(pooled))[::-1])
        batch = next(batches.eval_batches(picked.take(np.array([5, 3])), batch_size=2, image_size=size))
        assert tracemalloc.get_traced_memory()[1] < images.nbytes / 2
    finally:
        tracemalloc.stop()
    assert len(pooled) == n + 3
    # The last three samples belong to the other splits.
    assert batch["image"][:, 0, 0, 0].tolist() == [n + 3 - 1 - 5, n + 3 - 1 - 3]


def test_rows_of_several_arrays():
    parts = [np.arange(6).reshape(3, 2), np.arange(6, 8).reshape(1, 2), np.arange(8, 14).reshape(3, 2)]
    whole = np.concatenate(parts)
    rows = MappedRows(parts)
    assert (len(rows), rows.shape, rows.dtype) == (7, (7, 2), whole.dtype)
    np.testing.assert_array_equal(rows, whole)
    np.testing.assert_array_equal(list(rows), whole)
    np.testing.assert_array_equal(rows[-1], whole[-1])
    picked = rows.take(np.array([6, 0, 3, 3]))
    np.testing.assert_array_equal(picked, whole[[6, 0, 3, 3]])
    np.testing.assert_array_equal(picked.take(np.array([2, 0])), whole[[3, 6]])
    np.testing.assert_array_equal(MappedRows([picked, parts[0]]), np.concatenate([whole[[6, 0, 3, 3]], parts[0]]))
    assert np.asarray(rows.take(np.array([], int))).shape == (0, 2)
    assert np.asarray(rows, np.float32).dtype == np.float32
    with pytest.raises(IndexError):
        rows[7]
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(rows, copy=False)


def test_splits_in_memory_stay_arrays(both):
    in_memory, mapped = both
    assert type(join_splits(list(in_memory.splits.values())).images) is np.ndarray
    assert type(in_memory.splits["train"].take(np.array([1])).images) is np.ndarray
    mixed = [in_memory.splits["val"], mapped.splits["train"]]
    joined = join_splits(mixed)
    assert isinstance(joined, Split)
    assert isinstance(joined.images, MappedRows)
    np.testing.assert_array_equal(joined.images, np.concatenate([split.images for split in mixed]))


@pytest.mark.parametrize("name", ["vesselmnist3d", "breastmnist"])
def test_official_files_mapped(name, official_root, tmp_path, monkeypatch):
    shutil.copyfile(pathlib.Path(official_root) / f"{name}.npz", tmp_path / f"{name}.npz")
    in_memory = load_flag(tmp_path, name)
    monkeypatch.setattr(npz, "LARGE_BYTES", 10_000)
    mapped = load_flag(tmp_path, name)
    assert mapped.info == in_memory.info
    for split, expected in in_memory.splits.items():
        found = mapped.splits[split]
        assert isinstance(found.images, np.memmap)
        assert found.images.dtype == np.uint8
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
    pairs = [
        next(batches.train_iterator(each.splits["train"], batch_size=16, seed=0, image_size=28))
        for each in (mapped, in_memory)
    ]
    np.testing.assert_array_equal(pairs[0]["image"], pairs[1]["image"])
