"""The fields of a run: every one declared once, all checked in one pass, and the files that set them."""

from jaxboost.config.loading import load_config
from jaxboost.config.table import get_config, get_pneumollm_config
from jaxboost.config.validation import validate

__all__ = ["get_config", "get_pneumollm_config", "load_config", "validate"]
