"""Batches for training and evaluation, with grain.

Splits are in memory as stored, or memory-mapped if they are large. Images are resized and augmented when they are
read, in grain's threads: Pillow releases the global interpreter lock, so all cores are used, and memory holds only the
stored split and a few batches (OCTMNIST's training split alone would be 4.9 GB at 224 pixels). The random numbers of an
augmentation depend only on the seed and the position in the training order.
"""

import functools
import os
from collections.abc import Iterator

import grain
import numpy as np

from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.augment import Augment, augment_image, augment_volume
from jaxboost.data.pipeline.elements import PaddedSource, RowSource, Source, SplitSource
from jaxboost.data.pipeline.order import in_order, padded_order
from jaxboost.data.pipeline.resize import fitted, resize
from jaxboost.errors import UserError

# A thread makes a whole batch. The buffer is limited: 16 batches of 128 RGB images of 224 pixels are 0.3 GB.
_READ_OPTIONS = grain.ReadOptions(num_threads=min(8, os.cpu_count() or 1), prefetch_buffer_size=16)


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

    With clinical columns a batch has "columns" too, float32 (B, F).

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
    options = dict(batch_size=batch_size, seed=seed, sampling=sampling, last_batch=last_batch, multiple=multiple)
    dataset = _train_order(
        split, SplitSource(split), image_size=image_size, augment=augment, process_count=process_count, **options
    )
    if augment.random_fields:
        # Before the slices of the processes, by the position in the global order: otherwise every process would have
        # the same random numbers.
        dataset = dataset.random_map(functools.partial(_augmented, augment=augment, image_size=image_size))
    else:
        dataset = dataset.map(functools.partial(_fitted, image_size=image_size, first=augment.resize))
        if augment.rgb:
            dataset = dataset.map(lambda element: element | {"image": _rgb(element["image"])})
    return _endless(dataset, batch_size, seed, process_index, process_count)


def train_rows(
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
    """The batches of `train_iterator`, with the same arguments, as row numbers of the split: {"row": int32 (B,)}.

    For a split that the devices hold: they read and augment the images. With `last_batch="keep"` there is "mask" too.
    """
    options = dict(batch_size=batch_size, seed=seed, sampling=sampling, last_batch=last_batch, multiple=multiple)
    dataset = _train_order(
        split,
        RowSource(split),
        image_size=image_size,
        augment=augment or Augment(),
        process_count=process_count,
        **options,
    )
    return _endless(dataset, batch_size, seed, process_index, process_count)


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
    dataset = _padded(SplitSource(split), batch_size, process_index, process_count)
    dataset = dataset.map(functools.partial(_fitted, image_size=image_size, first=augment.resize))
    return iter(dataset.batch(batch_size // process_count, drop_remainder=True).to_iter_dataset(_READ_OPTIONS))


def eval_rows(
    split: Split, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of `eval_batches` as row numbers of the split: {"row": int32 (B,), "mask": bool (B,)}."""
    dataset = _padded(RowSource(split), batch_size, process_index, process_count)
    return iter(dataset.batch(batch_size // process_count, drop_remainder=True).to_iter_dataset(_READ_OPTIONS))


def _train_order(
    split: Split,
    source: Source,
    *,
    batch_size: int,
    seed: int,
    image_size: int | None,
    augment: Augment,
    sampling: str,
    last_batch: str,
    multiple: int,
    process_count: int,
) -> grain.MapDataset:
    """The elements of `source` in the training order of a split, one epoch; raises what `train_iterator` raises."""
    steps = steps_per_epoch(split, batch_size, last_batch=last_batch, multiple=multiple)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: use 0 <= seed < 2**32")
    _check(split, batch_size, image_size, process_count, augment)
    _check_sampling(split, sampling)
    order = dict(seed=seed, repeats=augment.repeats, balanced=sampling == "balanced")
    if last_batch == "keep":
        return padded_order(split, source, _samples(split, multiple), steps * batch_size, **order)
    return in_order(split, source, steps * batch_size, **order)


def _endless(
    dataset: grain.MapDataset, batch_size: int, seed: int, process_index: int, process_count: int
) -> grain.DatasetIterator:
    """The batches of a process, without an end, from the elements of an epoch."""
    dataset = _share(dataset, batch_size, seed, process_index, process_count)
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True).repeat()
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def _padded(source: Source, batch_size: int, process_index: int, process_count: int) -> grain.MapDataset:
    return grain.MapDataset.source(
        PaddedSource(source, batch_size=batch_size, process_index=process_index, process_count=process_count)
    )


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
