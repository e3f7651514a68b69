"""The data set that a config names."""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from jaxboost import data
from jaxboost.data.source import Dataset, DatasetInfo

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


def fold_of(dataset: Dataset, config: ConfigDict, file: pathlib.Path) -> Dataset:
    """The splits of fold `data.fold`.

    Args:
      file: of the folds, written where it is missing, unless the config names another.
    """
    fields = config.data
    fold = data.fold_of(
        dataset,
        count=fields.folds,
        fold=fields.fold,
        seed=fields.fold_seed,
        val_share=fields.val_share,
        file=pathlib.Path(fields.folds_file).expanduser() if fields.folds_file else file,
    )
    if config.eval.protocol == "reference":
        # The reference has no validation part: it trains on all other folds and picks the epoch on the test fold.
        splits = {"train": data.join_splits([fold.splits["train"], fold.splits["val"]]), "test": fold.splits["test"]}
        fold = dataclasses.replace(fold, splits=splits)
    return fold


def _present(config: ConfigDict, names: tuple[str, ...]) -> dict[str, object]:
    return {name: config.data[name] for name in names if name in config.data}
