"""Data sets, splits and the input pipeline, without jax."""

from jaxboost.data.registry import dataset_names, describe_dataset, load
from jaxboost.data.splits.folds import fold_of
from jaxboost.data.splits.ratios import divide

__all__ = ["dataset_names", "describe_dataset", "divide", "fold_of", "load"]
