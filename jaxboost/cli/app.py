"""Common code of all commands: one-line error messages, exit codes, help, and log lines on stdout."""

import contextlib
import logging
import logging.handlers
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

import absl.logging
from absl import app, command_name, flags

from jaxboost import io, processes, stopping
from jaxboost.cli import config_flag
from jaxboost.errors import UserError

USAGE_EXIT_CODE = 2
PIPE_EXIT_CODE = 128 + getattr(signal, "SIGPIPE", 13)


def run(main: Callable[[], None], *, resumable: bool = False, description: str | None = None) -> None:
    """Parses absl flags, calls `main()`, and ends the process; docs/interruptions.md lists the exit codes.

    After a `UserError`, or if the system refuses a file, it prints one line on stderr and the exit code is 2.
    After a signal it prints one line on stdout. If the reader of stdout is gone (`| head`), it prints nothing.

    Args:
      main: the command; it reads its flags when it is called.
      resumable: whether the same command continues after a stop: then SIGTERM and SIGHUP are not failures.
      description: the text of --help above the flags; None: the help of absl.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        if description and {"--help", "-h", "-help", "--helpshort"}.intersection(argv[1:]):
            print(_help(description, main.__module__))
            sys.exit()
        try:
            config_flag.check_overrides(argv)
            return flags.FLAGS(config_flag.with_tuples(argv))
        except (flags.Error, UserError) as error:
            fail(config_flag.in_words(error, argv) or _without_absl_terms(error))

    def checked(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: every option starts with --")
        # absl named the process "jaxboost train". Slurm's proctrack/linuxproc finds no process that has a space in
        # its name, and sends it no signals.
        command_name.set_kernel_process_name(sys.argv[0].rpartition("/")[2].replace(" ", "-"))
        log_to_stdout()
        # Orbax logs every file that it touches.
        if not flags.FLAGS["verbosity"].present:
            absl.logging.set_verbosity(absl.logging.ERROR)
            silence_repeated_errors()
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            _drop(sys.stdout)
            sys.exit(PIPE_EXIT_CODE)
        except (UserError, OSError) as error:
            if (line := in_words(error)) is None:
                raise
            fail(line)

    with _stopped_cleanly(resumable):
        app.run(checked, flags_parser=parse)


def in_words(error: BaseException) -> str | None:
    """The line that reports an error which the user can correct; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return None
    if io.is_of_disk(error):
        return f"{error.filename or 'a file'} cannot be written ({error.strerror}): {io.remedy(error)}"
    # The commands report a user's missing files themselves, so one that is missing here is a bug of ours.
    if error.filename is None or isinstance(error, FileNotFoundError):
        return None
    return f"{error.filename} cannot be used ({error.strerror}): check this path, and the right to use it"


@contextlib.contextmanager
def _stopped_cleanly(resumable: bool) -> Iterator[None]:
    again = ": run the same command again" if resumable else ""
    with stopping.watch(resumable=resumable, kills=True) as stop:
        stop.advice = again
        try:
            yield
        except stopping.Stopped:
            with contextlib.suppress(OSError):
                print(stop.line, flush=True)
            stopping.leave(stop.exit_code)
        except stopping.Ended as error:
            with contextlib.suppress(OSError):
                _print_error(error)
            stopping.leave(stop.ended[1] if stop.ended else 1)
        except SystemExit as end:
            # The command ended by itself after a signal. Threads that still compile would hold the process for minutes.
            if (stop.received or stop.leaves) and (end.code is None or isinstance(end.code, int)):
                stopping.leave(end.code or 0)
            raise
        except Exception:
            if not stop.leaves:
                raise
            traceback.print_exc()
            stopping.leave(1)


class _Lines(logging.StreamHandler):
    """Writes log lines to stdout. If stdout cannot be written any more, the run continues without them.

    That happens if its reader is gone or its disk is full. The figures are in the folder of the run.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger("jaxboost").removeHandler(self)
        _drop(self.stream)
        with contextlib.suppress(OSError):
            print(f"logging stops: stdout cannot be written ({error.strerror})", file=sys.stderr)


def _drop(stream: TextIO) -> None:
    """Discards everything that is still written to a stream, including what Python flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _RepeatedErrors(logging.Filter):
    """Drops logged tracebacks of errors that are also raised, so that a user sees each error once, in one line.

    Orbax logs errors and raises them. asyncio logs the errors of all writes to a full disk after the first one.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        if record.name == "asyncio":
            return not (isinstance(error, Exception) and io.os_error(error))
        return "orbax" not in pathlib.PurePath(record.pathname).parts


def silence_repeated_errors() -> None:
    """Suppresses the output of libraries about errors that the process reports itself."""
    repeated = _RepeatedErrors()
    absl.logging.get_absl_logger().addFilter(repeated)
    logging.getLogger("asyncio").addFilter(repeated)
    # These are writes that were scheduled after the failed one.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    hook = sys.unraisablehook

    def without_late_ones(found: Any) -> None:
        # TensorStore's threads still deliver results after the first failed write has closed their event loop.
        late = isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"
        if not late or threading.current_thread() is threading.main_thread():
            hook(found)

    sys.unraisablehook = without_late_ones


# Launcher -> the environment variables for the number of tasks and for the number of this task.
_LAUNCHERS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
    "torchrun": ("WORLD_SIZE", "RANK"),
}


def check_single_task() -> None:
    """Raises UserError if a launcher has started several tasks of this command: each would train the same run.

    The batch script of a Slurm job is accepted: these variables belong to a step, not to the job.
    """
    for launcher, (size, rank) in _LAUNCHERS.items():
        count, number = os.environ.get(size, ""), os.environ.get(rank, "")
        if count.isdecimal() and int(count) > 1 and number.isdecimal():
            one = {"srun": "start it with `srun -n 1`", "torchrun": "start it with `python`"}
            raise UserError(
                f"this is task {number} of {count} that {launcher} started, and each would train the same run:"
                f" give --distributed to train it together, or {one.get(launcher, f'start it with `{launcher} -n 1`')};"
                " for several separate runs use an array of jobs (`sbatch --array`), or give --independent_tasks and a"
                " different --workdir to each task"
            )


def log_only_warnings(prefix: str) -> None:
    """Prints of this package's log only warnings from here on, after `prefix`, and the lines of every process."""
    logger = logging.getLogger("jaxboost")

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name == processes.ANNOUNCEMENTS

    for handler in logger.handlers:
        handler.addFilter(is_wanted)
        handler.setFormatter(_Prefixed(prefix))


class _Prefixed(logging.Formatter):
    """Puts a prefix before warnings; the lines of every process name it themselves."""

    def __init__(self, prefix: str):
        super().__init__("%(message)s")
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.name == processes.ANNOUNCEMENTS else f"{self._prefix}{text}"


def log_to_stdout() -> None:
    """Prints the log of this package as plain lines. Other libraries keep their handlers."""
    logger = logging.getLogger("jaxboost")
    # The terminal's encoding may lack characters of file names. Python's stderr already escapes them.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = _Lines(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Delays warnings until the block ends and prints them on stderr, because they concern the result.

    If the block raises, they go to stdout like all other lines: stderr then has only the line of the error.
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


def fail(message: object) -> NoReturn:
    """Prints an error as one line on stderr and ends the process with exit code 2."""
    _print_error(message)
    sys.exit(USAGE_EXIT_CODE)


def _print_error(message: object) -> None:
    print("error: " + " ".join(str(message).split()), file=sys.stderr, flush=True)


def _without_absl_terms(error: Exception) -> str:
    """Rewords absl's message about missing flags; other messages stay as they are."""
    missing = re.findall(r"Flag --(\w+) must have a value other than None", str(error))
    if not missing:
        return str(error)
    names = ", ".join(f"--{name}" for name in missing)
    return f"{names} {'is' if len(missing) == 1 else 'are'} missing: see --help"


def _help(description: str, module: str) -> str:
    """Returns the text of --help: the description of the command, and its flags."""
    modules = (module, config_flag.__name__, "jaxboost.cli.together")
    found = [flag for name in modules for flag in flags.FLAGS.get_flags_for_module(name)]
    lines = [f"  --{flag.name}: {flag.help}" + (f" (default: {flag.value})" if flag.value else "") for flag in found]
    return f"{description.strip()}\n\nflags:\n" + "\n".join(lines)
