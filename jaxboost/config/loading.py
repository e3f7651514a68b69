"""Config files: found by name or path, and executed once."""

import importlib.util
import itertools
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from jaxboost.errors import UserError, nearest

_numbers = itertools.count()


def load_config(name_or_path: str, **overrides: Any) -> ConfigDict:
    """Loads a config, locked: a field that does not exist cannot be set.

    Example::

      config = jaxboost.load_config("quickstart", **{"train.epochs": 2})
      config = jaxboost.load_config("breastmnist_vits:reference")
      config = jaxboost.load_config("my/config.py")

    Args:
      name_or_path: the name of a config that comes with the package, such as "quickstart", or the path of a Python file
        with a function `get_config`; behind a colon its argument.
      **overrides: values of fields by their dotted names.

    Raises:
      UserError: there is no such config, it cannot be executed, or an override names no field or has another type.
    """
    return with_overrides(_execute(name_or_path), overrides)


def with_overrides(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """The same config with other values, by the dotted names of their fields.

    Raises:
      UserError: there is no such field, or the value is of another type.
    """
    for name, value in overrides.items():
        check_field(config, name)
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"config field {name}: {value!r} cannot be set: {error}") from None
    return config


def check_field(config: ConfigDict, path: str, flag: str = "") -> None:
    """Raises UserError if a config has no field of a dotted name.

    Args:
      config: to look in.
      path: the dotted name.
      flag: how messages begin the field's name, such as "--config."
    """
    section, names = config, path.split(".")
    for depth, name in enumerate(names):
        where = ".".join(["config", *names[:depth]])
        if not isinstance(section, ConfigDict):
            raise UserError(f"unknown config field {flag}{path}: {where} is a value, it has no fields")
        if name not in section:
            fields = ", ".join(section)
            raise UserError(
                f"unknown config field {flag}{path}: {nearest(name, section)} the fields of {where} are {fields}"
            )
        section = section[name]


def split_argument(name_or_path: str) -> tuple[str, str | None]:
    """Name or path, and the argument behind the colon; None if there is no colon."""
    name, colon, argument = name_or_path.partition(".py:")
    if colon:
        return f"{name}.py", argument
    if name_or_path.endswith(".py"):
        return name_or_path, None
    name, colon, argument = name_or_path.partition(":")
    return name, argument if colon else None


def packaged_folder() -> pathlib.Path:
    """The folder of the configs that come with the package."""
    package = pathlib.Path(__file__).parents[1]
    inside = package / "configs"
    # In a checkout they are beside the package, where users edit them.
    return inside if inside.is_dir() else package.parent / "configs"


def packaged_names() -> list[str]:
    """The names of the configs that come with the package."""
    return sorted(path.stem for path in packaged_folder().glob("[!_]*.py"))


def find(name_or_path: str) -> tuple[pathlib.Path, str | None]:
    """The file of a config and its argument.

    Raises:
      UserError: there is no such file, or no packaged config of that name.
    """
    name, argument = split_argument(name_or_path)
    if not name.endswith(".py") and not {"/", "\\"} & set(name):
        names = packaged_names()
        if name not in names:
            near = f"{nearest(name, names)}; " if names else ""
            raise UserError(
                f"config {name_or_path}: there is no packaged config {name!r}, {near}packaged are {', '.join(names)};"
                " your own file is given by its path, such as ./mine.py"
            )
        return packaged_folder() / f"{name}.py", argument
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"config {name_or_path}: no such file; packaged configs are given by name, such as quickstart")
    return path, argument


def _execute(name_or_path: str) -> ConfigDict:
    path, argument = find(name_or_path)
    # A module name of its own: two files of one name may be loaded, and a changed file again.
    spec = importlib.util.spec_from_file_location(f"jaxboost_config_{next(_numbers)}", path.absolute())
    if spec is None or spec.loader is None:
        raise UserError(f"config {name_or_path}: it is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Config files may import others from the current folder, whatever started the process.
    here = str(pathlib.Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if argument is None else module.get_config(argument)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        NameError,
        SyntaxError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        raise UserError(f"config {name_or_path}: {type(error).__name__}: {error}{_hint(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {name_or_path}: get_config returns {type(config).__name__}, not a ConfigDict")
    return config.lock()


def _hint(error: Exception) -> str:
    """How a file that was written for an earlier version imports the defaults now."""
    if isinstance(error, ImportError) and error.name and error.name.partition(".")[0] == "configs":
        return ": the defaults are now in the package: from jaxboost.config import get_config, get_pneumollm_config"
    return ""
