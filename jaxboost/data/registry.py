"""Every data set by name."""

import difflib

from jaxboost.data import lidc, medmnist
from jaxboost.data.source import Dataset, DatasetInfo
from jaxboost.errors import UserError


def dataset_names() -> tuple[str, ...]:
    """The names that `describe_dataset` and `load` take."""
    return (*medmnist.names(), lidc.NAME)


def describe_dataset(name: str, size: int) -> DatasetInfo:
    """The description of data set `name` at `size` pixels; no file of the data set is touched.

    Raises:
        UserError: no such data set, or not in that size.
    """
    _check_name(name)
    return lidc.describe(size) if name == lidc.NAME else medmnist.describe(name, size)


def load(name: str, *, size: int, root: str) -> Dataset:
    """Loads data set `name` at `size` pixels from the folder `root` ("": see `source.data_root`).

    MedMNIST files that are missing are downloaded; `lidcshapes3d` is built on first use.

    Raises:
        UserError: no such data set or size; a file that is altered, cannot be had or cannot be read.
    """
    _check_name(name)
    return lidc.load(size=size, root=root) if name == lidc.NAME else medmnist.load(name, size=size, root=root)


def _check_name(name: str) -> None:
    known = dataset_names()
    if name not in known:
        nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)[0]
        raise UserError(f"data.name={name!r}: no such data set; did you mean {nearest!r}? Known: {', '.join(known)}")
