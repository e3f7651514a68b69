"""Every data set by name."""

from jaxboost.data import lidc, medmnist
from jaxboost.data.source import Dataset, DatasetInfo
from jaxboost.errors import check_choice


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
    check_choice(name, dataset_names(), "config field data.name")
