"""Tokens that are computed once: by one of several runs, once for equal images, and once in memory."""

import concurrent.futures
import logging
import threading
import tracemalloc

import numpy as np
import pytest

from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.readers import npz
from jaxboost.data.rows import store
from jaxboost.training import source_tokens

INFO = DatasetInfo(name="x", task="binary-class", classes=("a", "b"), channels=1, ndim=2, size=8)
SHAPE = (64, 512)


def dataset(counts, seed=0):
    rng = np.random.default_rng(seed)
    splits = {
        name: Split(images=rng.integers(0, 256, (count, 8, 8, 1), np.uint8), labels=np.zeros((count, 1), int))
        for name, count in counts.items()
    }
    return Dataset(info=INFO, splits=splits, baselines={})


def encode(given, encoder, folder):
    options = dict(batch_size=8, image_size=8, augment=Augment(), key="k")
    return source_tokens.encode(given, encoder, folder=folder, **options).splits


def constant(batch):
    """All tokens of an image have the value of its first pixel."""
    return np.broadcast_to(np.float32(batch["image"][:, 0, 0, :, None]), (len(batch["image"]), *SHAPE))


def test_runs_that_share_a_file_take_turns(tmp_path, caplog):
    given, begun, waits, encoded = dataset({"train": 8, "test": 8}), threading.Event(), threading.Event(), []

    def slow(batch):
        begun.set()
        assert waits.wait(60)
        encoded.extend(batch["image"])
        return constant(batch)

    class Noticed(logging.Handler):
        def emit(self, record):
            if "another process makes the tokens: waiting for it" in record.getMessage():
                waits.set()

    handler, level = Noticed(), store.logger.level
    store.logger.addHandler(handler)
    store.logger.setLevel("INFO")
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = pool.submit(encode, given, slow, tmp_path)
            assert begun.wait(60)
            second = pool.submit(encode, given, slow, tmp_path)
            found = [each.result(60) for each in (first, second)]
    finally:
        store.logger.removeHandler(handler)
        store.logger.setLevel(level)
    assert len(encoded) == 16
    for name, split in given.splits.items():
        for each in found:
            np.testing.assert_array_equal(np.asarray(each[name].images)[:, 0, 0], split.images[:, 0, 0, 0])
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_images_are_encoded_once(tmp_path):
    given = dataset({"train": 9, "test": 3})
    given.splits["train"].images[7] = given.splits["train"].images[0]
    given.splits["test"].images[1] = given.splits["train"].images[3]
    found = encode(given, constant, tmp_path)
    for name, split in given.splits.items():
        np.testing.assert_array_equal(np.asarray(found[name].images)[:, 0, 0], split.images[:, 0, 0, 0])
    (file,) = tmp_path.rglob("*.npy")
    assert np.load(file).shape == (10, *SHAPE)


@pytest.mark.parametrize("is_known", [False, True])
def test_tokens_are_in_memory_once(tmp_path, is_known):
    given = dataset({"train": 400, "val": 50, "test": 150})
    size = 600 * np.prod(SHAPE) * 4
    if is_known:
        encode(given, constant, tmp_path)
    tracemalloc.start()
    try:
        found = encode(given, constant, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["train"].images.shape == (400, *SHAPE)
    assert size < peak < 1.2 * size + (16 << 20)


@pytest.mark.parametrize("is_known", [False, True])
def test_large_tokens_are_never_in_memory(tmp_path, monkeypatch, is_known):
    monkeypatch.setattr(npz, "LARGE_BYTES", 1 << 20)
    given = dataset({"train": 150, "test": 50})
    size = 200 * np.prod(SHAPE) * 4
    if is_known:
        encode(given, constant, tmp_path)
    tracemalloc.start()
    try:
        found = encode(given, constant, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()
    for name, split in given.splits.items():
        np.testing.assert_array_equal(np.asarray(found[name].images)[:, 5, 7], split.images[:, 0, 0, 0])
