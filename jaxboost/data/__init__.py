"""Data sources and the input pipeline: no jax."""

from jaxboost.data.folds import fold_of
from jaxboost.data.registry import dataset_names, describe_dataset, load
from jaxboost.data.shares import divide
from jaxboost.data.source import Dataset, DatasetInfo, Split, data_root, join_splits

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
