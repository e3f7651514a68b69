"""Data sets, splits and the input pipeline, without jax."""

from jaxboost.data.dataset import Dataset, DatasetInfo, Split, data_root, join_splits
from jaxboost.data.registry import dataset_names, describe_dataset, load
from jaxboost.data.splits.folds import fold_of
from jaxboost.data.splits.ratios import divide

__all__ = [
    "Dataset",
    "DatasetInfo",
    "Split",
    "data_root",
    "dataset_names",
    "describe_dataset",
    "divide",
    "fold_of",
    "join_splits",
    "load",
]
