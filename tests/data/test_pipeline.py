"""Batches: what is in them, in which order, for which process, and after a restart."""

import itertools
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from jaxboost.data.pipeline import PaddedSource, SplitSource, eval_batches, resize, steps_per_epoch, train_iterator
from jaxboost.data.source import Split
from jaxboost.errors import UserError

N = 23


@pytest.fixture
def split():
    """Sample i is an image full of i + 1 with the label i."""
    images = np.broadcast_to(np.arange(1, N + 1, dtype=np.uint8)[:, None, None, None], (N, 4, 4, 1)).copy()
    return Split(images=images, labels=np.arange(N, dtype=np.int64)[:, None])


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def chain(lists):
    return list(itertools.chain.from_iterable(lists))


def labels(batches):
    return [batch["label"][:, 0].tolist() for batch in batches]


def volumes(n, size):
    return Split(images=np.zeros((n, size, size, size, 1), np.uint8), labels=np.zeros((n, 1), np.int64))


def test_batches(split):
    batch = next(train_iterator(split, batch_size=5, seed=0, image_size=4))
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
        "image": (np.uint8, (5, 4, 4, 1)),
        "label": (np.int32, (5, 1)),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0], batch["label"] + 1)


def test_volumes_and_several_labels():
    rng = np.random.default_rng(0)
    split = Split(images=rng.integers(0, 256, (3, 6, 6, 6, 1), dtype=np.uint8), labels=np.ones((3, 14), np.int64))
    batch = next(train_iterator(split, batch_size=2, seed=0, image_size=6))
    assert batch["image"].shape == (2, 6, 6, 6, 1)
    assert batch["label"].shape == (2, 14)
    np.testing.assert_array_equal(next(eval_batches(split, batch_size=3, image_size=6))["image"], split.images)


def test_the_seed_decides(split):
    first, again, other = (
        labels(take(train_iterator(split, batch_size=5, seed=seed, image_size=4), 12)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other
    # Epochs of neighbouring seeds are not shifted copies of each other.
    assert first[4:8] != other[:4]


def test_epochs_are_whole_and_differ(split):
    assert steps_per_epoch(split, 5) == 4
    batches = labels(take(train_iterator(split, batch_size=5, seed=3, image_size=4), 4 * 12))
    epochs = [chain(batches[start : start + 4]) for start in range(0, len(batches), 4)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    # The remainder is another one each time.
    assert set(chain(epochs)) == set(range(N))
    assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("done", [0, 1, 4, 6])
def test_state_continues_exactly(split, done):
    iterator = train_iterator(split, batch_size=5, seed=1, image_size=4)
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 7)
    for fresh in (train_iterator(split, batch_size=5, seed=1, image_size=4), iterator):
        fresh.set_state(state)
        for left, right in zip(expected, take(fresh, 7), strict=True):
            np.testing.assert_array_equal(left["image"], right["image"])
            np.testing.assert_array_equal(left["label"], right["label"])


def test_checkpoint(split, tmp_path):
    iterator = train_iterator(split, batch_size=5, seed=1, image_size=4)
    take(iterator, 6)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(6, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = labels(take(iterator, 5))
        fresh = train_iterator(split, batch_size=5, seed=1, image_size=4)
        manager.restore(6, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert labels(take(fresh, 5)) == expected


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_each_batch(split, count):
    whole = labels(take(train_iterator(split, batch_size=6, seed=2, image_size=4), 9))
    shares = [
        labels(
            take(
                train_iterator(split, batch_size=6, seed=2, image_size=4, process_index=index, process_count=count),
                9,
            )
        )
        for index in range(count)
    ]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(len(part) == 6 // count for part in parts)
        # Disjoint and complete: the same samples as one process alone would take.
        assert sorted(chain(parts)) == sorted(batch)


def test_eval_is_in_order_and_padded(split):
    batches = list(eval_batches(split, batch_size=5, image_size=4))
    assert len(batches) == 5
    assert all(batch["image"].shape == (5, 4, 4, 1) for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.dtype == np.bool_
    assert mask.tolist() == [True] * N + [False] * 2
    label = np.concatenate([batch["label"] for batch in batches])
    assert label.dtype == np.int32
    assert label[mask, 0].tolist() == list(range(N))
    image = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(image[mask], split.images)
    assert not image[~mask].any()


@pytest.mark.parametrize("batch_size", [4, 8, 32])
def test_eval_shares_side_by_side_are_the_split(split, batch_size):
    shares = [
        list(eval_batches(split, batch_size=batch_size, image_size=4, process_index=index, process_count=4))
        for index in range(4)
    ]
    assert {len(share) for share in shares} == {-(-N // batch_size)}
    found = []
    for parts in zip(*shares, strict=True):
        mask = np.concatenate([part["mask"] for part in parts])
        assert len(mask) == batch_size
        found += np.concatenate([part["label"] for part in parts])[mask, 0].tolist()
    assert found == list(range(N))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("stored", "wanted"), [(28, 224), (64, 28)])
def test_resize_is_pillows(channels, stored, wanted):
    image = np.random.default_rng(0).integers(0, 256, (stored, stored, channels), dtype=np.uint8)
    found = resize(image, wanted)
    assert (found.shape, found.dtype) == ((wanted, wanted, channels), np.uint8)
    for channel in range(channels):
        picture = Image.fromarray(image[..., channel]).resize((wanted, wanted), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found[..., channel], np.asarray(picture))
    assert resize(image, stored) is image


def test_batches_are_resized(split):
    batch = next(train_iterator(split, batch_size=2, seed=0, image_size=8))
    assert batch["image"].shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(batch["image"][:, 5, 5], batch["label"] + 1)
    last = list(eval_batches(split, batch_size=10, image_size=8))[-1]
    assert last["image"].shape == (10, 8, 8, 1)
    assert last["image"][:, 3, 3, 0].tolist() == [21, 22, 23] + [0] * 7


def test_volumes_are_not_resampled():
    message = (
        r"model.image_size=32, data.size=28: 3-D volumes are not resampled here: set model.image_size to data.size"
    )
    with pytest.raises(UserError, match=message):
        train_iterator(volumes(2, 28), batch_size=2, seed=0, image_size=32)
    with pytest.raises(UserError, match=message):
        eval_batches(volumes(2, 28), batch_size=2, image_size=32)


def test_wrong_batch_sizes(split):
    for batch_size in (N + 1, 0):
        with pytest.raises(UserError, match=f"train.batch_size={batch_size}: use 1 to {N}, the samples"):
            train_iterator(split, batch_size=batch_size, seed=0, image_size=4)
        with pytest.raises(UserError, match=f"train.batch_size={batch_size}: use 1 to {N}, "):
            steps_per_epoch(split, batch_size)
    assert steps_per_epoch(split, N) == 1
    with pytest.raises(UserError, match="batch size 5 is not a positive multiple of the 2 processes"):
        train_iterator(split, batch_size=5, seed=0, image_size=4, process_count=2)
    with pytest.raises(UserError, match="batch size 0 is not a positive multiple of the 1 processes"):
        eval_batches(split, batch_size=0, image_size=4)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_wrong_seed(split, seed):
    with pytest.raises(UserError, match=f"seed {seed} is out of range"):
        train_iterator(split, batch_size=5, seed=seed, image_size=4)


def test_sources_say_what_they_are(split):
    source = SplitSource(split)
    assert repr(source) == "SplitSource(images=(23, 4, 4, 1), labels=(23, 1))"
    assert repr(source) == repr(SplitSource(split))
    padded = PaddedSource(split, batch_size=8, process_index=1, process_count=2)
    assert repr(padded) == f"PaddedSource({source!r}, share=4 of 8, offset=4)"
    assert len(padded) == 12
    assert len(source) == N


def test_the_split_cannot_be_changed_through_a_sample(split):
    with pytest.raises(ValueError, match="read-only"):
        SplitSource(split)[0]["image"][:] = 0
    assert split.images.flags.writeable


def test_features_go_through_unchanged():
    features = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)
    split = Split(images=features, labels=np.arange(7)[:, None])
    for batch in take(train_iterator(split, batch_size=3, seed=0, image_size=None), 5):
        assert batch["image"].dtype == np.float32
        np.testing.assert_array_equal(batch["image"], features[batch["label"][:, 0]])
    first, second = eval_batches(split, batch_size=4, image_size=None)
    assert first["image"].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([first["image"], second["image"]])[:7], features)
    assert second["mask"].tolist() == [True] * 3 + [False]
    assert not second["image"][3].any()


def test_no_size_means_as_stored(split):
    resized, stored = (next(train_iterator(split, batch_size=5, seed=0, image_size=size)) for size in (4, None))
    np.testing.assert_array_equal(resized["image"], stored["image"])
    batch = next(eval_batches(volumes(2, 5), batch_size=2, image_size=None))
    assert batch["image"].shape == (2, 5, 5, 5, 1)
