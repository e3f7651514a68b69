"""Finds config files and study files by name or path, and executes each once."""

import dataclasses
import importlib.util
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxboost import io
from jaxboost.config.overrides import with_overrides
from jaxboost.errors import UserError, nearest

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file that is found by name or path.

    Attributes:
      what: its name in messages.
      folder: below the folder of the packaged configs.
      function: what the file has to define.
      example: a packaged name, for messages.
    """

    what: str
    folder: str
    function: str
    example: str


CONFIG = Kind("config", "", "get_config", "quickstart")
STUDY = Kind("study", "studies", "get_study", "ladder")


def load_config(name_or_path: str, **overrides: Any) -> ConfigDict:
    """Loads a config. It is locked: setting an unknown field raises an error.

    Example::

      config = jaxboost.load_config("quickstart", **{"train.epochs": 2})
      config = jaxboost.load_config("breastmnist_vits:reference")
      config = jaxboost.load_config("my/config.py")

    Args:
      name_or_path: the name of a packaged config, such as "quickstart", or the path of a Python file with a function
        `get_config`. An argument for that function may follow after a colon.
      **overrides: dotted names of fields and their new values.

    Raises:
      UserError: there is no such config, it cannot be executed, or an override has an unknown name or a wrong type.
    """
    config = execute(name_or_path)
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {name_or_path}: get_config returns {type(config).__name__}, not a ConfigDict")
    return with_overrides(config.lock(), overrides)


def split_argument(name_or_path: str) -> tuple[str, str | None]:
    """Splits off the argument after the colon; None if there is no colon."""
    name, colon, argument = name_or_path.partition(".py:")
    if colon:
        return f"{name}.py", argument
    if name_or_path.endswith(".py"):
        return name_or_path, None
    name, colon, argument = name_or_path.partition(":")
    return name, argument if colon else None


def packaged_folder(kind: Kind = CONFIG) -> pathlib.Path:
    """Returns the folder of the packaged files of a kind."""
    package = pathlib.Path(__file__).parents[1]
    inside = package / "configs"
    # In a checkout, configs/ is next to the package, so that users can edit it.
    return (inside if inside.is_dir() else package.parent / "configs") / kind.folder


def packaged_names(kind: Kind = CONFIG) -> list[str]:
    """Returns the names of the packaged files of a kind."""
    return sorted(path.stem for path in packaged_folder(kind).glob("[!_]*.py"))


def find(name_or_path: str, kind: Kind = CONFIG) -> tuple[pathlib.Path, str | None]:
    """Finds the file of a config or of a study. Returns its path and the argument.

    Raises:
      UserError: there is no such file, or no packaged one of that name.
    """
    name, argument = split_argument(name_or_path)
    what = kind.what
    if not name.endswith(".py") and not {"/", "\\"} & set(name):
        names = packaged_names(kind)
        if name not in names:
            near = f"{nearest(name, names)}; " if names else ""
            plural = "studies" if what == "study" else f"{what}s"
            raise UserError(
                f"{what} {name_or_path}: there is no packaged {what} {name!r}, {near}packaged {plural} are"
                f" {', '.join(names)}; for your own file give its path, such as ./mine.py"
            )
        return packaged_folder(kind) / f"{name}.py", argument
    path = io.user_path(name)
    if not os.path.isfile(path):
        raise UserError(
            f"{what} {name_or_path}: no such file; for a packaged {what} give its name, such as {kind.example}"
        )
    return path, argument


def execute(name_or_path: str, kind: Kind = CONFIG) -> Any:
    """Executes the file of a config or of a study, and returns what its function returns.

    Raises:
      UserError: there is no such file, or it cannot be executed.
    """
    _, argument = find(name_or_path, kind)

    def call(module: ModuleType) -> Any:
        function = getattr(module, kind.function)
        return function() if argument is None else function(argument)

    return _with_module(name_or_path, kind, call)


def with_default_argument(name_or_path: str, overrides: Mapping[str, str], kind: Kind = CONFIG) -> str:
    """Adds the argument that a file chooses itself by its function `default_argument`, if none is given.

    Args:
      name_or_path: of a config or of a study.
      overrides: dotted field -> text, as on the command line.
      kind: of the file.

    Returns:
      `name_or_path` with an argument, or as it is.

    Raises:
      UserError: see `execute`; or what the overrides name cannot be read.
    """
    if find(name_or_path, kind)[1] is not None:
        return name_or_path

    def call(module: ModuleType) -> str:
        function = getattr(module, "default_argument", None)
        return function(overrides) if function else ""

    chosen = _with_module(name_or_path, kind, call)
    return f"{name_or_path}:{chosen}" if chosen else name_or_path


def _with_module(name_or_path: str, kind: Kind, call: Callable[[ModuleType], Any]) -> Any:
    """Executes a file, and returns what `call` returns for its module."""
    path, _ = find(name_or_path, kind)
    # A unique module name: files of the same name do not clash, and a changed file can be loaded again.
    spec = importlib.util.spec_from_file_location(f"jaxboost_config_{next(_numbers)}", path.absolute())
    if spec is None or spec.loader is None:
        raise UserError(f"{kind.what} {name_or_path}: it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Config files may import other files from the current folder, however the process was started.
    here = str(pathlib.Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        spec.loader.exec_module(module)
        return call(module)
    except UserError:
        raise
    # The file is the user's own code: it may raise anything, with or without a text.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise UserError(f"{kind.what} {name_or_path}: {reason}{_hint(error)}") from error
    finally:
        if added:
            sys.path.remove(here)


def _hint(error: Exception) -> str:
    """Tells how a config file for an earlier version has to import the defaults now."""
    if isinstance(error, ImportError) and error.name and error.name.partition(".")[0] == "configs":
        return ": the defaults are now in the package: from jaxboost.config import get_config, get_pneumollm_config"
    return ""
