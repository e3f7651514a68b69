"""The config and the result of a finished run, read from its folder and checked against each other."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from jaxboost import schema
from jaxboost.config import continuing, validation
from jaxboost.config.table import fields_of
from jaxboost.errors import UserError
from jaxboost.runs import datasets, workdir
from jaxboost.runs.result import FoldsResult, RunResult
from jaxboost.runs.saved_config import SavedConfig

# A section that tells the system -> the sections and the fields of `model` that configs of this system have, and
# configs of another may lack.
_WEIGHTS = ("weights", "weights_source", "weights_convert")
_TRAINED = ("augment", "train")
_SYSTEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "boost": (_TRAINED, ("remat", *_WEIGHTS, "frozen", "drop_path")),
    "pneumollm": (("llama", *_TRAINED), ("remat",)),
    "clip": (_TRAINED, ("remat", *_WEIGHTS)),
    "blip2": (("llama", *_TRAINED), ("remat", *_WEIGHTS)),
    "baseline": ((), _WEIGHTS),
}
T = TypeVar("T")


def read(folder: pathlib.Path) -> tuple[ConfigDict, RunResult]:
    """Reads the config of the finished run in `folder`, limited to the fields that a prediction needs, and its result.

    Raises:
      UserError: the folder is not a run, the run is not finished or is a whole cross-validation, or a file is damaged
        or altered.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: there is no such folder: give the folder of a finished run, or of an export")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder} cannot be read, permission denied: allow reading it, then try again")
    content, result = (
        _read(folder, workdir.CONFIG, workdir.read_config),
        _read(folder, workdir.RESULT, workdir.result_in),
    )
    path = folder / workdir.CONFIG
    if content is None and result is None:
        raise UserError(f"{folder} is neither a run nor an export: it has no config.json and no export.json")
    if content is None:
        raise UserError(f"{path} is missing: run its training command again, which writes the file again")
    config = _parsed(content, path)
    if config.data.folds and config.data.fold == datasets.ALL_FOLDS:
        raise UserError(f"{folder} is a whole cross-validation: give one of its folds, such as {folder}/fold0")
    if result is None:
        raise UserError(f"{folder} is not finished, it has no result.json: run its training command again")
    differing = continuing.differing(continuing.fixed_fields(content), continuing.fixed_fields(result.config))
    if isinstance(result, FoldsResult) or differing:
        is_folds = isinstance(result, FoldsResult)
        what = "is of a cross-validation" if is_folds else f"differs in {', '.join(differing)}"
        raise UserError(
            f"{path} was altered, the config in {workdir.RESULT} {what}: bring it back from a backup, or train again"
        )
    return config, result


def _read(folder: pathlib.Path, name: str, reader: Callable[[pathlib.Path], T]) -> T | None:
    if not os.path.exists(folder / name):
        return None
    try:
        return reader(folder)
    except ValueError as error:
        raise UserError(
            f"{folder / name} is damaged ({error}): run its training command again, which writes the file"
            " again from the checkpoints"
        ) from error


def _parsed(content: dict[str, Any], path: pathlib.Path) -> ConfigDict:
    parsed = schema.parse(SavedConfig, _filled(content), where=str(path), fix="bring it back from a backup")
    config = ConfigDict(_without_none(dataclasses.asdict(parsed)))
    named = [name for name in _SYSTEMS if name in config]
    if len(named) != 1:
        raise UserError(
            f"{path} is not the config of a run: it needs either the section boost, or pneumollm and llama, or clip, or"
            " blip2 and llama, or baseline"
        )
    sections, fields = _SYSTEMS[named[0]]
    if lacking := [name for name in sections if name not in config]:
        raise UserError(f"{path} is not the config of a run: it lacks the section {', '.join(lacking)}")
    if lacking := [name for name in fields if name not in config.model]:
        raise UserError(f"{path} is not the config of a run: the section model lacks {', '.join(lacking)}")
    if "pneumollm" in config and (lacking := [name for name in ("used", "causal") if name not in config.llama]):
        raise UserError(f"{path} is not the config of a run: the section llama lacks {', '.join(lacking)}")
    validation.validate_present(config)
    if config.model.attention == "fused":
        # A prediction may run on another device.
        config.model.attention = "auto"
    return config


def _filled(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json with the fields of its system that its version lacked."""
    filled = {name: {**value} if isinstance(value, dict) else value for name, value in content.items()}
    for name in continuing.ADDED.keys() & fields_of(content).keys():
        section, _, field = name.partition(".")
        if isinstance(fields := filled.get(section), dict):
            fields.setdefault(field, continuing.ADDED[name])
    return filled


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    """Removes the sections and fields that the run's system does not have."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if value is not None
    }
