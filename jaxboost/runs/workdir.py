"""The folder of a run: which config it belongs to, and its result. What in it is damaged is set aside, not removed."""

import json
import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxboost import io
from jaxboost.config import continuing
from jaxboost.config.continuing import to_dict
from jaxboost.errors import UserError
from jaxboost.io import set_aside, write_text
from jaxboost.runs import result_schema
from jaxboost.training.checkpoints import checkpoint_folder
from jaxboost.training.log import BOARD

CONFIG, RESULT = "config.json", "result.json"
PREDICTIONS = "predictions"

logger = logging.getLogger(__name__)

__all__ = [
    "CONFIG",
    "RESULT",
    "check",
    "create",
    "has_config",
    "named_before",
    "read",
    "read_result",
    "set_aside",
    "to_dict",
    "write_result",
]


def check(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the result of a finished run in `workdir`; None where the run is new or unfinished. Writes nothing.

    A config.json that is missing or damaged is replaced by what the result or a checkpoint say of the config, and a
    damaged result counts as none.

    Raises:
      UserError: the folder belongs to a run of another config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give another --workdir")
    result = read_result(workdir)
    before = _saved_config(workdir, result)
    if before is not None and (differing := continuing.differing(before, continuing.held(to_dict(config)))):
        raise UserError(
            f"{workdir} holds a run of another config, which differs in {', '.join(differing)}:"
            " give another --workdir, or remove it"
        )
    return result


def named_before(workdir: pathlib.Path, section: str, field: str) -> Any:
    """A field of the config.json in `workdir`; None where it cannot be read."""
    try:
        return read(workdir / CONFIG)[section].get(field)
    except (ValueError, UserError):
        return None


def has_config(workdir: pathlib.Path) -> bool:
    """Whether the config.json in `workdir` is there and can be read."""
    return (workdir / CONFIG).exists() and _is_sound(workdir / CONFIG)


def create(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes the folder and notes its config. What is damaged, or a file in the place of a folder, is set aside."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (BOARD, PREDICTIONS):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            set_aside(workdir / name)
    for name in (CONFIG, RESULT):
        if (workdir / name).exists() and not _is_sound(workdir / name):
            set_aside(workdir / name)
    write_text(workdir / CONFIG, json.dumps(to_dict(config), indent=2) + "\n")


def write_result(workdir: pathlib.Path, result: dict[str, Any]) -> dict[str, Any]:
    """Writes result.json, which marks the run as finished; returns what a reader of the file gets.

    Its entry `sha256` is a checksum of the others, see `result_schema.checksum`.
    """
    content = json.loads(io.to_json(result))
    content["sha256"] = result_schema.checksum(content)
    write_text(workdir / RESULT, json.dumps(content, indent=2) + "\n")
    return content


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of a finished run, None where there is none, or a damaged one."""
    path = workdir / RESULT
    if not path.exists():
        return None
    try:
        return read(path)
    except ValueError as error:
        logger.warning("%s is damaged (%s): the run counts as unfinished", path, error)
        return None


def _is_sound(path: pathlib.Path) -> bool:
    try:
        read(path)
    except ValueError:
        return False
    return True


def _saved_config(workdir: pathlib.Path, result: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the folder's run was made with, as `continuing.held` gives it; None where nothing says it."""
    path = workdir / CONFIG
    if path.exists():
        try:
            return continuing.held(read(path))
        except ValueError as error:
            logger.warning(
                "%s is damaged (%s): the config is taken from the run's result or checkpoint instead", path, error
            )
    if result is not None and isinstance(result.get("config"), dict):
        return continuing.held(result["config"])
    return checkpoint_folder.saved_config(workdir / checkpoint_folder.FOLDER)


def read(path: pathlib.Path) -> dict[str, Any]:
    """The content of config.json or result.json.

    Raises:
      ValueError: it is not what was written there; the message is for people.
    """
    try:
        content = io.read_json(path)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{path} may not be read: give yourself the permission, then try again") from error
        raise ValueError(error.strerror or str(error)) from error
    return result_schema.check_result(content) if path.name == RESULT else result_schema.check_config(content)
