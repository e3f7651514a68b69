"""Which configs are the same run's: fields that may change when the run continues are not compared."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.table import ALL_FIELDS

# A message names so many fields, with values of so many characters.
_NAMED, _SHOWN = 10, 80
# Fields that a config of an earlier version lacks -> the value for what that version did.
ADDED = {name: field.before for name, field in ALL_FIELDS.items() if field.before is not None}


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples as lists."""
    return json.loads(config.to_json())


def flat(tree: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of each field of a config, or of what `to_dict` made of it."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, dict | ConfigDict)
        found.update(flat(value, f"{prefix}{name}.") if is_section else {prefix + name: value})
    return found


def held(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of what may not change when a run continues.

    Args:
      config: as `to_dict` gives it.
    """
    found = {}
    for name, value in {**ADDED, **flat(config)}.items():
        resume = ALL_FIELDS[name].resume if name in ALL_FIELDS else "same"
        if resume != "free":
            found[name] = bool(value) if resume == "given" else value
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two configs, in words; both as `held` gives them."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    texts = [
        f"{name[:_SHOWN]} ({_text(before.get(name))} there, {_text(now.get(name))} now)" for name in names[:_NAMED]
    ]
    return [*texts, f"{len(names) - _NAMED} more"] if len(names) > _NAMED else texts


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
