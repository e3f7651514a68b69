"""Batched inference: applies a function to batches and returns its outputs for all samples, in order."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxboost import stopping
from jaxboost.processes import arrays

Batch = Mapping[str, jax.Array]
HostBatch = Mapping[str, np.ndarray]


def put(batch: HostBatch, by_batch: jax.NamedSharding) -> Batch:
    """Copies a batch from the host to the devices; each device gets its shard."""
    return {name: jax.make_array_from_process_local_data(by_batch, array) for name, array in batch.items()}


def run_batches(step: Callable[[Batch], Any], batches: Iterable[HostBatch], by_batch: jax.NamedSharding) -> Any:
    """Returns the outputs of `step` for all samples, without the padding.

    Args:
      step: maps a batch on the devices, without its entry "mask", to an array (B, ...) or a tuple of arrays.
      batches: batches on the host; of several processes, the share of this one. Their entry "mask", bool (B,), is
        False for padding (see `batches.eval_batches`).
      by_batch: sharding of the batches.

    Returns:
      The array (n, ...), or the tuple of arrays, on the host.

    Raises:
      Stopped: a signal arrived while signals were deferred.
    """
    found = []
    for batch in batches:
        stopping.poll()
        mask = arrays.whole(batch["mask"], by_batch)
        inputs = {name: array for name, array in batch.items() if name != "mask"}
        outputs = arrays.on_host(step(put(inputs, by_batch)))
        found.append(jax.tree.map(lambda output, mask=mask: output[mask], outputs))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
