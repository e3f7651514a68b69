"""The data set that a config names."""

import hashlib
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxboost import data
from jaxboost.data.source import Dataset, DatasetInfo
from jaxboost.errors import UserError

ALL_FOLDS = -1

_DESCRIBED_BY = ("classes", "multi_label")
_LOADED_BY = (*_DESCRIBED_BY, "masks", "allow_mixed_patients")


def describe(config: ConfigDict) -> DatasetInfo:
    """Its description; a folder of radiographs is looked at only where the config does not name the classes."""
    fields = config.data
    return data.describe_dataset(fields.name, fields.size, root=fields.root, **_present(config, _DESCRIBED_BY))


def load(config: ConfigDict) -> Dataset:
    """The whole data set, with its official splits where it has some."""
    fields = config.data
    return data.load(fields.name, size=fields.size, root=fields.root, **_present(config, _LOADED_BY))


def check_folds(config: ConfigDict) -> None:
    """Raises UserError where the fields that say which splits are used contradict each other."""
    fields = config.data
    folds = fields.get("folds", 0)
    if not folds and fields.name == "radiographs":
        raise UserError(
            "data set radiographs has no official splits: take a config with data.folds, such as configs/pneumollm.py,"
            " and set it to 2 or more"
        )
    if not folds and "folds" in fields and (fields.folds_file or fields.fold != ALL_FOLDS):
        raise UserError("config fields data.fold and data.folds_file are of a cross-validation: set data.folds")
    if not folds:
        return
    if folds < 2:
        raise UserError(f"config field data.folds: {folds} should be 2 or more, or 0 for the official splits")
    if not ALL_FOLDS <= fields.fold < folds:
        raise UserError(f"config field data.fold: {fields.fold} should be 0 to {folds - 1}, or {ALL_FOLDS} for all")
    if config.eval.protocol != "reference" and not 0 < fields.val_share <= 0.5:
        raise UserError(
            f"config field data.val_share: {fields.val_share} should be above 0, for validation picks the epoch, and at"
            " most 0.5"
        )
    if fields.folds_file and not pathlib.Path(fields.folds_file).expanduser().is_file():
        raise UserError(f"config field data.folds_file: there is no file {fields.folds_file}: check the path")


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
        val_share=0 if config.eval.protocol == "reference" else fields.val_share,
        file=pathlib.Path(fields.folds_file).expanduser() if fields.folds_file else file,
    )


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """That of a user's own data set as {"data": ...}; a published one is known by its name."""
    if all(split.names is None for split in dataset.splits.values()):
        return {}
    digest = hashlib.sha256()
    for name, split in sorted(dataset.splits.items()):
        digest.update(f"{name} {split.images.shape} {split.labels.tolist()}\n".encode())
        digest.update("\n".join(split.names if split.groups is None else [*split.names, *split.groups]).encode())
        # One after the other: large splits are not in memory.
        for image in split.images:
            digest.update(np.ascontiguousarray(image))
    return {"data": digest.hexdigest()}


def _present(config: ConfigDict, names: tuple[str, ...]) -> dict[str, object]:
    return {name: config.data[name] for name in names if name in config.data}
