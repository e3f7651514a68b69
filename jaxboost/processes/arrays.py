"""Arrays that are spread over the devices of several processes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def mesh() -> jax.sharding.Mesh:
    """The devices of all processes in a row, along the axis "data".

    The devices of a process follow each other, in the order of the processes: rows of a batch that the processes read
    in this order are those of one process that reads the whole batch.
    """
    axis_types = (jax.sharding.AxisType.Auto,)
    if jax.process_count() == 1:
        devices = jax.local_devices()
        return jax.make_mesh((len(devices),), ("data",), axis_types=axis_types, devices=devices)
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return jax.sharding.Mesh(np.array(ordered), ("data",), axis_types=axis_types)


def share() -> dict[str, int]:
    """The arguments `process_index` and `process_count` of the pipeline of data."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def on_host(tree: Any) -> Any:
    """The arrays of a tree on the host, whole. If one is split over processes, all of them have to call this."""
    return jax.device_get(jax.tree.map(_gathered, tree))


def _gathered(array: Any) -> Any:
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def whole(array: np.ndarray, by_batch: jax.NamedSharding) -> np.ndarray:
    """The parts of all processes, one after the other, from this process's part of a batch."""
    if jax.process_count() == 1:
        return array
    replicated = jax.NamedSharding(by_batch.mesh, jax.P())
    return np.asarray(_copy(replicated)(jax.make_array_from_process_local_data(by_batch, array)))


def own(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of a whole batch that this process gives to the devices."""
    count, index = jax.process_count(), jax.process_index()
    return {name: np.split(array, count)[index] for name, array in batch.items()}


def put(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A value that is equal in all processes, perhaps a random key, on the devices of a sharding."""
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(np.asarray(jax.random.key_data(value)), sharding))
    return place(np.asarray(value), sharding)


def place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array of the host, equal in all processes, on the devices of a sharding; each process places its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _copy(sharding: jax.NamedSharding) -> Any:
    return jax.jit(_same, out_shardings=sharding)


def _same(array: jax.Array) -> jax.Array:
    return array
