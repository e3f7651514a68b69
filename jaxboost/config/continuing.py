"""Compares configs of the same run. Fields that may change when a run continues are ignored."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.table import ALL_FIELDS

_NAMED = 10  # most fields that a message names
_SHOWN = 80  # most characters of each name and value
# Fields that configs of earlier versions lack -> the value that matches the behaviour of those versions.
ADDED = {name: field.before for name, field in ALL_FIELDS.items() if field.before is not None}


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Converts a config to JSON types: tuples become lists."""
    return json.loads(config.to_json())


def flat(tree: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns dotted name -> value for all fields of a config, or of the result of `to_dict`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, dict | ConfigDict)
        found.update(flat(value, f"{prefix}{name}.") if is_section else {prefix + name: value})
    return found


def fixed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted name -> value of the fields that must not change when a run continues.

    Args:
      config: a result of `to_dict`.
    """
    found = {}
    for name, value in {**ADDED, **flat(config)}.items():
        if not _is_free(name):
            is_given = name in ALL_FIELDS and ALL_FIELDS[name].resume == "given"
            found[name] = bool(value) if is_given else value
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the differences between two configs, both results of `fixed_fields`, in words."""
    # An earlier version may have recorded a field that may change now.
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name) and not _is_free(name)]
    texts = [
        f"{name[:_SHOWN]} ({_text(before.get(name))} there, {_text(now.get(name))} now)" for name in names[:_NAMED]
    ]
    return [*texts, f"{len(names) - _NAMED} more"] if len(names) > _NAMED else texts


def _is_free(name: str) -> bool:
    return name in ALL_FIELDS and ALL_FIELDS[name].resume == "free"


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
