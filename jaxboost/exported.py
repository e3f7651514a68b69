"""Short name for `jaxboost.inference.exported`: loads an export and predicts with it."""

from jaxboost.inference.exported import ExportedModel, is_export, load

__all__ = ["ExportedModel", "is_export", "load"]
