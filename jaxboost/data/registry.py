"""Every data set, by its source and its name."""

from collections.abc import Sequence

from jaxboost.data.dataset import Dataset, DatasetInfo
from jaxboost.data.readers import arrays
from jaxboost.data.sources import lidc, medmnist, silhouettes, tfds_source
from jaxboost.data.sources.folder import source as folder_source
from jaxboost.data.splits import folds
from jaxboost.errors import UserError, check_choice

PUBLISHED = ""
SOURCES = (PUBLISHED, folder_source.SOURCE, f"{tfds_source.PREFIX}NAME")


def dataset_names() -> tuple[str, ...]:
    """The names of the published data sets that `describe_dataset` and `load` take."""
    return (*medmnist.names(), lidc.NAME, silhouettes.NAME)


def describe_dataset(
    name: str,
    size: int,
    *,
    source: str = PUBLISHED,
    ndim: int = 2,
    root: str = "",
    classes: Sequence[str] = (),
    multi_label: bool = False,
    masks: str = "",
) -> DatasetInfo:
    """The description of a data set at `size` pixels.

    No file of it is touched, but for a user's folder without `classes`, see `sources.folder`.

    Args:
      name: of a published data set, or what a user's own is to be called; not read with "tfds:NAME".
      source: "", a published data set; "folder", the user's files in `root`; "tfds:NAME", a prepared set of
        tensorflow-datasets, see `tfds_source`.
      ndim: spatial dimensions that the model takes; the published sets have their own.
      classes, multi_label, masks: of a user's folder only.

    Raises:
      UserError: no such source, data set or size; an option that the data set does not have; the folder is needed and
        cannot be read.
    """
    _check(source, name)
    if source == folder_source.SOURCE:
        return folder_source.describe(
            name, size, ndim=ndim, root=root, classes=classes, multi_label=multi_label, masks=masks
        )
    _check_unused(source or name, classes=classes, multi_label=multi_label, masks=masks)
    if source:
        return tfds_source.describe(_tfds_name(source), size=size, root=root)
    if name in (lidc.NAME, silhouettes.NAME):
        return (lidc if name == lidc.NAME else silhouettes).describe(size)
    return medmnist.describe(name, size)


def load(
    name: str,
    *,
    source: str = PUBLISHED,
    size: int,
    ndim: int = 2,
    root: str,
    classes: Sequence[str] = (),
    multi_label: bool = False,
    masks: str = "",
    allow_mixed_patients: bool = False,
    window: Sequence[float] = (),
    spacing: float = 0.0,
    nan: str = "",
    max_pixels: int = arrays.MAX_PIXELS,
    max_voxels: int = arrays.MAX_VOXELS,
    patient: str = "",
    duplicates: str = folder_source.WARN,
    pooled: bool = False,
) -> Dataset:
    """Loads a data set at `size` pixels from the folder `root` (published ones: "", see `dataset.data_root`).

    MedMNIST files that are missing are downloaded; the LIDC shapes are built on first use. A user's folder has the
    single split "all" where it says no splits, every other data set its official ones.

    Args:
      name, source, ndim: as for `describe_dataset`.
      classes, multi_label, masks, allow_mixed_patients, window, spacing, nan, patient: of a user's folder only, see
        `sources.folder`; so are max_pixels, max_voxels, duplicates and pooled, which other data sets do not read.

    Raises:
      UserError: no such source, data set or size; a file that is altered, cannot be had or cannot be read; an option
        that the data set does not have; all that is wrong with a user's folder.
    """
    _check(source, name)
    options = {
        "classes": classes,
        "multi_label": multi_label,
        "masks": masks,
        "allow_mixed_patients": allow_mixed_patients,
        "window": window,
        "spacing": spacing,
        "nan": nan,
        "patient": patient,
    }
    if source == folder_source.SOURCE:
        limits = {"max_pixels": max_pixels, "max_voxels": max_voxels}
        search = {"duplicates": duplicates, "pooled": pooled}
        return folder_source.load(name, size=size, ndim=ndim, root=root, **options, **limits, **search)
    _check_unused(source or name, **options)
    if source:
        dataset = tfds_source.load(_tfds_name(source), size=size, root=root)
        folds.check_official(dataset.splits, dataset.info.classes, source)
        return dataset
    if name in (lidc.NAME, silhouettes.NAME):
        return (lidc if name == lidc.NAME else silhouettes).load(size=size, root=root)
    return medmnist.load(name, size=size, root=root)


def _check(source: str, name: str) -> None:
    if source.startswith(tfds_source.PREFIX):
        return
    check_choice(source, SOURCES, "config field data.source")
    if source == PUBLISHED:
        check_choice(name, dataset_names(), "config field data.name")
    elif name in dataset_names():
        raise UserError(
            f"config field data.name: {name!r} is a published data set, and data.source={source!r} is your own: "
            "give it a name of its own"
        )


def _tfds_name(source: str) -> str:
    return source.removeprefix(tfds_source.PREFIX)


def _check_unused(name: str, **options: object) -> None:
    for field, value in options.items():
        if value:
            raise UserError(
                f"config field data.{field}: {value!r} is for data.source={folder_source.SOURCE!r} only, {name} has its"
                " own"
            )
