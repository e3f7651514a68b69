"""The data set that a config names, and the splits of a run."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxboost import data, io
from jaxboost.config.backbone import slices_of
from jaxboost.config.types import Config
from jaxboost.data.dataset import ALL, Dataset, DatasetInfo, row_digests
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.data.splits import fraction, ratios
from jaxboost.errors import UserError, check_choice
from jaxboost.models.backbones import BACKBONES
from jaxboost.runs import workdir
from jaxboost.runs.result import RunResult

logger = logging.getLogger(__name__)

ALL_FOLDS = -1
SPLITS = "splits.csv"

# Fields with paths of the data. The data may move, because their fingerprint is compared.
_MOVABLE = ("root", "masks", "folds_file", "groups")
_OPTIONS = (
    *("source", "root", "size", "classes", "multi_label", "masks", "allow_mixed_patients", "window", "spacing", "nan"),
    *("max_pixels", "max_voxels", "patient", "duplicates"),
)
# Fields that decide how a loaded data set is divided.
_DIVIDED_BY = ("shares", "train_fraction", "folds", "fold", "fold_seed", "val_share", "folds_file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a run.

    Attributes:
      load: loads the data set with its splits "train", "val" and "test".
      prepare: writes the table of the splits. It is called after all checks, so that a mistake leaves no file behind.
      folder: folder for files that several folds share: that of the run, or that of the whole cross-validation.
    """

    load: Callable[[], Dataset]
    prepare: Callable[[], None]
    folder: pathlib.Path


def describe(config: Config) -> DatasetInfo:
    """Describes a config's data set. A user's folder is read only if the config names no classes."""
    options = {name: config.data[name] for name in _OPTIONS}
    return data.describe_dataset(config.data.name, ndim=ndim(config), **options)


class _Shared:
    """What the runs of a study have in common: the folder of cached tokens, and the last data set."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._key: tuple[Any, ...] = ()
        self._dataset: Dataset | None = None

    def load(self, config: Config) -> Dataset:
        key = data_key(config)
        if self._dataset is None or self._key != key:
            # Only the last one is kept: several might not fit into memory.
            self._dataset = None
            self._key, self._dataset = key, _load(config)
        return self._dataset


_shared: _Shared | None = None


@contextlib.contextmanager
def shared(folder: pathlib.Path) -> Iterator[None]:
    """Inside the `with` block, runs of the same data decode them once, and keep the tokens of encoders in `folder`."""
    global _shared
    before, _shared = _shared, _Shared(folder)
    try:
        yield
    finally:
        _shared = before


def cache_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where a run in `folder` keeps the tokens of a frozen encoder."""
    return folder if _shared is None else _shared.folder


def data_key(config: Config) -> tuple[Any, ...]:
    """What decides which data set `load` loads: configs with equal keys have the same one."""
    fields = {name: repr(value) for name, value in config.data.items() if name not in _DIVIDED_BY}
    # Only a folder is read according to the model's dimensions.
    return (config.data.source == SOURCE and ndim(config), config.data.folds > 0, *fields.items())


def load(config: Config) -> Dataset:
    """Loads the whole data set, with its official splits if it has any and the config has no folds."""
    return _load(config) if _shared is None else _shared.load(config)


def _load(config: Config) -> Dataset:
    size, wanted = config.data.size, config.model.image_size
    resized = "baseline" not in config or (config.baseline.features, config.baseline.ndim) == ("encoder", 2)
    if config.data.source and size < wanted and resized:
        logger.warning(
            "images lose detail: data.size=%d is less than model.image_size=%d: set it to that", size, wanted
        )
    options = {name: config.data[name] for name in _OPTIONS}
    return data.load(
        config.data.name,
        ndim=ndim(config),
        ignore_splits=config.data.folds > 0,
        groups=config.data.groups,
        columns=config.data.columns,
        cache=config.data.cache,
        cache_gb=config.data.cache_gb,
        **options,
    )


@contextlib.contextmanager
def shared_in(folder: pathlib.Path) -> Iterator[None]:
    """As `shared`, unless it is open already: then nothing changes."""
    if _shared is not None:
        yield
        return
    with shared(folder):
        yield


def same_samples(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets have the same samples in each split, but for their images, which are not read."""
    if {*one.splits} != {*other.splits}:
        return False
    pairs = [(split, other.splits[name]) for name, split in one.splits.items()]
    names = ("labels", "groups", "names", "cells")
    return all(_equal(getattr(left, name), getattr(right, name)) for left, right in pairs for name in names)


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return (one is None) == (other is None) and (one is None or np.array_equal(one, other))


def own_splits(config: Config, folder: pathlib.Path) -> Splits:
    """The splits of a run without folds: the official ones, or splits that are drawn once and kept in `folder`."""
    file = folder / SPLITS

    @functools.cache
    def find() -> tuple[Dataset, bool]:
        """Returns the data set, and whether its splits were drawn here."""
        whole = load(config)
        if ALL not in whole.splits and ("val" in whole.splits or _without_val(config)):
            return whole, False
        divided = data.divide(
            whole,
            ratios=config.data.shares,
            seed=config.data.fold_seed,
            file=file if os.path.exists(file) else None,
            without_val=_without_val(config),
        )
        return divided, True

    def prepare() -> None:
        dataset, made = find()
        if made and not os.path.exists(file):
            workdir.create(folder, config)
            ratios.write(file, dataset)

    def load_part() -> Dataset:
        # The table of the splits has all samples, as it is read again when the run continues.
        return fraction_of(find()[0], config)

    return Splits(load=functools.cache(load_part), prepare=prepare, folder=cache_folder(folder))


def check_folds(config: Config) -> None:
    """Raises UserError if the config's file of folds is missing."""
    file = config.data.folds_file
    if file and not os.path.isfile(io.user_path(file)):
        raise UserError(f"config field data.folds_file: there is no file {file}: check the path")


def fold_of(dataset: Dataset, config: Config, fold: int, file: pathlib.Path | None) -> Dataset:
    """Returns the data set with the splits of one fold.

    Args:
      dataset: the whole data set.
      config: config of the run.
      fold: number of the fold, from 0.
      file: table of the folds; it is written if it is missing, unless the config names a file. None: do not write it.
    """
    fields = config.data
    divided = data.fold_of(
        dataset,
        count=fields.folds,
        fold=fold,
        seed=fields.fold_seed,
        # The reference code has no validation split: it trains on all other folds and picks the epoch on the test fold.
        val_share=0 if _without_val(config) else fields.val_share,
        file=io.user_path(fields.folds_file) if fields.folds_file else file,
    )
    return fraction_of(divided, config)


def fraction_of(dataset: Dataset, config: Config) -> Dataset:
    """The data set with the part of its training split that a config trains on."""
    return fraction.take(dataset, config.data.train_fraction, config.seed)


def fingerprint(dataset: Dataset, config: Config) -> dict[str, str]:
    """Returns SHA-256 digests of a user's own data set; {} for a published one, which its name identifies.

    A published set with patients of the user's own (`data.groups`) is the user's own.

    Returns:
      "data": digest of all samples, equal in all folds. "splits": digest of the assignment of samples to splits. With
      clinical columns also "columns": digest of their cells, so that runs with and without them have the same data.
    """
    if not _is_own(config):
        return {}
    samples, assignment, cells = [], [], []
    for name, split in sorted((name, split.named(name)) for name, split in dataset.splits.items()):
        groups = split.names if split.groups is None else split.groups
        shape, digests = split.images.shape[1:], row_digests(split.images)
        for file, group, labels, pixels in zip(split.names, groups, split.labels, digests, strict=True):
            samples.append(f"{file}\t{group}\t{labels.tolist()}\t{shape}\t{pixels}\n")
            assignment.append(f"{file}\t{name}\n")
        if split.cells is not None:
            cells += [f"{file}\t{row}\n" for file, row in zip(split.names, split.cells.tolist(), strict=True)]
    digests = {"data": samples, "splits": assignment, **({"columns": cells} if cells else {})}
    return {name: hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() for name, lines in digests.items()}


def check_same_data(config: Config, finished: RunResult, folder: pathlib.Path, splits: Splits | None) -> None:
    """Raises UserError if the data of the config differ from those of the finished run in `folder`.

    The data are read again only if the config names another folder or file. A published set is identified by its name.

    Args:
      config: the current config.
      finished: the result of the run.
      folder: folder of the run.
      splits: splits of the run; None: those of `own_splits`.
    """
    before = finished.config.get("data", {})
    # Runs of earlier versions have no `groups`.
    if not _is_own(config) or all(before.get(name, "") == config.data[name] for name in _MOVABLE):
        return
    logger.info("the path of the data has changed: comparing the data with those of %s", folder)
    found = fingerprint((splits or own_splits(config, folder)).load(), config)
    known = finished.digests
    differing = [name for name, digest in found.items() if known[name] not in (None, digest)]
    if differing:
        raise UserError(
            f"{folder} is a finished run with other {' and '.join(differing)} than those in {config.data.root}:"
            " give the data of the run, or another --workdir"
        )


def _without_val(config: Config) -> bool:
    """Whether the epoch is picked on the test split."""
    return config.eval.protocol == "reference"


def _is_own(config: Config) -> bool:
    return bool(config.data.source or config.data.groups)


def ndim(config: Config) -> int:
    """The number of spatial dimensions of the model, 2 or 3, which decides how a user's files are read."""
    if "baseline" in config:
        return config.baseline.ndim
    if slices_of(config):
        return 3
    if config.data.source != SOURCE or "pneumollm" in config:
        return 2
    return BACKBONES[check_choice(config.model.backbone, BACKBONES, "config field model.backbone")].ndim
