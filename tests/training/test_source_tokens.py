"""Tokens that are computed once: by one of several runs, once for equal images, and once in memory."""

import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import tracemalloc

import numpy as np
import pytest

from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.readers import npz
from jaxboost.data.rows import place, store
from jaxboost.errors import UserError
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


class Both:
    """Two threads in place of two processes, as `source_tokens` sees them."""

    def __init__(self):
        self.number, self._barrier, self._parts = threading.local(), threading.Barrier(2, timeout=20), {}

    def gather(self, name, value):
        self._parts[self.number.value] = (name, value)
        self._barrier.wait()
        found = [self._parts[number] for number in (0, 1)]
        self._barrier.wait()
        assert len({name for name, _ in found}) == 1
        return [value for _, value in found]

    def is_first(self):
        return self.number.value == 0

    def count(self):
        return 2

    def working(self, what):
        return contextlib.nullcontext()

    def run(self, number, work):
        self.number.value = number
        try:
            return work()
        except UserError as error:
            # The others hear it.
            self._barrier.abort()
            return str(error)
        except threading.BrokenBarrierError:
            return "told"


@pytest.mark.parametrize("case", ["missing", "half there", "all there", "no room", "not shared"])
def test_two_processes_encode_together(tmp_path, monkeypatch, case):
    given, encoded = dataset({"train": 8, "test": 8}), []
    if case in ("half there", "all there"):
        splits = {name: split for name, split in given.splits.items() if name == "train" or case == "all there"}
        encode(dataclasses.replace(given, splits=splits), constant, tmp_path)
    if case == "no room":
        monkeypatch.setattr(place, "lacks", lambda *_: "no room")
    both = Both()
    monkeypatch.setattr(source_tokens, "processes", both)

    def counted(batch):
        # Each process gives its share of a batch to the encoder, so both have to make the same calls.
        assert both.gather("a batch", batch["image"].tolist())[0] == batch["image"].tolist()
        encoded.append(both.number.value)
        return constant(batch)

    def work(number):
        folder = tmp_path / str(number) if case == "not shared" else tmp_path
        return both.run(number, lambda: encode(given, counted, folder))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert sorted(encoded) == {"half there": [0, 1], "all there": []}.get(case, [0, 0, 1, 1])
    if case == "no room":
        assert "cannot be kept in" in first
        assert second == "told"
    elif case == "not shared":
        assert "are not seen here: give a --workdir on a disk that all" in second
    else:
        for found in (first, second):
            for name, split in given.splits.items():
                np.testing.assert_array_equal(np.asarray(found[name].images)[:, 0, 0], split.images[:, 0, 0, 0])
