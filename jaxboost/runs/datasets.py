"""The data set that a config names, and the splits of a run."""

import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxboost import data
from jaxboost.data.dataset import Dataset, DatasetInfo
from jaxboost.data.sources.folder.source import SOURCE, WHOLE
from jaxboost.data.splits import ratios
from jaxboost.errors import UserError, check_choice
from jaxboost.models.classifier import BACKBONES
from jaxboost.runs import workdir

logger = logging.getLogger(__name__)

ALL_FOLDS = -1
SPLITS = "splits.csv"

_DESCRIBED_BY = ("source", "root", "classes", "multi_label", "masks")
# Where the data lie: they may move, their fingerprint tells that they are the same.
_PLACES = ("root", "masks", "folds_file")
_LOADED_BY = (
    *_DESCRIBED_BY,
    *("size", "allow_mixed_patients", "window", "spacing", "nan", "max_pixels", "max_voxels", "patient", "duplicates"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Where a run has its splits from.

    Attributes:
      load: gives the data set with its splits "train", "val" and "test".
      prepare: writes what others have to find again, once no mistake of the user is left to be found.
      folder: of what is kept beside: the run's, or that of the cross-validation that it is a fold of.
    """

    load: Callable[[], Dataset]
    prepare: Callable[[], None]
    folder: pathlib.Path


def describe(config: ConfigDict) -> DatasetInfo:
    """Its description; a user's folder is looked at only where the config does not name the classes."""
    fields = config.data
    options = {name: fields[name] for name in _DESCRIBED_BY}
    return data.describe_dataset(fields.name, fields.size, ndim=_ndim(config), **options)


def load(config: ConfigDict) -> Dataset:
    """The whole data set, with its official splits where it has some."""
    size, wanted = config.data.size, config.model.image_size
    if config.data.source and size < wanted:
        logger.warning(
            "images lose detail: data.size=%d is less than model.image_size=%d: set it to that", size, wanted
        )
    options = {name: config.data[name] for name in _LOADED_BY}
    return data.load(config.data.name, ndim=_ndim(config), pooled=config.data.folds > 0, **options)


def own_splits(config: ConfigDict, folder: pathlib.Path) -> Splits:
    """The splits of a run that is no fold: the official ones, or such as are made once and kept in `folder`."""
    file = folder / SPLITS

    @functools.cache
    def find() -> tuple[Dataset, bool]:
        """The data set, and whether its splits are made here."""
        whole = load(config)
        ratios.check_patients(whole)
        if WHOLE not in whole.splits and ("val" in whole.splits or _without_val(config)):
            return whole, False
        divided = data.divide(
            whole,
            shares=config.data.shares,
            seed=config.data.fold_seed,
            file=file if file.exists() else None,
            without_val=_without_val(config),
        )
        return divided, True

    def prepare() -> None:
        dataset, made = find()
        if made and not file.exists():
            workdir.create(folder, config)
            ratios.write(file, dataset)

    return Splits(load=lambda: find()[0], prepare=prepare, folder=folder)


def check_folds(config: ConfigDict) -> None:
    """Raises UserError where the file of folds that a config names is not there."""
    file = config.data.folds_file
    if file and not pathlib.Path(file).expanduser().is_file():
        raise UserError(f"config field data.folds_file: there is no file {file}: check the path")


def fold_of(dataset: Dataset, config: ConfigDict, fold: int, file: pathlib.Path | None) -> Dataset:
    """The splits of one fold.

    Args:
      file: of the folds, written where it is missing, unless the config names another; None for a new assignment.
    """
    fields = config.data
    return data.fold_of(
        dataset,
        count=fields.folds,
        fold=fold,
        seed=fields.fold_seed,
        # The reference has no validation part: it trains on all other folds and picks the epoch on the test fold.
        val_share=0 if _without_val(config) else fields.val_share,
        file=pathlib.Path(fields.folds_file).expanduser() if fields.folds_file else file,
    )


def fingerprint(dataset: Dataset, config: ConfigDict) -> dict[str, str]:
    """Those of a user's own data set; a published one is known by its name.

    Returns:
      data: of all samples together, the same for each fold; splits: of who is where.
    """
    if not config.data.source:
        return {}
    samples, places = [], []
    for name, split in sorted(dataset.splits.items()):
        groups = split.names if split.groups is None else split.groups
        for file, group, labels, image in zip(split.names, groups, split.labels, split.images, strict=True):
            pixels = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
            samples.append(f"{file}\t{group}\t{labels.tolist()}\t{image.shape}\t{pixels}\n")
            places.append(f"{file}\t{name}\n")
    digests = {"data": samples, "splits": places}
    return {name: hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() for name, lines in digests.items()}


def check_same_data(
    config: ConfigDict, finished: Mapping[str, Any], folder: pathlib.Path, splits: Splits | None
) -> None:
    """Raises UserError where a finished run in `folder` has other data than the config now names.

    They are read again only where the config names another place: what lies there decides. A published data set is
    known by its name.

    Args:
      finished: the run's result.json.
      splits: None for those of `own_splits`.
    """
    before = finished["config"].get("data", {})
    if not config.data.source or all(before.get(name) == config.data[name] for name in _PLACES):
        return
    logger.info("data.root or another place of the data has changed: comparing the data with those of %s", folder)
    found = fingerprint((splits or own_splits(config, folder)).load(), config)
    differing = [name for name, digest in found.items() if finished.get(f"{name}_sha256") not in (None, digest)]
    if differing:
        raise UserError(
            f"{folder} is a finished run with other {' and '.join(differing)} than there are at {config.data.root}:"
            " give the data that it had, or another --workdir"
        )


def _without_val(config: ConfigDict) -> bool:
    """Whether the epoch is picked on the test split."""
    return config.eval.protocol == "reference"


def _ndim(config: ConfigDict) -> int:
    """Spatial dimensions that the model takes; only a user's folder has no own ones."""
    if config.data.source != SOURCE or "pneumollm" in config:
        return 2
    return BACKBONES[check_choice(config.model.backbone, BACKBONES, "config field model.backbone")].ndim
