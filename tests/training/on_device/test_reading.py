"""Splits in the memory of the devices, and the batches that a step makes of their rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxboost.data.dataset import MappedRows
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.pipeline.resize import fitted
from jaxboost.training import step
from jaxboost.training.on_device import images as on_images
from jaxboost.training.on_device import rows
from tests.scripts import devices, run_script
from tests.training.on_device.splits import RANDOM, digest, reading_of, split_of


@pytest.mark.parametrize("shape", [(6, 6, 1), (5, 5, 5, 1), (3, 4)], ids=["images", "volumes", "tokens"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("chunk", [None, 100])
def test_rows_are_read_as_they_are_stored(shape, mapped, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(rows, "_CHUNK_BYTES", chunk)
    split = split_of(shape, dtype=np.float32 if len(shape) == 2 else np.uint8)
    given = dataclasses.replace(split, images=MappedRows([split.images[:30], split.images[30:]])) if mapped else split
    placed = rows.place(given, step.make_mesh()[1])
    assert placed.images.shape == (128, np.prod(shape))
    wanted = np.array([69, 0, 31, 30, 0], np.int32)
    found = jax.jit(rows.Rows.read)(placed, wanted)
    np.testing.assert_array_equal(found["image"], split.images[wanted])
    np.testing.assert_array_equal(found["label"], split.labels[wanted])
    assert found["image"].dtype == split.images.dtype
    assert rows.megabytes([given, given]) == pytest.approx(2 * split.images.nbytes / 1e6)


def test_what_fits(monkeypatch):
    split, by_batch = split_of((10, 10, 1), count=80), step.make_mesh()[1]
    assert not rows.fit([split], by_batch)  # a CPU does not tell its memory

    class Device:
        def __init__(self, limit):
            self.limit = limit

        def memory_stats(self):
            return {"bytes_limit": self.limit}

    class Sharding:
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

        def __init__(self, limit):
            self.addressable_devices = {Device(limit)}

    assert rows.fit([split], Sharding(8000 / rows.SHARE))
    assert not rows.fit([split], Sharding(8000 / rows.SHARE - 10))


def test_batches_without_random_changes_are_those_of_the_host():
    split, augment = split_of((12, 12, 1)), Augment(resize=10, rgb=True)
    columns = np.random.default_rng(1).normal(size=(len(split), 3)).astype(np.float32)
    split = dataclasses.replace(split, columns=columns)
    reading, wanted = reading_of(augment), np.array([5, 2, 69, 2], np.int32)
    placed = rows.place(split, reading.by_batch)
    resized = np.stack([fitted(split.images[row], 8, 10) for row in wanted])
    evaluated = jax.jit(reading.eval_batch)(placed, {"row": wanted})
    assert np.abs(np.asarray(evaluated["image"], int) - resized).max() <= 1
    mask = np.array([True, True, False, True])
    batch = jax.jit(reading.train_batch)(placed, {"row": wanted, "mask": mask}, jax.random.key(0))
    assert batch["image"].shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(batch["image"][mask][..., 0], evaluated["image"][mask][..., 0])
    # Padding is zeros, as on the host.
    assert not np.asarray(batch["image"][~mask]).any()
    assert not np.asarray(batch["label"][~mask]).any()
    np.testing.assert_array_equal(batch["mask"], mask)
    np.testing.assert_array_equal(batch["label"][mask], split.labels[wanted][mask])
    np.testing.assert_array_equal(batch["columns"], columns[wanted] * mask[:, np.newaxis])
    np.testing.assert_array_equal(evaluated["columns"], columns[wanted])


@pytest.mark.parametrize(
    ("shape", "augment"),
    [((12, 12, 3), RANDOM), ((6, 6, 6, 1), Augment(volume_rotations=True, volume_flips=True, shift=1, noise=0.1))],
    ids=["images", "volumes"],
)
def test_both_ways_to_augment_agree_and_go_by_the_key_alone(shape, augment):
    images, keys = jnp.asarray(split_of(shape).images[:6]), jax.random.split(jax.random.key(3), 6)

    run = jax.jit(on_images.augment_images, static_argnums=(2, 3), static_argnames="one_by_one")
    alone = np.asarray(run(images, keys, augment, shape[0], one_by_one=True))
    at_once = np.asarray(run(images, keys, augment, shape[0], one_by_one=False))
    assert np.abs(alone.astype(int) - at_once).max() <= 1
    other = np.asarray(run(images[::-1], keys[::-1], augment, shape[0], one_by_one=True))
    np.testing.assert_array_equal(other[::-1], alone)
    # The same image with other keys.
    same = np.asarray(run(jnp.stack([images[0]] * 6), keys, augment, shape[0], one_by_one=True))
    assert len({image.tobytes() for image in same}) == 6


ON_TWO = """
import hashlib, jax, numpy as np
from jaxboost.training import step
from jaxboost.training.on_device import rows
from tests.training.on_device.splits import RANDOM, reading_of, split_of, digest

assert jax.device_count() == 2
reading = reading_of(RANDOM, 12)
placed = rows.place(split_of((12, 12, 3)), reading.by_batch)
assert [shard.data.shape for shard in placed.images.addressable_shards] == [(64, 432)] * 2
batch = step.put({"row": np.arange(69, 61, -1, dtype=np.int32)}, reading.by_batch)
found = jax.jit(reading.train_batch)(placed, batch, jax.random.key(0))
assert found["image"].sharding.is_equivalent_to(reading.by_batch, 4)
print(digest(found))
"""


def test_two_devices_make_the_batch_of_one():
    reading = reading_of(RANDOM, 12)
    placed = rows.place(split_of((12, 12, 3)), reading.by_batch)
    batch = {"row": np.arange(69, 61, -1, dtype=np.int32)}
    expected = digest(jax.jit(reading.train_batch)(placed, batch, jax.random.key(0)))
    process = run_script("-c", ON_TWO, env=devices(2))
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == expected
