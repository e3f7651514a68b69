"""Data sources and the input pipeline: numpy and grain only, no jax."""

from jaxboost.data.registry import dataset_names, describe_dataset, load
from jaxboost.data.source import Dataset, DatasetInfo, Split, data_root

__all__ = ["Dataset", "DatasetInfo", "Split", "data_root", "dataset_names", "describe_dataset", "load"]
