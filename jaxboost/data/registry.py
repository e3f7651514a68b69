"""All data sets, by source and name: the only module that knows every source.

A source is a module with `describe(name, size, *, root)` and `load(name, *, size, root)`. To add published data sets,
write such a module that also has `names()`, and add it to `_PUBLISHED`; a new kind of source needs a branch in `_find`.
"""

import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from jaxboost.data.dataset import Dataset, DatasetInfo
from jaxboost.data.rows import place
from jaxboost.data.sources import lidc, medmnist, patient_table, tfds_source
from jaxboost.data.sources.folder import source as folder_source
from jaxboost.errors import UserError, check_choice

PUBLISHED = ""
_PUBLISHED = (medmnist, lidc)
SOURCES = (PUBLISHED, folder_source.SOURCE, f"{tfds_source.PREFIX}NAME")


def dataset_names() -> tuple[str, ...]:
    """The names of the published data sets."""
    return tuple(name for module in _PUBLISHED for name in module.names())


def describe_dataset(name: str, size: int, *, source: str = PUBLISHED, root: str = "", **options: Any) -> DatasetInfo:
    """Describes a data set at `size` pixels.

    No data file is read, except in a user's folder without `classes`.

    Args:
      name: a published data set, or the user's name for the data set in `root`; not used with "tfds:NAME".
      size: edge length S in pixels.
      source: "": a published data set; "folder": the user's files in `root`; "tfds:NAME": a prepared data set of
        tensorflow-datasets, see `sources.tfds_source`.
      root: folder of the data.
      **options: options of a user's folder, see `sources.folder.source.load`; those that do not matter here are only
        refused for other data sets.

    Raises:
      UserError: the source, data set or size does not exist; an option is for a user's folder only; or the folder has
        to be read and cannot be.
    """
    module, known_as = _find(source, name)
    if module is folder_source:
        known = inspect.signature(folder_source.describe).parameters
        used = {option: value for option, value in options.items() if option in known}
        return folder_source.describe(known_as, size, root=root, **used)
    _refuse(options, source or name)
    return module.describe(known_as, size, root=root)


def load(
    name: str,
    *,
    source: str = PUBLISHED,
    size: int,
    root: str,
    ignore_splits: bool = False,
    groups: str = "",
    columns: Sequence[str] = (),
    cache: str = place.ON,
    cache_gb: float = place.MOST_GB,
    **options: Any,
) -> Dataset:
    """Loads a data set at `size` pixels from the folder `root`; "" is the default folder, see `dataset.data_root`.

    Missing MedMNIST files are downloaded. The LIDC shapes are computed on first use. A user's folder without splits
    has the one split "all"; other data sets have their official ones.

    Args:
      name: as for `describe_dataset`.
      source: as for `describe_dataset`.
      size: edge length S in pixels.
      root: folder of the data.
      ignore_splits: whether the official splits do not matter, because a cross-validation divides all samples anew:
        they are not checked, and a user's folder has the one split "all".
      groups: table of the patients of a data set that is no user's folder, see `patient_table.with_patients`; "": none.
      columns: clinical columns of that table, or of a folder's labels.csv; (): none.
      cache: whether decoded images of a user's folder or a prepared set are kept on disk, see `place.Keeping`.
      cache_gb: the most that they may take there.
      **options: options of a user's folder, see `sources.folder.source.load`.

    Raises:
      UserError: the source, data set or size does not exist; a file is altered, missing or unreadable; an option is for
        a user's folder only; or a user's folder has problems.
    """
    module, known_as = _find(source, name)
    if module is folder_source:
        kept = {"columns": columns, "cache": cache, "cache_gb": cache_gb}
        return folder_source.load(known_as, size=size, root=root, ignore_splits=ignore_splits, **kept, **options)
    _refuse(options, source or name)
    if module is tfds_source:
        dataset = tfds_source.load(
            known_as, size=size, root=root, ignore_splits=ignore_splits, cache=cache, cache_gb=cache_gb
        )
    else:
        # Published splits are known to be right.
        dataset = module.load(known_as, size=size, root=root)
    if not groups:
        return dataset
    return patient_table.with_patients(dataset, groups, ignore_splits=ignore_splits, columns=columns)


def _find(source: str, name: str) -> tuple[ModuleType, str]:
    """The module of a data set, and the name that it knows the data set by."""
    if source.startswith(tfds_source.PREFIX):
        return tfds_source, source.removeprefix(tfds_source.PREFIX)
    check_choice(source, SOURCES, "config field data.source")
    if source == PUBLISHED:
        check_choice(name, dataset_names(), "config field data.name")
        return next(module for module in _PUBLISHED if name in module.names()), name
    if name in dataset_names():
        raise UserError(
            f"config field data.name: {name!r} is a published data set, and data.source={source!r} is your own: "
            "give it another name"
        )
    return folder_source, name


def _refuse(options: Mapping[str, Any], name: str) -> None:
    """Raises UserError if an option of a user's folder is set for another source."""
    parameters = inspect.signature(folder_source.load).parameters
    for field, value in options.items():
        # The number of dimensions is the model's, and no field of the config.
        if field != "ndim" and value != (default := parameters[field].default):
            raise UserError(
                f"config field data.{field}: {value!r} is for data.source={folder_source.SOURCE!r} only, not for"
                f" {name}: leave it at {default!r}"
            )
