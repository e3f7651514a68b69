"""Where the batches of a run come from: the host sends images, or row numbers of images that the devices hold."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from jaxboost import processes
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.evaluation.evaluate import Batch, HostBatch
from jaxboost.processes import arrays
from jaxboost.training import step
from jaxboost.training.on_device import rows
from jaxboost.training.program import Program
from jaxboost.training.step import COUNT, ROWS


class Feed(Protocol):
    """The batches of a run.

    Attributes:
      iterator: of training batches on the host; its position is part of a checkpoint.
    """

    iterator: grain.DatasetIterator

    def take(self, count: int) -> Mapping[str, Any]:
        """The next `count` batches on the devices: the argument of `Program.train_step`.

        `count` is at most `train.steps_per_call`, and 1 for batches of the host.
        """
        ...

    def with_seed(self, config: Config) -> "Feed":
        """The same data in the order of another seed, that of `config`."""
        ...

    def take_all(self, others: Sequence[Any], count: int) -> Mapping[str, Any]:
        """As `take`, of this feed and of others of its kind, with an axis for the feeds before that of the batch."""
        ...

    def evaluation(self, split: str, most: int | None = None) -> Iterator[HostBatch]:
        """The batches of an evaluation, of the first `most` samples of a split or of all, as the host sends them."""
        ...

    def complete(self, split: str, batch: Batch) -> Batch:
        """What the evaluation step takes, from a batch of `evaluation` on the devices."""
        ...


@dataclasses.dataclass(kw_only=True)
class HostFeed:
    """Batches whose images the host resizes and augments; `image_size` None: they are source tokens."""

    config: Config
    dataset: Dataset
    image_size: int | None
    by_batch: jax.NamedSharding

    def __post_init__(self):
        self.iterator = batches.train_iterator(self.dataset.splits["train"], **_order(self.config, self.image_size))

    def take(self, count: int) -> Mapping[str, Any]:
        """See `Feed`."""
        assert count == 1, "several steps in one call need data on the devices"
        return step.put(next(self.iterator), self.by_batch)

    def take_all(self, others: Sequence["HostFeed"], count: int) -> Mapping[str, Any]:
        """See `Feed`."""
        assert count == 1, "several steps in one call need data on the devices"
        drawn = [next(feed.iterator) for feed in (self, *others)]
        return step.put({name: np.stack([each[name] for each in drawn]) for name in drawn[0]}, _after(self.by_batch, 1))

    def with_seed(self, config: Config) -> "HostFeed":
        """See `Feed`."""
        return dataclasses.replace(self, config=config)

    def evaluation(self, split: str, most: int | None = None) -> Iterator[HostBatch]:
        """See `Feed`."""
        return batches.eval_batches(
            self.dataset.splits[split].take(np.arange(most)) if most else self.dataset.splits[split],
            batch_size=self.config.eval.batch_size,
            image_size=self.image_size,
            augment=Augment(**self.config.augment),
            **arrays.share(),
        )

    def complete(self, split: str, batch: Batch) -> Batch:
        """See `Feed`."""
        del split
        return batch


class DeviceFeed:
    """Row numbers of splits that are on the devices, which read, resize and augment their images."""

    def __init__(self, config: Config, dataset: Dataset, image_size: int | None, program: Program, most: int):
        """For the arguments see `make`; `program` was made with `on_device`, and a call takes at most `most` steps."""
        assert program.complete is not None
        self._config, self._dataset = config, dataset
        # For one row XLA would make another program, whose rounding differs a little.
        self._room = max(most, 2)
        self._replicated = program.replicated
        self._by_batch = program.by_batch
        self._placed = {name: rows.place(split, program.by_batch) for name, split in dataset.splits.items()}
        self._complete = program.complete
        self._image_size = image_size
        self.iterator = batches.train_rows(dataset.splits["train"], **_order(config, image_size))

    def with_seed(self, config: Config) -> "DeviceFeed":
        """See `Feed`; the data are on the devices once."""
        other = copy.copy(self)
        other._config = config
        other.iterator = batches.train_rows(self._dataset.splits["train"], **_order(config, self._image_size))
        return other

    def take(self, count: int) -> Mapping[str, Any]:
        """See `Feed`."""
        return self._sent(self._drawn(count), count, _after(self._by_batch, 1))

    def take_all(self, others: Sequence["DeviceFeed"], count: int) -> Mapping[str, Any]:
        """See `Feed`."""
        drawn = [feed._drawn(count) for feed in (self, *others)]
        stacked = {name: np.stack([each[name] for each in drawn], axis=1) for name in drawn[0]}
        return self._sent(stacked, count, _after(self._by_batch, 2))

    def _drawn(self, count: int) -> dict[str, np.ndarray]:
        """The next `count` batches of row numbers, (K, B); the last one fills the room for more."""
        found = [next(self.iterator) for _ in range(count)]
        found += [found[-1]] * (self._room - count)
        return {name: np.stack([batch[name] for batch in found]) for name in found[0]}

    def _sent(self, numbers: HostBatch, count: int, sharding: jax.NamedSharding) -> Mapping[str, Any]:
        return {
            ROWS: self._placed["train"],
            COUNT: arrays.put(np.int32(count), self._replicated),
            **step.put(numbers, sharding),
        }

    def evaluation(self, split: str, most: int | None = None) -> Iterator[HostBatch]:
        """See `Feed`."""
        whole = self._dataset.splits[split]
        first = whole.take(np.arange(most)) if most else whole
        return batches.eval_rows(first, batch_size=self._config.eval.batch_size, **arrays.share())

    def complete(self, split: str, batch: Batch) -> Batch:
        """See `Feed`."""
        return self._complete(self._placed[split], batch)


def make(config: Config, dataset: Dataset, image_size: int | None, program: Program, *, steps_per_epoch: int) -> Feed:
    """The feed of a run.

    Args:
      config: of the run.
      dataset: its images, or their source tokens.
      image_size: side of the model's input in pixels; None for source tokens.
      program: of the run. Its `reading` decides whether the data are copied to the devices.
      steps_per_epoch: number of steps in an epoch.
    """
    if program.reading is None:
        return HostFeed(config=config, dataset=dataset, image_size=image_size, by_batch=program.by_batch)
    return DeviceFeed(config, dataset, image_size, program, config.train.steps_per_call or steps_per_epoch)


def on_device(config: Config, dataset: Dataset, by_batch: jax.NamedSharding) -> bool:
    """Whether `data.on_device` asks for data on the devices; "auto" does if they fit and the device is no CPU."""
    if config.data.on_device == "auto":
        fits = jax.default_backend() != "cpu" and rows.fit(dataset.splits.values(), by_batch)
        # Devices of other processes may have less memory.
        return all(processes.gather("data on the device", fits))
    return config.data.on_device == "true"


def _after(by_batch: jax.NamedSharding, axes: int) -> jax.NamedSharding:
    """The sharding of batches that have other axes before that of the batch."""
    return jax.NamedSharding(by_batch.mesh, jax.P(*[None] * axes, *by_batch.spec))


def _order(config: Config, image_size: int | None) -> dict[str, Any]:
    """The arguments of `batches.train_iterator` and `batches.train_rows`."""
    return dict(
        batch_size=config.train.batch_size,
        seed=config.seed,
        image_size=image_size,
        augment=Augment(**config.augment),
        sampling=config.train.sampling,
        last_batch=config.train.last_batch,
        multiple=config.train.epoch_multiple,
        **arrays.share(),
    )
