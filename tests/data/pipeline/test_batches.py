"""Batches: their content, their order, the slices of processes, and resuming."""

import collections
import functools
import itertools
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from torchvision.transforms import functional

from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.pipeline.batches import eval_batches, steps_per_epoch, train_iterator
from jaxboost.data.pipeline.elements import PaddedSource, SplitSource
from jaxboost.data.pipeline.order import EpochOrder
from jaxboost.data.pipeline.resize import centre_crop, resize
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


def test_epochs_are_complete_and_differ(split):
    assert steps_per_epoch(split, 5) == 4
    batches = labels(take(train_iterator(split, batch_size=5, seed=3, image_size=4), 4 * 12))
    epochs = [chain(batches[start : start + 4]) for start in range(0, len(batches), 4)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    # The dropped samples differ between epochs.
    assert set(chain(epochs)) == set(range(N))
    assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("processes", [1, 2])
def test_the_last_batch_can_be_kept(split, processes):
    """23 samples in batches of 6: three whole ones and one of 5, padded with a sample whose mask is False."""
    assert steps_per_epoch(split, 6, last_batch="keep") == 4
    iterators = [
        train_iterator(
            split,
            batch_size=6,
            seed=3,
            image_size=4,
            last_batch="keep",
            process_index=index,
            process_count=processes,
        )
        for index in range(processes)
    ]
    epochs = []
    for _ in range(5):
        seen = []
        for number in range(4):
            shares = [next(iterator) for iterator in iterators]
            assert all(len(share["mask"]) == 6 // processes for share in shares)
            mask, image, label = (
                np.concatenate([share[name] for share in shares]) for name in ("mask", "image", "label")
            )
            assert mask.sum() == (5 if number == 3 else 6)
            np.testing.assert_array_equal(image[mask][:, 0, 0], label[mask] + 1)
            assert not image[~mask].any()
            seen += label[mask][:, 0].tolist()
        assert sorted(seen) == list(range(N))
        epochs.append(tuple(seen))
    assert len(set(epochs)) == 5


def test_steps_of_the_released_code():
    """VesselMNIST3D in the 3-D code, a fold of PneumoLLM, and OCTMNIST with repeated augmentation in the 2-D code."""

    def steps(samples, *arguments, **options):
        return steps_per_epoch(
            Split(np.zeros((samples, 1), np.uint8), np.zeros((samples, 1), np.int64)), *arguments, **options
        )

    assert steps(1335, 32, last_batch="keep") == 42
    assert steps(504, 16, last_batch="keep") == 32
    assert steps(97477, 128, multiple=256) == 760
    assert (steps(1335, 32), steps(504, 16), steps(97477, 128)) == (41, 31, 761)


def test_an_epoch_of_a_multiple(split):
    """Of 23 samples an epoch has 20, 10 samples twice each."""
    iterator = train_iterator(split, batch_size=4, seed=0, image_size=4, multiple=10, augment=Augment(repeats=2))
    for _ in range(3):
        counts = collections.Counter(chain(labels(take(iterator, 5))))
        assert sorted(counts.values()) == [2] * 10


def test_wrong_epochs(split):
    with pytest.raises(UserError, match=r"config field train\.epoch_multiple: 24 should be 0 to 23"):
        steps_per_epoch(split, 4, multiple=24)
    with pytest.raises(UserError, match=r"train\.batch_size=21: use 1 to 20, the samples of an epoch"):
        steps_per_epoch(split, 21, multiple=20)


def test_grey_images_can_become_rgb():
    """Pixels from outside the image then have ImageNet's mean colour, not its grey value."""
    images = np.zeros((8, 16, 16, 1), np.uint8)
    split = Split(images=images, labels=np.zeros((8, 1), np.int64))
    settings = dict(rand_augment_ops=6, rand_augment_magnitude=10.0, rand_augment_std=0.0)
    colour, grey = (
        next(train_iterator(split, batch_size=8, seed=0, image_size=16, augment=Augment(rgb=rgb, **settings)))["image"]
        for rgb in (True, False)
    )
    assert (colour.shape, grey.shape) == ((8, 16, 16, 3), (8, 16, 16, 1))
    assert (colour == (124, 116, 104)).all(-1).any()
    assert (grey == 117).any()
    plain = next(train_iterator(split, batch_size=8, seed=0, image_size=16, augment=Augment(rgb=True)))["image"]
    assert plain.shape == (8, 16, 16, 3)


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
def test_processes_get_slices_of_each_batch(split, count):
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
        # The same samples as in a single process, in the same order: random numbers of a step go by the row.
        assert chain(parts) == batch


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
def test_concatenated_eval_slices_are_the_split(split, batch_size):
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
def test_resize_matches_pillow(channels, stored, wanted):
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


def test_repr_of_sources(split):
    source = SplitSource(split)
    assert repr(source) == "SplitSource(images=(23, 4, 4, 1), labels=(23, 1))"
    assert repr(source) == repr(SplitSource(split))
    padded = PaddedSource(source, batch_size=8, process_index=1, process_count=2)
    assert repr(padded) == f"PaddedSource({source!r}, 4 of 8, offset=4)"
    assert len(padded) == 12
    assert len(source) == N


def test_samples_are_read_only(split):
    with pytest.raises(ValueError, match="read-only"):
        SplitSource(split)[0]["image"][:] = 0
    assert split.images.flags.writeable


def test_features_are_unchanged():
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


RANDOM_2D = Augment(crop_scale=(0.3, 1.0), flip=0.5, color_jitter=0.3, rand_augment_ops=2)
RANDOM_3D = Augment(volume_flips=True, volume_rotations=True, shift=1, noise=0.1)


def textured(shape):
    """Sample i has the label i; its image is noise."""
    images = np.random.default_rng(0).integers(0, 256, (N, *shape), dtype=np.uint8)
    return Split(images=images, labels=np.arange(N)[:, None])


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def classes(counts):
    """`counts[c]` samples of class c; the image of sample i is full of i."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 2, 2, 1))
    return Split(images=images.copy(), labels=labels[:, None])


def rows_of(batches):
    """The indices of the samples of `classes` in the batches."""
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]).tolist()


def test_the_position_is_that_of_any_number_of_processes(split):
    """A run that two processes began goes on with one, and the other way round."""
    make = functools.partial(train_iterator, split, batch_size=6, seed=2, image_size=4)
    whole = take(make(), 9)
    second = make(process_index=1, process_count=2)
    take(second, 5)
    alone = make()
    alone.set_state(json.loads(json.dumps(second.get_state())))
    assert_same(take(alone, 4), whole[5:])
    third = make(process_index=2, process_count=3)
    third.set_state(alone.get_state())
    assert labels(take(third, 1)) == [chain(labels(take(alone, 1)))[4:]]


@pytest.mark.parametrize("augment", [None, Augment()])
def test_without_augmentation_the_order_is_that_of_grain(augment):
    """The same bits as the pipeline before it had augmentation."""
    split = textured((6, 6, 3))
    plain = (
        grain.MapDataset.source(SplitSource(split))
        .seed(5)
        .shuffle()
        .slice(slice(0, 20))
        .batch(4, drop_remainder=True)
        .repeat()
    )
    iterator = train_iterator(split, batch_size=4, seed=5, image_size=6, augment=augment)
    assert_same(take(iterator, 15), [plain[index] for index in range(15)])


@pytest.mark.parametrize(
    ("shape", "augment"), [((9, 9, 1), RANDOM_2D), ((9, 9, 3), RANDOM_2D), ((5, 5, 5, 1), RANDOM_3D)]
)
def test_augmented_images_keep_order_and_labels(shape, augment):
    split, size = textured(shape), shape[0]
    settings = {"batch_size": 5, "seed": 1, "image_size": size}
    plain = take(train_iterator(split, **settings), 12)
    changed = take(train_iterator(split, **settings, augment=augment), 12)
    assert labels(changed) == labels(plain)
    assert {(batch["image"].shape, batch["image"].dtype) for batch in changed} == {((5, *shape), np.dtype(np.uint8))}
    # A sample that is drawn again gets another augmentation.
    assert max(collections.Counter(chain(labels(changed))).values()) == 3
    seen = {image.tobytes() for batch in changed for image in batch["image"]}
    assert len(seen) == 60
    assert_same(changed, take(train_iterator(split, **settings, augment=augment), 12))
    other = take(train_iterator(split, **settings | {"seed": 2}, augment=augment), 12)
    assert not {image.tobytes() for batch in other for image in batch["image"]} & seen


ORDERS = [
    (RANDOM_2D, "uniform"),
    (Augment(flip=0.5, repeats=3), "uniform"),
    (Augment(flip=0.5), "balanced"),
    (Augment(flip=0.5, repeats=2), "balanced"),
]


@pytest.mark.parametrize(("augment", "sampling"), ORDERS)
@pytest.mark.parametrize("done", [0, 3, 9])
def test_augmented_state_continues_exactly(augment, sampling, done):
    make = functools.partial(
        train_iterator, textured((9, 9, 3)), batch_size=5, seed=1, image_size=9, augment=augment, sampling=sampling
    )
    iterator = make()
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 7)
    for fresh in (make(), iterator):
        fresh.set_state(state)
        assert_same(expected, take(fresh, 7))


@pytest.mark.parametrize(("augment", "sampling"), ORDERS)
def test_processes_get_slices_of_augmented_batches(augment, sampling):
    """A sample has the same random numbers in every number of processes."""
    make = functools.partial(
        train_iterator, textured((9, 9, 3)), batch_size=6, seed=2, image_size=9, augment=augment, sampling=sampling
    )
    shares = [take(make(process_index=index, process_count=3), 8) for index in range(3)]
    for step, batch in enumerate(take(make(), 8)):
        for name in ("image", "label"):
            parts = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(parts, batch[name])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("first", "size"), [(16, 11), (15, 12), (12, 12)])
def test_resize_and_centre_crop_match_torchvision(channels, first, size):
    split, augment = textured((9, 9, channels)), Augment(resize=first)
    (batch,) = eval_batches(split, batch_size=N, image_size=size, augment=augment)
    for image, found in zip(split.images, batch["image"], strict=True):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        expected = functional.resize(picture, first, functional.InterpolationMode.BICUBIC)
        expected = np.asarray(functional.center_crop(expected, size)).reshape(size, size, channels)
        np.testing.assert_array_equal(found, expected)
    trained = next(train_iterator(split, batch_size=N, seed=0, image_size=size, augment=augment))
    np.testing.assert_array_equal(trained["image"], batch["image"][trained["label"][:, 0]])


def test_a_random_crop_is_of_the_stored_image():
    """So it is resized once, as in timm; a crop of the whole image is the stored image."""
    split = textured((9, 9, 3))
    augment = Augment(resize=16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    batch = next(train_iterator(split, batch_size=N, seed=0, image_size=12, augment=augment))
    expected = np.stack([resize(split.images[label], 12) for label in batch["label"][:, 0]])
    np.testing.assert_array_equal(batch["image"], expected)


@pytest.mark.parametrize(("first", "size", "start"), [(4, 4, 0), (5, 4, 0), (7, 4, 2), (8, 4, 2)])
def test_centre_crop(first, size, start):
    image = np.arange(first * first * 3).reshape(first, first, 3)
    np.testing.assert_array_equal(centre_crop(image, size), image[start : start + size, start : start + size])


def test_evaluation_is_not_augmented():
    split = textured((9, 9, 3))
    augment = Augment(flip=1.0, crop_scale=(0.1, 0.2), rand_augment_ops=2, repeats=3)
    assert_same(
        eval_batches(split, batch_size=8, image_size=9, augment=augment),
        eval_batches(split, batch_size=8, image_size=9),
    )


@pytest.mark.parametrize("repeats", [2, 3, 30])
def test_repeats(repeats):
    split = classes([10, 13])
    batches = take(train_iterator(split, batch_size=5, seed=3, image_size=2, augment=Augment(repeats=repeats)), 4 * 9)
    epochs = [rows_of(batches[start : start + 4]) for start in range(0, len(batches), 4)]
    for epoch in epochs:
        counts = sorted(collections.Counter(epoch).values())
        full, rest = divmod(20, repeats)
        assert counts == [rest] * (rest > 0) + [repeats] * full
    assert len({tuple(epoch) for epoch in epochs}) > 1
    # The repeats are not next to each other.
    if repeats < 20:
        assert all(any(left != right for left, right in itertools.pairwise(epoch[:repeats])) for epoch in epochs)
        assert len({frozenset(epoch) for epoch in epochs}) == 9
        assert set(chain(epochs)) == set(range(23))


def test_repeats_are_augmented_independently():
    split = textured((9, 9, 3))
    augment = Augment(repeats=4, noise=0.0, color_jitter=0.5)
    batch = next(train_iterator(split, batch_size=20, seed=0, image_size=9, augment=augment))
    assert len(set(batch["label"][:, 0].tolist())) == 5
    assert len({image.tobytes() for image in batch["image"]}) == 20


def test_balanced_classes_are_equally_frequent():
    counts = (3, 40, 17)
    batches = take(train_iterator(classes(counts), batch_size=7, seed=4, image_size=2, sampling="balanced"), 8 * 12)
    first_of_class = np.cumsum((0, *counts))
    total = np.zeros(3, int)
    epochs = [rows_of(batches[start : start + 8]) for start in range(0, len(batches), 8)]
    for epoch in epochs:
        found = np.histogram(epoch, first_of_class)[0]
        total += found
        assert found.sum() == 56
        assert np.ptp(found) <= 1
        # Also over all epochs so far.
        assert np.ptp(total) <= 1
        # All samples of a class are drawn before one is drawn again, except where two passes meet.
        seen = collections.Counter(epoch)
        assert all(5 <= seen[row] <= 7 for row in range(3))
        assert all(seen[row] <= 2 for row in range(3, 60))
    # All samples of a frequent class are drawn within 40 / 18.67 epochs.
    assert set(range(3, 43)) <= set(chain(epochs[:3]))
    assert len({tuple(epoch) for epoch in epochs}) == 12
    other = take(train_iterator(classes(counts), batch_size=7, seed=5, image_size=2, sampling="balanced"), 8)
    assert rows_of(other) != epochs[0]


def test_balanced_passes_are_complete():
    """Across epochs: no sample of a class is drawn for the third time before all were drawn twice."""
    split = classes((5, 9, 4))
    rows = EpochOrder(split.labels[:, 0], size=11, seed=0, repeats=1, balanced=True)
    seen = np.zeros(18, int)
    for epoch in range(40):
        for position in range(11):
            seen[rows[11 * epoch + position]] += 1
        for start, stop in ((0, 5), (5, 14), (14, 18)):
            assert np.ptp(seen[start:stop]) <= 1
    assert seen.sum() == 440


def test_balanced_skips_classes_without_samples():
    split = classes((4, 0, 6))
    batches = take(train_iterator(split, batch_size=5, seed=0, image_size=2, sampling="balanced"), 2)
    assert collections.Counter(chain(labels(batches))) == {0: 5, 2: 5}


def test_balanced_repeats():
    batches = take(
        train_iterator(
            classes((2, 30)), batch_size=8, seed=0, image_size=2, sampling="balanced", augment=Augment(repeats=2)
        ),
        4,
    )
    assert collections.Counter(chain(labels(batches))) == {0: 16, 1: 16}
    frequent = collections.Counter(row for row in rows_of(batches) if row > 1)
    assert list(frequent.values()) == [2] * 8


def test_wrong_sampling(split):
    several = Split(images=split.images, labels=np.ones((N, 3), np.int64))
    message = "train.sampling: balanced draws a sample by its class, but these have several labels: set it to uniform"
    with pytest.raises(UserError, match=message):
        train_iterator(several, batch_size=5, seed=0, image_size=4, sampling="balanced")


@pytest.mark.parametrize(
    ("given", "augment", "message"),
    [
        (
            textured((9, 9, 1)),
            Augment(resize=8),
            r"augment.resize: 8 is less than model.image_size=9, to which it is crop",
        ),
        (textured((9, 9, 1)), Augment(shift=1), r"augment.shift: 1 is for 3-D images, these are 2-D: leave it at 0"),
        (
            textured((9, 9, 9, 1)),
            Augment(resize=9),
            r"augment.resize: 9 is for 2-D images, these are 3-D: leave it at 0",
        ),
        (textured((9, 9, 9, 1)), Augment(shift=9), r"augment.shift: 9 voxels of 9 leave nothing of the volume"),
        (
            textured((9, 9, 1)),
            Augment(crop_ratio=(2.0, 1.0)),
            r"augment.crop_ratio: \(2.0, 1.0\) should be \(low, high\)",
        ),
    ],
)
def test_wrong_augmentation(given, augment, message):
    with pytest.raises(UserError, match=message):
        train_iterator(given, batch_size=5, seed=0, image_size=9, augment=augment)
    with pytest.raises(UserError, match=message):
        eval_batches(given, batch_size=5, image_size=9, augment=augment)


def test_features_are_not_augmented():
    split = Split(images=np.zeros((7, 6, 5), np.float32), labels=np.arange(7)[:, None])
    with pytest.raises(UserError, match=r"augment.flip: 0.5 changes images, but the encoder that sees them is frozen"):
        train_iterator(split, batch_size=3, seed=0, image_size=None, augment=Augment(flip=0.5))
    # Deterministic fields were applied before the images were encoded.
    batch = next(train_iterator(split, batch_size=3, seed=0, image_size=None, augment=Augment(resize=256)))
    assert batch["image"].shape == (3, 6, 5)
