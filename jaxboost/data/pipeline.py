"""Batches for training and evaluation, with grain.

Splits are in memory as stored, or mapped from disk where they are large. Where the model wants larger images, every
element is resized when it is read, in grain's threads: pillow lets go of the interpreter lock while it resizes, so the
work spreads over the cores, and memory stays that of the stored split plus a few batches (OCTMNIST's training split
alone would be 4.9 GB at 224 pixels). Keeping resized copies of small splits would save work, but only where there is
little of it.
"""

import functools
import os
from collections.abc import Iterator

import grain
import numpy as np
from PIL import Image

from jaxboost.data.source import Split
from jaxboost.errors import UserError

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


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Whole batches of `batch_size` (over all processes) in the split; what is left over is dropped.

    Raises:
        UserError: the batch is larger than the split.
    """
    if not 0 < batch_size <= len(split):
        raise UserError(f"train.batch_size={batch_size}: use 1 to {len(split)}, the samples of the training split")
    return len(split) // batch_size


def train_iterator(
    split: Split, *, batch_size: int, seed: int, image_size: int | None, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless shuffled batches {"image": uint8 (B, S, S[, S], C) or float32 (B, d, W), "label": int32 (B, L)}.

    Every epoch is a new permutation of the split and has `steps_per_epoch` batches; the remainder, another one each
    epoch, is dropped. The batches follow from `seed` alone. `get_state()` and `set_state()` are exact, and the iterator
    can be given to `grain.checkpoint.CheckpointSave` and `CheckpointRestore`.

    Args:
        split: the training split.
        batch_size: samples per step over all processes; each process gets B = batch_size / process_count.
        seed: 0 <= seed < 2^32.
        image_size: S, edge length in pixels that the model takes; None: images or features as they are stored.
        process_index: which share of each batch to give, 0 <= process_index < process_count.
        process_count: processes that train together.

    Raises:
        UserError: the batch is larger than the split or not a multiple of process_count; the seed is out of range;
            3-D volumes would have to be resampled.
    """
    steps = steps_per_epoch(split, batch_size)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: use 0 <= seed < 2**32")
    _check(split, batch_size, image_size, process_count)
    dataset = (
        grain.MapDataset.source(SplitSource(split))
        .seed(seed)
        .shuffle()
        # Cut to whole batches before the shares are dealt out: otherwise processes with one element more would
        # have longer epochs than the others.
        .slice(slice(0, steps * batch_size))
        .slice(slice(process_index, None, process_count))
        .map(functools.partial(_resized, image_size=image_size))
        .batch(batch_size // process_count, drop_remainder=True)
        .repeat()
    )
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def eval_batches(
    split: Split, *, batch_size: int, image_size: int | None, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """One pass in order: {"image": uint8 or float32, as in `train_iterator`, "label": int32 (B, L), "mask": bool (B,)}.

    The last batch is padded to full size with zeros, where mask is False; every process gets the same number of
    batches, and in each of them its share of B = batch_size / process_count consecutive samples.

    Raises:
        UserError: as for `train_iterator`; a batch larger than the split is padded.
    """
    _check(split, batch_size, image_size, process_count)
    source = PaddedSource(split, batch_size=batch_size, process_index=process_index, process_count=process_count)
    dataset = (
        grain.MapDataset.source(source)
        .map(functools.partial(_resized, image_size=image_size))
        .batch(batch_size // process_count, drop_remainder=True)
    )
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def resize(image: np.ndarray, image_size: int) -> np.ndarray:
    """A uint8 image (S, S, C), C = 1 or 3, at `image_size` pixels: pillow's bicubic. The same array if S fits already.

    Raises:
        UserError: a volume (S, S, S, C) of another size.
    """
    if image.shape[0] == image_size:
        return image
    if image.ndim == 4:
        raise UserError(
            f"model.image_size={image_size}, data.size={image.shape[0]}: "
            "3-D volumes are not resampled here: set model.image_size to data.size"
        )
    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    resized = np.asarray(picture.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return resized[..., np.newaxis] if grey else resized


def _resized(element: dict[str, np.ndarray], *, image_size: int | None) -> dict[str, np.ndarray]:
    return element if image_size is None else element | {"image": resize(element["image"], image_size)}


def _check(split: Split, batch_size: int, image_size: int | None, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch size {batch_size} is not a positive multiple of the {process_count} processes")
    # One element here, so that a size that cannot be had fails in the caller and not in a reader's thread.
    if image_size is not None:
        resize(split.images[0], image_size)
