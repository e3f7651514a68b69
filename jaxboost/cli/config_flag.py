"""The flag --config: name or path of a config, which is loaded once, and overrides of its fields."""

import ast
import itertools
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxboost.config import load_config
from jaxboost.config.continuing import flat
from jaxboost.config.overrides import check_field
from jaxboost.config.validation import type_in_words
from jaxboost.errors import UserError

NAME = "config"


class _Parser(flags.ArgumentParser):
    """Executes each config file once: overrides are checked against the same config that absl parses.

    Args:
      loaded: what it has executed, name -> config. absl would share one parser without arguments among all commands of
        a process, and with it their overrides.
    """

    def __init__(self, loaded: dict[str, ConfigDict]):
        self._loaded = loaded

    def parse(self, argument: str) -> ConfigDict:
        if argument not in self._loaded:
            self._loaded[argument] = load_config(argument)
        return self._loaded[argument]

    def flag_type(self) -> str:
        return "config"


def define() -> flags.FlagHolder:
    """Declares --config NAME|FILE[:ARGUMENT] and its overrides --config.section.field=value; see `read`."""
    holder = config_flags.DEFINE_config_file(
        NAME,
        help_string="name of a packaged config or path of a config file; override fields like --config.optim.lr=1e-4",
    )
    flags.FLAGS[NAME].parser = _Parser({})
    return holder


def read(flag: flags.FlagHolder) -> ConfigDict:
    """Returns the parsed config; raises UserError if --config is missing."""
    if flag.value is None:
        raise UserError("--config is missing: give a name or a file, such as --config quickstart")
    return flag.value


def named(flag: flags.FlagHolder) -> str:
    """Returns the value of --config as the user wrote it, for example `configs/quickstart.py`."""
    holder: Any = flags.FLAGS[flag.name]
    return holder.config_filename


def check_overrides(argv: Sequence[str]) -> None:
    """Raises UserError if the config cannot be loaded, or if an override names an unknown field."""
    name = _named_in(argv)
    if NAME not in flags.FLAGS or name is None:
        return
    config: Any = flags.FLAGS[NAME].parser.parse(name)
    for argument in argv[1:]:
        if match := re.match(r"^--?(?:no)?config\.([^=]+)", argument):
            check_field(config, match[1], flag="--config.")


def with_tuples(argv: Sequence[str]) -> list[str]:
    """Writes plain words for a tuple of texts, as in --config.data.classes=normal,sick, as Python writes it.

    ml_collections would take them as one text with a comma in it.
    """
    name = _named_in(argv)
    if NAME not in flags.FLAGS or name is None:
        return [*argv]
    fields = flat(flags.FLAGS[NAME].parser.parse(name))

    def quoted(field: str, value: str) -> str:
        now = fields.get(field)
        if not isinstance(now, tuple) or not all(isinstance(entry, str) for entry in now) or "," not in value:
            return value
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            words = [word.strip() for word in value.strip("() ").split(",")]
            return repr(tuple(word for word in words if word))
        return value

    found, field = [], ""
    for argument in argv:
        match = re.match(r"^--?config\.([^=]+)(?:=(.*))?$", argument, re.DOTALL)
        if field:
            found.append(quoted(field, argument))
        elif match and match[2] is not None:
            found.append(f"--config.{match[1]}={quoted(match[1], match[2])}")
        else:
            found.append(argument)
        field = match[1] if match and match[2] is None else ""
    return found


def in_words(error: Exception, argv: Sequence[str]) -> str:
    """The message about an override whose value has a wrong type: field, value and type; "" for other errors."""
    match = re.match(r"flag --config\.([\w.]+)=", str(error))
    name = _named_in(argv)
    if match is None or name is None:
        return ""
    value = flat(flags.FLAGS[NAME].parser.parse(name))[match[1]]
    given = [
        argument.partition("=")[2] for argument in argv if re.match(rf"^--?config\.{re.escape(match[1])}=", argument)
    ]
    shown = f"{given[-1]!r} " if given else ""
    return f"config field {match[1]}: {shown}should be {type_in_words(value)}"


def _named_in(argv: Sequence[str]) -> str | None:
    for argument, following in itertools.pairwise([*argv, None]):
        if argument and (match := re.match(r"^--?config(?:=(.*))?$", argument)):
            return following if match[1] is None else match[1]
    return None
