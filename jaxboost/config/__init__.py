"""Configs: the tables of all fields, their validation in one pass, and the loading of config files."""

from jaxboost.config.loading import load_config
from jaxboost.config.table import (
    get_baseline_config,
    get_blip2_config,
    get_clip_config,
    get_config,
    get_pneumollm_config,
)
from jaxboost.config.validation import validate

__all__ = [
    "get_baseline_config",
    "get_blip2_config",
    "get_clip_config",
    "get_config",
    "get_pneumollm_config",
    "load_config",
    "validate",
]
