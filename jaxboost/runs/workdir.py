"""The folder of a run: its config and its result. A damaged file is renamed, never removed."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost import io, outputs
from jaxboost.config import continuing
from jaxboost.config.types import Config
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError
from jaxboost.runs import result as results
from jaxboost.runs import saved_config
from jaxboost.runs.result import FoldsResult, RunResult
from jaxboost.training.checkpoints import checkpoint_folder
from jaxboost.training.log import BOARD

CONFIG, RESULT = "config.json", "result.json"
PREDICTIONS = "predictions"
# Config fields that name a folder of frozen weights. It may move after the training; the fingerprint is checked.
WEIGHT_FOLDERS = (
    *("baseline.text", "clip.text", "model.weights", "boost.block", "pneumollm.vision", "llama.block"),
    *("pneumollm.question", "blip2.question"),
)
# Those of every converted folder: a finished run needs the trained Q-Former no more.
CONVERTED_FOLDERS = (*WEIGHT_FOLDERS, "blip2.qformer")

logger = logging.getLogger(__name__)


def finished_result(workdir: pathlib.Path, config: ConfigDict) -> RunResult | FoldsResult | None:
    """Returns the result of a finished run in `workdir`; None if the run is new or unfinished. Writes nothing.

    If config.json is missing or damaged, the config is read from the result or from a checkpoint. A damaged result
    counts as a missing one.

    Raises:
      UserError: the folder belongs to a run of another config.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise UserError(f"{workdir} is a file: give another --workdir")
    result = read_result(workdir)
    before = config_in(workdir, result)
    fixed = continuing.fixed_fields(continuing.to_dict(config))
    if before is not None and (differing := continuing.differing(before, fixed)):
        raise UserError(
            f"{workdir} holds a run of another config, which differs in {', '.join(differing)}:"
            " give another --workdir, or remove it"
        )
    return result


def check_location(workdir: pathlib.Path, config: Config) -> None:
    """Checks that the run does not write into a folder that it reads data or weights from.

    Args:
      workdir: folder of the run; it may be missing.
      config: config of the run.

    Raises:
      UserError: the folder is an input folder of the config, or lies inside one.
    """
    names = (*(("data.root",) if config.data.source == SOURCE else ()), "data.masks", *CONVERTED_FOLDERS)
    for name in names:
        section, field = name.split(".")
        value = config.get(section, {}).get(field, "")
        folder = io.user_path(value) if value else None
        if folder is not None and os.path.isdir(folder) and outputs.is_inside(workdir, folder):
            raise UserError(
                f"--workdir {workdir} lies in {name}={value}, which the run reads: the next run would read the files"
                " of this one as input: give a folder elsewhere"
            )


def named_before(workdir: pathlib.Path, section: str, field: str) -> Any:
    """Returns a field of the config.json in `workdir`; None if the file cannot be read."""
    try:
        return read_config(workdir)[section].get(field)
    except (ValueError, UserError):
        return None


def has_config(workdir: pathlib.Path) -> bool:
    """Whether `workdir` has a config.json that can be read."""
    return os.path.exists(workdir / CONFIG) and _is_whole(workdir / CONFIG)


def create(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Creates the folder and writes config.json. Renames damaged files, and files that have the name of a folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (BOARD, PREDICTIONS):
        if os.path.exists(workdir / name) and not os.path.isdir(workdir / name):
            io.set_aside(workdir / name)
    for name in (CONFIG, RESULT):
        if os.path.exists(workdir / name) and not _is_whole(workdir / name):
            io.set_aside(workdir / name)
    io.write_text(workdir / CONFIG, json.dumps(continuing.to_dict(config), indent=2) + "\n")


def write_result(workdir: pathlib.Path, result: RunResult | Mapping[str, Any]) -> dict[str, Any]:
    """Writes result.json, which marks the run as finished.

    Args:
      workdir: the folder of the run.
      result: result of a run, or content of the result.json of a cross-validation.

    Returns:
      The content of the file.
    """
    content = results.sealed(result.to_json() if isinstance(result, RunResult) else result)
    io.write_text(workdir / RESULT, json.dumps(content, indent=2) + "\n")
    return content


def read_result(workdir: pathlib.Path, *, quiet: bool = False) -> RunResult | FoldsResult | None:
    """Reads the result of a run; None if it is missing or damaged, with a warning unless `quiet`."""
    path = workdir / RESULT
    if not os.path.exists(path):
        return None
    try:
        return result_in(workdir)
    except ValueError as error:
        if not quiet:
            logger.warning("%s is damaged (%s): the run counts as unfinished", path, error)
        return None


def result_in(workdir: pathlib.Path) -> RunResult | FoldsResult:
    """Reads result.json in `workdir`. Raises what `read_config` raises, and UserError if a later version wrote it."""
    return results.from_json(_read(workdir / RESULT))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads config.json in `workdir`.

    Raises:
      ValueError: the file is damaged or altered; the message says how.
      UserError: there is no permission to read it.
    """
    return saved_config.check_config(_read(workdir / CONFIG))


def _is_whole(path: pathlib.Path) -> bool:
    try:
        read_config(path.parent) if path.name == CONFIG else result_in(path.parent)
    except ValueError:
        return False
    return True


def config_in(
    workdir: pathlib.Path, result: RunResult | FoldsResult | None = None, *, quiet: bool = False
) -> dict[str, Any] | None:
    """Returns the config of the run in the folder, as `continuing.fixed_fields` gives it; None if no file has it.

    Args:
      workdir: folder of the run; it may be missing.
      result: the run's result, if it has been read already.
      quiet: without warnings about damaged files, where another call gives them.
    """
    path = workdir / CONFIG
    if os.path.exists(path):
        try:
            return continuing.fixed_fields(read_config(workdir))
        except ValueError as error:
            if not quiet:
                logger.warning(
                    "%s is damaged (%s): the config is taken from the run's result or checkpoint instead", path, error
                )
    if result := result or read_result(workdir, quiet=quiet):
        return continuing.fixed_fields(result.config)
    folder = workdir / checkpoint_folder.FOLDER
    return checkpoint_folder.saved_config(folder) if os.path.isdir(folder) else None


def _read(path: pathlib.Path) -> Any:
    try:
        return io.read_json(path)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{path} cannot be read, permission denied: allow reading it, then try again") from error
        raise ValueError(error.strerror or str(error)) from error
