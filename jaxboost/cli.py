"""What the scripts share: flags and configs that fail in one line, exit codes, and log lines on stdout."""

import contextlib
import io
import itertools
import logging
import logging.handlers
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from jaxboost.errors import UserError, nearest

USAGE_EXIT_CODE = 2


def run(main: Callable[[], None]) -> None:
    """Parses absl flags, calls `main()`, and turns a `UserError` into one line on stderr and exit code 2."""

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            _check_overrides(argv)
            return flags.FLAGS(argv)
        except (flags.Error, UserError) as error:
            fail(error)

    def checked(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: every option starts with --")
        log_to_stdout()
        # Orbax tells of every file it touches.
        if not flags.FLAGS["verbosity"].present:
            absl.logging.set_verbosity(absl.logging.ERROR)
        try:
            main()
        except UserError as error:
            fail(error)

    app.run(checked, flags_parser=parse)


def define_config() -> flags.FlagHolder:
    """Declares --config FILE[:ARGUMENT] with --config.section.field=value overrides; read it with `read_config`."""
    return config_flags.DEFINE_config_file(
        "config", help_string="a file of configs/, with overrides such as --config.optim.lr=1e-4"
    )


def read_config(flag: flags.FlagHolder) -> ConfigDict:
    """The parsed config; raises UserError where --config is missing."""
    if flag.value is None:
        raise UserError("--config is missing: give a file, such as --config configs/quickstart.py")
    return flag.value


def config_file(flag: flags.FlagHolder) -> str:
    """What --config was given, such as `configs/quickstart.py`."""
    return flags.FLAGS[flag.name].config_filename


def log_to_stdout() -> None:
    """Prints the package's log as plain lines; other libraries keep their own handlers."""
    logger = logging.getLogger("jaxboost")
    # A name of a file may hold what the terminal's encoding does not; stderr is so from the start.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Warnings of the block go to stderr once it has ended well, for they concern a result that others may use.

    Where it raises, they go to stdout like all other lines: stderr has the one line of the mistake then.
    """
    logger = logging.getLogger("jaxboost")
    lines = list(logger.handlers)
    held = logging.handlers.MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    held.setLevel(logging.WARNING)

    def is_quiet(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    for handler in lines:
        handler.addFilter(is_quiet)
    logger.addHandler(held)
    targets = lines
    try:
        yield
        targets = [logging.StreamHandler(sys.stderr)]
    finally:
        logger.removeHandler(held)
        for handler in lines:
            handler.removeFilter(is_quiet)
        for record in held.buffer:
            for handler in targets:
                handler.handle(record)


def fail(message: object) -> None:
    """Ends the process as a user's mistake does."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(USAGE_EXIT_CODE)


def _check_overrides(argv: Sequence[str]) -> None:
    """Raises UserError for a config that cannot be loaded and for overrides of fields that it does not have."""
    path = _config_path(argv)
    if path is None:
        return
    try:
        config = ConfigFileFlagParser("config").parse(path)
        config.seed  # noqa: B018  a file that was not found fails only here
    except OSError:
        raise UserError(f"--config {path}: no such file; see configs/") from None
    except (AttributeError, ImportError, LookupError, NameError, SyntaxError, TypeError, ValueError) as error:
        # What a config file raises itself arrives wrapped in its traceback's text.
        reason = error.__context__ or error
        raise UserError(f"--config {path}: {type(reason).__name__}: {reason}".replace("\\n", " ")) from error
    for argument in argv[1:]:
        if match := re.match(r"^--?(?:no)?config\.([^=]+)", argument):
            _check_field(config, match[1])


def _config_path(argv: Sequence[str]) -> str | None:
    for argument, following in itertools.pairwise([*argv, None]):
        if match := re.match(r"^--?config(?:=(.*))?$", argument):
            return following if match[1] is None else match[1]
    return None


def _check_field(config: ConfigDict, path: str) -> None:
    section, names = config, path.split(".")
    for depth, name in enumerate(names):
        where = ".".join(["config", *names[:depth]])
        if not isinstance(section, ConfigDict):
            raise UserError(f"unknown config field --config.{path}: {where} is a value, it has no fields")
        if name not in section:
            fields = ", ".join(section)
            raise UserError(
                f"unknown config field --config.{path}: {nearest(name, section)} the fields of {where} are {fields}"
            )
        section = section[name]
