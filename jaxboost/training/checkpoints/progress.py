"""The progress of a run, which a checkpoint holds as JSON next to the state."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jaxboost import schema
from jaxboost.errors import UserError
from jaxboost.training.checkpoints.stored import DamagedError

_Count = Annotated[int, Field(ge=1, lt=2**31)]
# In JSON, null stands for NaN.
_Figure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch so far.

    Attributes:
      epoch: its number, from 1.
      step: its last step, after which it was validated.
      value: of the selection metric; NaN if the metric is not defined.
      sha256: fingerprint of its weights, as `Checkpointer.save_best` gives it; empty in runs of earlier versions.
    """

    epoch: _Count
    step: _Count
    value: _Figure
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run, in addition to its state.

    Attributes:
      fingerprints: role of a pretrained part -> SHA-256; of a user's own data also "data" and "splits".
      best: None before the first validation.
      seconds: spent so far, over all starts of the run.
      parts: the same by part, see `clock.Clock`; {} if they are not all known, as in runs of earlier versions.
      config: the fields that may not change, see `continuing.fixed_fields`; empty in runs of earlier versions.
      validated: False if the run was stopped between the last step of an epoch and its validation; a resumed run
        validates first.
    """

    fingerprints: Mapping[str, str]
    best: Best | None
    seconds: Annotated[float, Field(ge=0)]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validated: bool = True
    parts: Mapping[str, Annotated[float, Field(ge=0)]] = dataclasses.field(default_factory=dict)


_NAMES = {field.name for field in dataclasses.fields(Progress)}


def to_json(progress: Progress) -> dict[str, Any]:
    """The JSON item of a checkpoint."""
    note = dataclasses.asdict(progress)
    if progress.best and math.isnan(progress.best.value):
        note["best"]["value"] = None
    return note


def from_json(folder: pathlib.Path, note: Any) -> Progress:
    """The progress in the result of `to_json`, read from the checkpoint at `folder`.

    Raises:
      DamagedError: it is not what `to_json` gives.
    """
    if isinstance(note, dict) and not note.keys() <= _NAMES:
        raise DamagedError(f"its progress has an unknown field {min(note.keys() - _NAMES)!r}")
    best = note.get("best") if isinstance(note, dict) else None
    # As earlier versions wrote it.
    if isinstance(best, dict) and isinstance(best.get("value"), float) and math.isnan(best["value"]):
        note = {**note, "best": {**best, "value": None}}
    try:
        return schema.parse(Progress, note, where=f"{folder}: its progress", fix="")
    except UserError as error:
        raise DamagedError(str(error).removesuffix(": ")) from error
