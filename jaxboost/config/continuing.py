"""Compares configs of the same run. Fields that may change when a run continues are ignored."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.overrides import with_overrides
from jaxboost.config.table import ALL_FIELDS

AUTO = "auto"  # of fields whose value the first start of a run chooses
_NAMED = 10  # most fields that a message names
_SHOWN = 80  # most characters of each name and value
# Fields that configs of earlier versions lack -> the value that matches those versions' behaviour, as JSON has it.
ADDED = {
    name: [*field.before] if isinstance(field.before, tuple) else field.before
    for name, field in ALL_FIELDS.items()
    if field.before is not None
}


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
            value = list(value) if isinstance(value, tuple) else value
            found[name] = bool(value) if is_given else value
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the differences between two configs, both results of `fixed_fields`, in words."""
    names = [name for name in sorted({*before, *now}) if not _agree(name, before.get(name), now.get(name))]
    texts = [
        f"{name[:_SHOWN]} ({_text(before.get(name))} there, {_text(now.get(name))} now)" for name in names[:_NAMED]
    ]
    return [*texts, f"{len(names) - _NAMED} more"] if len(names) > _NAMED else texts


def with_choices(config: ConfigDict, before: Callable[[], Mapping[str, Any] | None]) -> ConfigDict:
    """Returns a config with the choices that an earlier start of its run recorded in place of "auto".

    Args:
      config: of the run.
      before: returns what the run's folder has, as `fixed_fields` gives it, or None.
    """
    found = flat(config)
    names = [name for name, field in ALL_FIELDS.items() if field.resume == "auto" and found.get(name) == AUTO]
    recorded = (before() or {}) if names else {}
    values = {name: recorded[name] for name in names if name in recorded}
    return with_overrides(config, values) if values else config


def _agree(name: str, before: Any, now: Any) -> bool:
    # An earlier version may have recorded a field that may change now.
    if before == now or _is_free(name):
        return True
    return name in ALL_FIELDS and ALL_FIELDS[name].resume == "auto" and AUTO in (before, now)


def _is_free(name: str) -> bool:
    return name in ALL_FIELDS and ALL_FIELDS[name].resume == "free"


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
