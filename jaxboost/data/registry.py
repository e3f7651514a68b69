"""Every data set by name."""

from collections.abc import Sequence

from jaxboost.data import lidc, medmnist, radiographs, silhouettes
from jaxboost.data.source import Dataset, DatasetInfo
from jaxboost.errors import UserError, check_choice


def dataset_names() -> tuple[str, ...]:
    """The names that `describe_dataset` and `load` take."""
    return (*medmnist.names(), lidc.NAME, silhouettes.NAME, radiographs.NAME)


def describe_dataset(
    name: str, size: int, *, root: str = "", classes: Sequence[str] = (), multi_label: bool = False
) -> DatasetInfo:
    """The description of data set `name` at `size` pixels.

    No file of the data set is touched, but for radiographs without `classes`: theirs are those of labels.csv in `root`.

    Args:
        classes: of radiographs, in label order.
        multi_label: whether a radiograph may have several labels.

    Raises:
        UserError: no such data set, or not in that size; `classes` or `multi_label` for a data set that has its own;
            labels.csv is needed and cannot be read.
    """
    _check_name(name)
    if name == radiographs.NAME:
        return radiographs.describe(size, root=root, classes=classes, multi_label=multi_label)
    _check_unused(name, classes=classes, multi_label=multi_label)
    if name in (lidc.NAME, silhouettes.NAME):
        return (lidc if name == lidc.NAME else silhouettes).describe(size)
    return medmnist.describe(name, size)


def load(
    name: str,
    *,
    size: int,
    root: str,
    classes: Sequence[str] = (),
    multi_label: bool = False,
    masks: str = "",
    allow_mixed_patients: bool = False,
) -> Dataset:
    """Loads data set `name` at `size` pixels from the folder `root` ("": see `source.data_root`).

    MedMNIST files that are missing are downloaded; the LIDC shapes are built on first use. Radiographs have the single
    split "all", every other data set its official ones.

    Args:
        classes, multi_label, masks, allow_mixed_patients: of radiographs only, see `radiographs.load`.

    Raises:
        UserError: no such data set or size; a file that is altered, cannot be had or cannot be read; an option that the
            data set does not have.
    """
    _check_name(name)
    options = {
        "classes": classes,
        "multi_label": multi_label,
        "masks": masks,
        "allow_mixed_patients": allow_mixed_patients,
    }
    if name == radiographs.NAME:
        return radiographs.load(size=size, root=root, **options)
    _check_unused(name, **options)
    if name in (lidc.NAME, silhouettes.NAME):
        return (lidc if name == lidc.NAME else silhouettes).load(size=size, root=root)
    return medmnist.load(name, size=size, root=root)


def _check_name(name: str) -> None:
    check_choice(name, dataset_names(), "config field data.name")


def _check_unused(name: str, **options: object) -> None:
    for field, value in options.items():
        if value:
            raise UserError(f"config field data.{field}: {value!r} is for {radiographs.NAME} only, {name} has its own")
