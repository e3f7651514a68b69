"""A split in the memory of the devices, and reading rows of it inside a step."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost.data.dataset import MappedRows, Split

# Part of the devices' memory that the splits may take; the rest is for weights and activations.
SHARE = 0.4
# Splits are padded to a multiple of this number of rows on each device: splits of nearly the same length, such as those
# of the folds of a cross-validation, then share a compiled program.
_ROOM = 64
# What is copied to a device at once, so that a split larger than the host's memory can be copied from a mapped file.
_CHUNK_BYTES = 1 << 28


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A split, divided over the devices.

    Attributes:
      images: (N, numbers of one image), in the type in which they are stored; N is n, rounded up. One axis for an
        image, because a device may pad the last axis of an array, which is 1 for grey images.
      labels: int32 (N, L).
      columns: features of clinical columns, float32 (N, F); None without them.
      shape: of one image.
    """

    images: jax.Array
    labels: jax.Array
    columns: jax.Array | None
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def read(self, rows: jax.Array) -> dict[str, jax.Array]:
        """Of rows, int32 (B,): {"image": (B, *shape), "label": (B, L)[, "columns": (B, F)]}."""
        found = {"image": self.images[rows].reshape(-1, *self.shape), "label": self.labels[rows]}
        return found if self.columns is None else found | {"columns": self.columns[rows]}


def place(split: Split, by_batch: jax.NamedSharding) -> Rows:
    """Copies a split to the devices; each gets an equal part of the rows."""
    room = _ROOM * by_batch.mesh.size
    count = -(-len(split) // room) * room
    labels = split.labels.astype(np.int32)
    return Rows(
        images=_divided(split.images, count, by_batch),
        labels=_divided(labels, count, by_batch),
        columns=None if split.columns is None else _divided(split.columns, count, by_batch),
        shape=split.images.shape[1:],
    )


def megabytes(splits: Iterable[Split]) -> float:
    """What the images of splits take in the memory of all devices together, in MB (1e6 bytes)."""
    return sum(len(split) * math.prod(split.images.shape[1:]) * split.images.dtype.itemsize for split in splits) / 1e6


def fit(splits: Iterable[Split], by_batch: jax.NamedSharding) -> bool:
    """Whether the images of splits fit into `SHARE` of the devices' memory; not if a device does not tell its size."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in by_batch.addressable_devices]
    return megabytes(splits) * 1e6 <= SHARE * min(limits) * by_batch.mesh.size


def _divided(array: np.ndarray | MappedRows, count: int, by_batch: jax.NamedSharding) -> jax.Array:
    """The rows of an array (n, ...) as (count, numbers of a row), divided over the devices; the last ones are 0."""
    shape = (count, math.prod(array.shape[1:]))
    parts = []
    for device, index in by_batch.addressable_devices_indices_map(shape).items():
        assert index is not None
        first, last, _ = index[0].indices(count)
        parts.append(_on(device, array, first, last))
    return jax.make_array_from_single_device_arrays(shape, by_batch, parts)


def _on(device: Any, array: np.ndarray | MappedRows, first: int, last: int) -> jax.Array:
    """Rows `first` to `last` of an array on one device, where rows after the array's end are 0."""
    width = math.prod(array.shape[1:])
    found = jnp.zeros((last - first, width), array.dtype, device=device)
    step = max(1, _CHUNK_BYTES // max(1, width * array.dtype.itemsize))
    for start in range(first, min(last, len(array)), step):
        rows = np.arange(start, min(start + step, last, len(array)))
        part = array.take(rows) if isinstance(array, MappedRows) else array[rows[0] : rows[-1] + 1]
        found = _with_part(found, np.asarray(part).reshape(len(rows), width), start - first)
    return found


@functools.partial(jax.jit, donate_argnums=0)
def _with_part(whole: jax.Array, part: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
