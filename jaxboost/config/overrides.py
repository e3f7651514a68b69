"""Other values for fields of a config, by their dotted names."""

import copy
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.table import fields_of
from jaxboost.errors import UserError, nearest


def with_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with other values. Fields that refer to a changed field have its new value.

    Args:
      config: a locked config.
      overrides: dotted name -> value.

    Raises:
      UserError: there is no such field, or the value has the wrong type.
    """
    changed = copy.deepcopy(config)
    for name, value in overrides.items():
        before = check_field(changed, name)
        try:
            changed.update_from_flattened_dict({name: value})
        except (TypeError, ValueError):
            raise UserError(
                f"config field {name}: {value!r} has the type {type(value).__name__}, the field needs"
                f" {type(before).__name__}"
            ) from None
    return changed


def check_field(config: ConfigDict, path: str, flag: str = "") -> Any:
    """Returns the value of a field that has to exist.

    Args:
      config: the config.
      path: the dotted name.
      flag: prefix of the name in messages, such as "--config."

    Raises:
      UserError: the config has no field of that name; a section is no field.
    """
    value: Any = config
    names = path.split(".")
    for depth, name in enumerate(names):
        where = ".".join(["config", *names[:depth]])
        if not isinstance(value, ConfigDict):
            raise UserError(f"unknown config field {flag}{path}: {where} is a value and has no fields")
        if name not in value:
            fields = ", ".join(value)
            raise UserError(
                f"unknown config field {flag}{path}: {nearest(name, value)} the fields of {where} are {fields}"
            )
        value = value[name]
    if isinstance(value, ConfigDict):
        inside = (name for name in fields_of(config) if name.startswith(f"{path}."))
        example = next(inside, f"{path}.{next(iter(value))}")
        raise UserError(f"config field {flag}{path} is a section: give its fields, such as {flag}{example}")
    return value
