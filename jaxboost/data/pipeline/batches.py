"""Batches for training and evaluation, with grain.

Splits are in memory as stored, or memory-mapped if they are large. Images are resized and augmented when they are
read, in grain's threads: Pillow releases the global interpreter lock, so all cores are used, and memory holds only the
stored split and a few batches (OCTMNIST's training split alone would be 4.9 GB at 224 pixels). The random numbers of an
augmentation depend only on the seed and the position in the training order.
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
from jaxboost.errors import UserError

# A thread makes a whole batch. The buffer is limited: 16 batches of 128 RGB images of 224 pixels are 0.3 GB.
_READ_OPTIONS = grain.ReadOptions(num_threads=min(8, os.cpu_count() or 1), prefetch_buffer_size=16)


class SplitSource:
    """Random access to a split: element i is {"image": uint8 (S, S[, S], C) or float32 (d, W), "label": int32 (L,)}.

    Images or source tokens are read-only views of the split.
    """

    def __init__(self, split: Split):
        self._images = split.images
        self._labels = split.labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # A plain array, also if the split is memory-mapped.
        image = np.asarray(self._images[index]).view()
        image.flags.writeable = False
        return {"image": image, "label": self._labels[index]}

    def __repr__(self) -> str:
        return f"SplitSource(images={self._images.shape}, labels={self._labels.shape})"


class PaddedSource:
    """The part of a split that one process evaluates, in order and padded to whole batches.

    Global batch k has the elements [kB, (k+1)B) of the split. Process p gets the p-th of `process_count` equal slices
    of each batch, so the concatenated slices are the split in order. Elements are those of `SplitSource` with "mask":
    bool (); after the end of the split they are zeros with mask False.
    """

    def __init__(self, split: Split, *, batch_size: int, process_index: int, process_count: int):
        self._source = SplitSource(split)
        self._batch_size = batch_size
        self._per_process = batch_size // process_count
        self._offset = process_index * self._per_process

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * self._per_process

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, position = divmod(index, self._per_process)
        position += batch * self._batch_size + self._offset
        if position < len(self._source):
            return self._source[position] | {"mask": np.True_}
        return {name: np.zeros_like(value) for name, value in self._source[0].items()} | {"mask": np.False_}

    def __repr__(self) -> str:
        return f"PaddedSource({self._source!r}, {self._per_process} of {self._batch_size}, offset={self._offset})"


class EpochOrder:
    """The sample index at each position of an endless training order with epochs of `size` samples.

    An epoch draws ceil(size / repeats) samples, repeats each draw `repeats` times (the last one perhaps fewer times),
    and shuffles all of them: the repeats of an image are anywhere in one epoch. (The sampler of the reference code, in
    one process, puts them next to each other, so that they are in one batch.) Draws are

    * uniform: a random subset of the split without replacement, new in each epoch;
    * balanced: from each class of the split in turn. A class draws all its samples in random order before it draws one
      again, also across epochs: samples of rare classes appear several times in an epoch, and those of frequent classes
      once in several epochs. Per epoch the numbers of draws of two classes differ by at most one.

    After the samples of an epoch come `padding` positions with the index -1.

    Everything depends only on the seed and the position, so an order can be resumed anywhere.
    """

    def __init__(self, labels: np.ndarray, *, size: int, seed: int, repeats: int, balanced: bool, padding: int = 0):
        self._size, self._seed, self._repeats, self._padding = size, seed, repeats, padding
        self._draws = -(-size // repeats)
        self._count = len(labels)
        self._classes = [np.flatnonzero(labels == label) for label in np.unique(labels)] if balanced else []
        # Two epochs, because some threads reach the next epoch before others leave the last one. Not a cached method,
        # because its cache would keep every object of the class alive.
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
            passes, positions = np.divmod(draws[own] // len(self._classes), len(members))
            orders = {
                number_of_pass: np.random.default_rng([self._seed, 1, number, number_of_pass]).permutation(members)
                for number_of_pass in np.unique(passes).tolist()
            }
            rows[own] = [orders[k][position] for k, position in zip(passes.tolist(), positions.tolist(), strict=True)]
        return rows


def steps_per_epoch(split: Split, batch_size: int, *, last_batch: str = "drop", multiple: int = 0) -> int:
    """The number of batches in an epoch.

    Args:
      split: the training split.
      batch_size: samples per batch over all processes.
      last_batch: "drop": only whole batches; "keep": the remaining samples are a smaller batch.
      multiple: the number of samples in an epoch is the largest multiple of it in the split; 0: the whole split.

    Raises:
      UserError: an argument is out of range, `multiple` is larger than the split, or a batch is larger than an epoch.
    """
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

    Every epoch has `steps_per_epoch` batches of a new permutation of the split; the remaining samples, others in each
    epoch, are dropped. With repeated augmentation or balanced sampling, `EpochOrder` gives the samples of an epoch. The
    batches depend only on `seed`. `get_state()` and `set_state()` are exact, and the iterator works with
    `grain.checkpoint.CheckpointSave` and `CheckpointRestore`. The slices of all processes, one after the other, are the
    batches of a single process, and the state of every process is that of a single one.

    With `last_batch="keep"` batches also have "mask": bool (B,). The last batch of an epoch is padded with zeros, where
    the mask is False.

    Args:
      split: the training split.
      batch_size: samples per step over all processes; each process gets B = batch_size / process_count.
      seed: 0 <= seed < 2^32.
      image_size: S, edge length of the model's input in pixels; None: images or source tokens as stored.
      augment: augmentation of the images; None: none.
      sampling: "uniform", or "balanced": the same number of samples of every class.
      last_batch: see `steps_per_epoch`.
      multiple: see `steps_per_epoch`.
      process_index: the slice of each batch to return, 0 <= process_index < process_count.
      process_count: number of processes that train together.

    Raises:
      UserError: the batch is larger than the split or not a multiple of process_count; the seed is out of range;
        volumes do not have the model's size; a field of `augment` is no (low, high), or not for these images; or
        balanced sampling of a multi-label task.
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
        # Before the slices of the processes, by the position in the global order: otherwise every process would have
        # the same random numbers.
        dataset = dataset.random_map(functools.partial(_augmented, augment=augment, image_size=image_size))
    else:
        dataset = dataset.map(functools.partial(_fitted, image_size=image_size, first=augment.resize))
        if augment.rgb:
            dataset = dataset.map(lambda element: element | {"image": _rgb(element["image"])})
    dataset = _share(dataset, batch_size, seed, process_index, process_count)
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True).repeat()
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

    The last batch is padded to full size with zeros, where the mask is False. Every process gets the same number of
    batches, and in each of them its slice of B = batch_size / process_count consecutive samples. Only `resize` of
    `augment` is used.

    Raises:
      UserError: as for `train_iterator`, but a batch may be larger than the split: it is padded.
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
    """The samples of `SplitSource` in training order, with epochs of `size` samples."""
    source = SplitSource(split)
    if repeats == 1 and not balanced:
        # Truncated to whole batches here, before the slices of the processes: otherwise processes with one element more
        # would have longer epochs than the others.
        return grain.MapDataset.source(source).seed(seed).shuffle().slice(slice(0, size))
    rows = EpochOrder(split.labels[:, 0], size=size, seed=seed, repeats=repeats, balanced=balanced)
    # The index is not reset after an epoch.
    return grain.MapDataset.range(size).seed(seed).map_with_index(lambda index, _: source[rows[index]])


def _padded_order(split: Split, size: int, padded: int, **order: Any) -> grain.MapDataset:
    """As `_in_order`, with a mask; zeros pad the `size` samples of each epoch to `padded`."""
    source = SplitSource(split)
    rows = EpochOrder(split.labels[:, 0], size=size, padding=padded - size, **order)
    nothing = {name: np.zeros_like(value) for name, value in source[0].items()} | {"mask": np.False_}

    def element(index: int, _: int) -> dict[str, np.ndarray]:
        row = rows[index]
        return nothing if row < 0 else source[row] | {"mask": np.True_}

    return grain.MapDataset.range(padded).seed(order["seed"]).map_with_index(element)


def _share(dataset: grain.MapDataset, batch_size: int, seed: int, index: int, count: int) -> grain.MapDataset:
    """The consecutive samples of each batch that process `index` of `count` reads."""
    if count == 1:
        return dataset
    own = batch_size // count

    def element(position: int, _: int) -> dict[str, np.ndarray]:
        # The position is not reset after an epoch, nor is that of a `MapDataset`.
        batch, row = divmod(position, own)
        return dataset[batch * batch_size + index * own + row]

    return grain.MapDataset.range(len(dataset) // batch_size * own).seed(seed).map_with_index(element)


def _samples(split: Split, multiple: int) -> int:
    """The number of samples in an epoch, including an incomplete last batch."""
    return len(split) // multiple * multiple if multiple else len(split)


def _fitted(element: dict[str, np.ndarray], *, image_size: int | None, first: int) -> dict[str, np.ndarray]:
    """Resizes the image to `first` pixels and crops it to `image_size`; with `first` 0 only resizes it."""
    return element if image_size is None else element | {"image": fitted(element["image"], image_size, first)}


def _rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image (S, S, C), C = 1 or 3, to three channels."""
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
        augment.check_source_tokens()
    else:
        augment.check(split.images.ndim - 2)
        if augment.shift >= (size := split.images.shape[1]):
            raise UserError(f"config field augment.shift: {augment.shift} voxels of {size} leave nothing of the volume")
    # One element here, so that an impossible size fails in the caller and not in a reader thread.
    if image_size is not None:
        resize(split.images[0], image_size)
        if 0 < augment.resize < image_size:
            raise UserError(
                f"config field augment.resize: {augment.resize} is less than model.image_size={image_size}, to which "
                f"it is cropped: use 0, or {image_size} or more"
            )


def _check_sampling(split: Split, sampling: str) -> None:
    if sampling == "balanced" and split.labels.shape[1] > 1:
        raise UserError(
            "config field train.sampling: balanced draws a sample by its class, but these have several labels: set it "
            "to uniform"
        )
