"""All data sets, by source and name: the only module that knows every source.

A source is a module with `describe(name, size, *, root, **options)` and `load(name, *, size, root, **options)`; a
module of published data sets also has `names()`. To add a source, write such a module and add a row here.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxboost.data.dataset import Dataset, DatasetInfo
from jaxboost.data.sources import lidc, medmnist, tfds_source
from jaxboost.data.sources.folder import source as folder_source
from jaxboost.data.splits import official
from jaxboost.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """A source of data sets.

    Attributes:
      module: the module that describes and loads them.
      describe_options: options of `module.describe`, with their defaults.
      load_options: options of `module.load`, with their defaults.
      check_splits: whether the official splits are checked after loading. Published splits are known to be right, and
        the splits of a folder are checked while it is read.
    """

    module: ModuleType
    describe_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    load_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check_splits: bool = False


PUBLISHED = ""
_PUBLISHED = (_Source(module=medmnist), _Source(module=lidc))
_TFDS = _Source(module=tfds_source, check_splits=True)
_FOLDER_OPTIONS = {"ndim": 2, "classes": (), "multi_label": False, "masks": ""}
_FOLDER = _Source(
    module=folder_source,
    describe_options=_FOLDER_OPTIONS,
    load_options=_FOLDER_OPTIONS | {"allow_mixed_patients": False, "window": (), "spacing": 0.0},
)
SOURCES = (PUBLISHED, folder_source.SOURCE, f"{tfds_source.PREFIX}NAME")

# Options that a config gives for every data set. Only a user's folder reads them.
_IGNORED = ("ndim", "max_pixels", "max_voxels", "duplicates", "pooled")


def dataset_names() -> tuple[str, ...]:
    """The names of the published data sets."""
    return tuple(name for source in _PUBLISHED for name in source.module.names())


def describe_dataset(name: str, size: int, *, source: str = PUBLISHED, root: str = "", **options: Any) -> DatasetInfo:
    """Describes a data set at `size` pixels.

    No data file is read, except in a user's folder without `classes`.

    Args:
      name: a published data set, or the user's name for the data set in `root`; not used with "tfds:NAME".
      size: edge length S in pixels.
      source: "": a published data set; "folder": the user's files in `root`; "tfds:NAME": a prepared data set of
        tensorflow-datasets, see `sources.tfds_source`.
      root: folder of the data.
      **options: `ndim`, `classes`, `multi_label` and `masks` of a user's folder, see `sources.folder.source.load`.

    Raises:
      UserError: the source, data set or size does not exist; an option is for a user's folder only; or the folder has
        to be read and cannot be.
    """
    row, known_as = _find(source, name)
    accepted = _accepted(row.describe_options, options, source or name)
    return row.module.describe(known_as, size, root=root, **accepted)


def load(name: str, *, source: str = PUBLISHED, size: int, root: str, **options: Any) -> Dataset:
    """Loads a data set at `size` pixels from the folder `root`; "" is the default folder, see `dataset.data_root`.

    Missing MedMNIST files are downloaded. The LIDC shapes are computed on first use. A user's folder without splits
    has the one split "all"; other data sets have their official ones.

    Args:
      name: as for `describe_dataset`.
      source: as for `describe_dataset`.
      size: edge length S in pixels.
      root: folder of the data.
      **options: options of a user's folder, see `sources.folder.source.load`.

    Raises:
      UserError: the source, data set or size does not exist; a file is altered, missing or unreadable; an option is for
        a user's folder only; or a user's folder has problems.
    """
    row, known_as = _find(source, name)
    accepted = _accepted(row.load_options, options, source or name)
    dataset = row.module.load(known_as, size=size, root=root, **accepted)
    if row.check_splits:
        official.check(dataset, source)
    return dataset


def _find(source: str, name: str) -> tuple[_Source, str]:
    """The row of a data set, and the name that its module knows it by."""
    if source.startswith(tfds_source.PREFIX):
        return _TFDS, source.removeprefix(tfds_source.PREFIX)
    check_choice(source, SOURCES, "config field data.source")
    if source == PUBLISHED:
        check_choice(name, dataset_names(), "config field data.name")
        return next(row for row in _PUBLISHED if name in row.module.names()), name
    if name in dataset_names():
        raise UserError(
            f"config field data.name: {name!r} is a published data set, and data.source={source!r} is your own: "
            "give it another name"
        )
    return _FOLDER, name


def _accepted(defaults: Mapping[str, Any], options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the options for the source. Raises UserError if an option of a folder is set for another source."""
    if defaults:
        return {**defaults, **options}
    for field, value in options.items():
        if value and field not in _IGNORED:
            raise UserError(
                f"config field data.{field}: {value!r} is for data.source={folder_source.SOURCE!r} only, {name} has its"
                " own"
            )
    return {}
