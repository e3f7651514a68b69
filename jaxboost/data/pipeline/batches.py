"""Batches for training and evaluation, with grain.

Splits are in memory as stored, or mapped from disk where they are large. Where the model wants larger images, every
element is resized when it is read, in grain's threads: pillow lets go of the interpreter lock while it resizes, so the
work spreads over the cores, and memory stays that of the stored split plus a few batches (OCTMNIST's training split
alone would be 4.9 GB at 224 pixels). Keeping resized copies of small splits would save work, but only where there is
little of it. Random changes of training images are made there too, with random numbers that follow from the seed and
the element's position alone.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.augment import Augment, augment_image, augment_volume
from jaxboost.data.pipeline.resize import fitted, resize
from jaxboost.errors import UserError, check_choice

SAMPLINGS = ("uniform", "balanced")
LAST_BATCHES = ("drop", "keep")

# A thread makes a whole batch. At most this many wait: 16 batches of 128 RGB images of 224 pixels are 0.3 GB.
_READ_OPTIONS = grain.ReadOptions(num_threads=min(8, os.cpu_count() or 1), prefetch_buffer_size=16)


class SplitSource:
    """Random access to a split: element i is {"image": uint8 (S, S[, S], C) or float32 (d, W), "label": int32 (L,)}.

    Images, or features, are read-only views into the split.
    """

    def __init__(self, split: Split):
        self._images = split.images
        self._labels = split.labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # A plain array also where the split is mapped.
        image = np.asarray(self._images[index]).view()
        image.flags.writeable = False
        return {"image": image, "label": self._labels[index]}

    def __repr__(self) -> str:
        return f"SplitSource(images={self._images.shape}, labels={self._labels.shape})"


class PaddedSource:
    """The part of a split that one process evaluates, in order and padded to whole batches.

    Global batch k holds the elements [kB, (k+1)B) of the split, and process p the p-th equal share of each batch, so
    that the shares side by side are the split in order. Elements are those of `SplitSource` with "mask": bool ();
    past the end of the split they are zeros with mask False.
    """

    def __init__(self, split: Split, *, batch_size: int, process_index: int, process_count: int):
        self._source = SplitSource(split)
        self._batch_size = batch_size
        self._share = batch_size // process_count
        self._offset = process_index * self._share

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * self._share

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, position = divmod(index, self._share)
        position += batch * self._batch_size + self._offset
        if position < len(self._source):
            return self._source[position] | {"mask": np.True_}
        return {name: np.zeros_like(value) for name, value in self._source[0].items()} | {"mask": np.False_}

    def __repr__(self) -> str:
        return f"PaddedSource({self._source!r}, share={self._share} of {self._batch_size}, offset={self._offset})"


class EpochRows:
    """Which sample of a split comes at each index of an endless training order whose epochs are `size` long.

    An epoch has ceil(size / repeats) draws, each of them `repeats` times (the last perhaps fewer), and is shuffled as
    a whole: the repeats of an image are in one epoch, anywhere in it. (The reference's sampler, for one process, puts
    them next to each other, so that they share a batch.) The draws are

    * uniform: without replacement within the epoch, anew in each;
    * balanced: of each class that the split has in turn. A class gives all its samples, in random order, before it
      gives one again, over the borders of epochs too: rare classes come several times in an epoch, frequent ones are
      seen whole after some. The draws of an epoch differ by at most one between classes.

    After them come `padding` indices without a sample, where the row is -1.

    All of it follows from seed and index, so that an order can be continued anywhere.
    """

    def __init__(self, labels: np.ndarray, *, size: int, seed: int, repeats: int, balanced: bool, padding: int = 0):
        self._size, self._seed, self._repeats, self._padding = size, seed, repeats, padding
        self._draws = -(-size // repeats)
        self._count = len(labels)
        self._classes = [np.flatnonzero(labels == label) for label in np.unique(labels)] if balanced else []
        # Two, for the threads reach the next epoch before all have left the last; not a method's cache, for that would
        # keep every object of the class alive.
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def __getitem__(self, index: int) -> int:
        epoch, position = divmod(index, self._size + self._padding)
        return int(self._epoch(epoch)[position]) if position < self._size else -1

    def _make_epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, 0, epoch])
        draws = self._balanced(epoch) if self._classes else rng.permutation(self._count)[: self._draws]
        return rng.permutation(np.repeat(draws, self._repeats)[: self._size])

    def _balanced(self, epoch: int) -> np.ndarray:
        draws = epoch * self._draws + np.arange(self._draws)
        rows = np.empty_like(draws)
        for number, members in enumerate(self._classes):
            own = draws % len(self._classes) == number
            passes, places = np.divmod(draws[own] // len(self._classes), len(members))
            orders = {
                turn: np.random.default_rng([self._seed, 1, number, turn]).permutation(members)
                for turn in np.unique(passes).tolist()
            }
            rows[own] = [orders[turn][place] for turn, place in zip(passes.tolist(), places.tolist(), strict=True)]
        return rows


def steps_per_epoch(split: Split, batch_size: int, *, last_batch: str = "drop", multiple: int = 0) -> int:
    """Batches of `batch_size` (over all processes) in an epoch.

    Args:
      last_batch: "drop": only whole batches; "keep": what is left over is a smaller batch.
      multiple: an epoch's samples are the largest multiple of it that the split has; 0: all.

    Raises:
      UserError: an argument is out of its range, `multiple` is larger than the split, or a batch than an epoch.
    """
    check_choice(last_batch, LAST_BATCHES, "config field train.last_batch")
    if not 0 <= multiple <= len(split):
        raise UserError(
            f"config field train.epoch_multiple: {multiple} should be 0 to {len(split)}, the samples of the training"
            " split"
        )
    samples = _samples(split, multiple)
    if not 0 < batch_size <= samples:
        raise UserError(f"train.batch_size={batch_size}: use 1 to {samples}, the samples of an epoch")
    return -(-samples // batch_size) if last_batch == "keep" else samples // batch_size


def train_iterator(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    image_size: int | None,
    augment: Augment | None = None,
    sampling: str = "uniform",
    last_batch: str = "drop",
    multiple: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless shuffled batches {"image": uint8 (B, S, S[, S], C) or float32 (B, d, W), "label": int32 (B, L)}.

    Every epoch is a new permutation of the split and has `steps_per_epoch` batches; the remainder, another one each
    epoch, is dropped. (With repeats, or balanced, it has as many, of the samples that `EpochRows` says.) The batches
    follow from `seed` alone. `get_state()` and `set_state()` are exact, and the iterator can be given to
    `grain.checkpoint.CheckpointSave` and `CheckpointRestore`. The processes' shares together are the batches that one
    process alone would have.

    With `last_batch="keep"` batches also have "mask": bool (B,), False where the epoch's last batch has no sample, and
    zeros instead.

    Args:
      split: the training split.
      batch_size: samples per step over all processes; each process gets B = batch_size / process_count.
      seed: 0 <= seed < 2^32.
      image_size: S, edge length in pixels that the model takes; None: images or features as they are stored.
      augment: random changes of the images, each time other ones; None: none.
      sampling: "uniform", or "balanced": every class as often as the others.
      last_batch, multiple: see `steps_per_epoch`.
      process_index: which share of each batch to give, 0 <= process_index < process_count.
      process_count: processes that train together.

    Raises:
      UserError: the batch is larger than the split or not a multiple of process_count; the seed is out of range;
        3-D volumes would have to be resampled; `augment` has a field that is out of its range or not for these
        images; balanced sampling of samples with several labels.
    """
    augment = augment or Augment()
    steps = steps_per_epoch(split, batch_size, last_batch=last_batch, multiple=multiple)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: use 0 <= seed < 2**32")
    _check(split, batch_size, image_size, process_count, augment)
    _check_sampling(split, sampling)
    order = dict(seed=seed, repeats=augment.repeats, balanced=sampling == "balanced")
    if last_batch == "keep":
        dataset = _padded_order(split, _samples(split, multiple), steps * batch_size, **order)
    else:
        dataset = _in_order(split, steps * batch_size, **order)
    if augment.random_fields:
        # Before the shares are dealt out, and so by the position in the whole order: otherwise every process would
        # have the same random numbers.
        dataset = dataset.random_map(functools.partial(_augmented, augment=augment, image_size=image_size))
    else:
        dataset = dataset.map(functools.partial(_fitted, image_size=image_size, first=augment.resize))
        if augment.rgb:
            dataset = dataset.map(lambda element: element | {"image": _rgb(element["image"])})
    dataset = (
        dataset.slice(slice(process_index, None, process_count))
        .batch(batch_size // process_count, drop_remainder=True)
        .repeat()
    )
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int | None,
    augment: Augment | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass in order: {"image": uint8 or float32, as in `train_iterator`, "label": int32 (B, L), "mask": bool (B,)}.

    The last batch is padded to full size with zeros, where mask is False; every process gets the same number of
    batches, and in each of them its share of B = batch_size / process_count consecutive samples. Of `augment` only
    `resize` is used: nothing is random.

    Raises:
      UserError: as for `train_iterator`; a batch larger than the split is padded.
    """
    augment = augment or Augment()
    _check(split, batch_size, image_size, process_count, augment)
    source = PaddedSource(split, batch_size=batch_size, process_index=process_index, process_count=process_count)
    dataset = (
        grain.MapDataset.source(source)
        .map(functools.partial(_fitted, image_size=image_size, first=augment.resize))
        .batch(batch_size // process_count, drop_remainder=True)
    )
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def _in_order(split: Split, size: int, *, seed: int, repeats: int, balanced: bool) -> grain.MapDataset:
    """The samples of `SplitSource` in the order of training, whose epochs are `size` long."""
    source = SplitSource(split)
    if repeats == 1 and not balanced:
        # Cut to whole batches here, before the shares are dealt out: otherwise processes with one element more would
        # have longer epochs than the others.
        return grain.MapDataset.source(source).seed(seed).shuffle().slice(slice(0, size))
    rows = EpochRows(split.labels[:, 0], size=size, seed=seed, repeats=repeats, balanced=balanced)
    # The index goes on after the first epoch.
    return grain.MapDataset.range(size).seed(seed).map_with_index(lambda index, _: source[rows[index]])


def _padded_order(split: Split, size: int, padded: int, **order: Any) -> grain.MapDataset:
    """As `_in_order`, with a mask, and with zeros after each epoch's `size` samples until there are `padded`."""
    source = SplitSource(split)
    rows = EpochRows(split.labels[:, 0], size=size, padding=padded - size, **order)
    nothing = {name: np.zeros_like(value) for name, value in source[0].items()} | {"mask": np.False_}

    def element(index: int, _: int) -> dict[str, np.ndarray]:
        row = rows[index]
        return nothing if row < 0 else source[row] | {"mask": np.True_}

    return grain.MapDataset.range(padded).seed(order["seed"]).map_with_index(element)


def _samples(split: Split, multiple: int) -> int:
    """Of an epoch, before its last batch is dropped or kept."""
    return len(split) // multiple * multiple if multiple else len(split)


def _fitted(element: dict[str, np.ndarray], *, image_size: int | None, first: int) -> dict[str, np.ndarray]:
    """At `image_size` pixels: resized to `first` pixels and then cropped, or, where that is 0, resized."""
    return element if image_size is None else element | {"image": fitted(element["image"], image_size, first)}


def _rgb(image: np.ndarray) -> np.ndarray:
    """An image (S, S, C), C = 1 or 3, with three channels."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _augmented(
    element: dict[str, np.ndarray], rng: np.random.Generator, *, augment: Augment, image_size: int | None
) -> dict[str, np.ndarray]:
    if not augment.crop_scale:
        element = _fitted(element, image_size=image_size, first=augment.resize)
    image = element["image"]
    if augment.rgb:
        image = _rgb(image)
    if image.ndim == 4:
        return element | {"image": augment_volume(image, rng, augment)}
    return element | {"image": augment_image(image, rng, augment, image_size=image_size or image.shape[0])}


def _check(split: Split, batch_size: int, image_size: int | None, process_count: int, augment: Augment) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch size {batch_size} is not a positive multiple of the {process_count} processes")
    if split.images.ndim == 3:
        augment.check_encoded()
    else:
        augment.check(split.images.ndim - 2)
        if augment.shift >= (size := split.images.shape[1]):
            raise UserError(f"config field augment.shift: {augment.shift} voxels of {size} leave nothing in sight")
    # One element here, so that a size that cannot be had fails in the caller and not in a reader's thread.
    if image_size is not None:
        resize(split.images[0], image_size)
        if 0 < augment.resize < image_size:
            raise UserError(
                f"config field augment.resize: {augment.resize} is less than model.image_size={image_size}, to which "
                f"it is cropped: use 0, or {image_size} or more"
            )


def _check_sampling(split: Split, sampling: str) -> None:
    check_choice(sampling, SAMPLINGS, "config field train.sampling")
    if sampling == "balanced" and split.labels.shape[1] > 1:
        raise UserError(
            "config field train.sampling: balanced draws a sample by its class, but these have several labels: set it "
            "to uniform"
        )
