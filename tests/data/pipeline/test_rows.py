"""Row numbers of a split stand for the same samples, in the same order, as the batches of images."""

import itertools

import numpy as np
import pytest

from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.pipeline.batches import eval_batches, eval_rows, train_iterator, train_rows
from jaxboost.data.pipeline.elements import RowSource
from jaxboost.errors import UserError

N = 23


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    return Split(images=rng.integers(0, 256, (N, 4, 4, 1), np.uint8), labels=rng.integers(0, 3, (N, 1)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling": "balanced"},
        {"augment": Augment(repeats=3)},
        {"augment": Augment(flip=0.5)},
        {"multiple": 10},
        {"last_batch": "keep"},
        {"last_batch": "keep", "sampling": "balanced", "multiple": 20, "augment": Augment(repeats=2)},
        {"process_index": 1, "process_count": 2},
    ],
    ids=str,
)
def test_rows_are_those_of_the_batches_of_images(split, changes):
    options = dict(batch_size=6, seed=5, image_size=4, **changes)
    rows, images = train_rows(split, **options), train_iterator(split, **options)
    for batch, expected in itertools.islice(zip(rows, images, strict=True), 12):
        assert batch["row"].dtype == np.int32
        mask = expected.get("mask", np.ones(len(batch["row"]), bool))
        assert ("mask" in batch) == ("mask" in expected)
        np.testing.assert_array_equal(batch.get("mask", mask), mask)
        np.testing.assert_array_equal(split.labels[batch["row"]][mask], expected["label"][mask])
        if not options.get("augment", Augment()).random_fields:
            np.testing.assert_array_equal(split.images[batch["row"]][mask], expected["image"][mask])
    assert rows.get_state() == images.get_state()


def test_a_position_of_one_is_a_position_of_the_other(split):
    options = dict(batch_size=5, seed=1, image_size=4)
    rows, images = train_rows(split, **options), train_iterator(split, **options)
    for _ in range(6):
        next(images)
    rows.set_state(images.get_state())
    np.testing.assert_array_equal(split.labels[next(rows)["row"]], next(images)["label"])


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 2)])
def test_rows_of_an_evaluation(split, index, count):
    options = dict(batch_size=6, process_index=index, process_count=count)
    found = list(eval_rows(split, **options))
    expected = list(eval_batches(split, image_size=4, **options))
    assert len(found) == len(expected) == 4
    for batch, images in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch["mask"], images["mask"])
        np.testing.assert_array_equal(split.images[batch["row"]][batch["mask"]], images["image"][images["mask"]])


def test_mistakes_are_those_of_the_batches(split):
    with pytest.raises(UserError, match=f"train.batch_size=30: use 1 to {N}"):
        train_rows(split, batch_size=30, seed=0, image_size=4)
    with pytest.raises(UserError, match=r"augment\.resize: 6 is less"):
        train_rows(split, batch_size=3, seed=0, image_size=8, augment=Augment(resize=6))
    assert repr(RowSource(split)) == "RowSource(23)"
