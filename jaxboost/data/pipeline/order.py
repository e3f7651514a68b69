"""The order of the samples in training: shuffled, repeated, balanced, padded; it depends only on seed and position."""

import functools
from typing import Any

import grain
import numpy as np

from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.elements import Source


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


def in_order(split: Split, source: Source, size: int, *, seed: int, repeats: int, balanced: bool) -> grain.MapDataset:
    """The elements of `source` in training order, with epochs of `size` samples."""
    if repeats == 1 and not balanced:
        # Truncated to whole batches here, before the slices of the processes: otherwise processes with one element more
        # would have longer epochs than the others.
        return grain.MapDataset.source(source).seed(seed).shuffle().slice(slice(0, size))
    rows = EpochOrder(split.labels[:, 0], size=size, seed=seed, repeats=repeats, balanced=balanced)
    # The index is not reset after an epoch.
    return grain.MapDataset.range(size).seed(seed).map_with_index(lambda index, _: source[rows[index]])


def padded_order(split: Split, source: Source, size: int, padded: int, **order: Any) -> grain.MapDataset:
    """As `in_order`, with a mask; zeros pad the `size` samples of each epoch to `padded`."""
    rows = EpochOrder(split.labels[:, 0], size=size, padding=padded - size, **order)
    nothing = {name: np.zeros_like(value) for name, value in source[0].items()} | {"mask": np.False_}

    def element(index: int, _: int) -> dict[str, np.ndarray]:
        row = rows[index]
        return nothing if row < 0 else source[row] | {"mask": np.True_}

    return grain.MapDataset.range(padded).seed(order["seed"]).map_with_index(element)
