"""A frozen LLM layer as a booster for biomedical image classifiers, in JAX and Flax."""

from importlib import metadata

try:
    __version__ = metadata.version("jaxboost")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
