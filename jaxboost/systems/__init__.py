"""A config becomes a model and a plan for its weights.

`prepare` traces the model of a config that `config.validate` has accepted: `rllm`, or `pneumollm`, `clip`, `blip2`
or `baseline` if the config has a section of that name. `blocks`, `encoders`, `questions` and `text_encoders` find the
converted weights that the model starts from; each is a `weights.Pretrained`.
`start.initialise` then makes the weights of the first step.
"""

import contextlib
import dataclasses
import functools
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from jaxboost import device
from jaxboost.config import continuing
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.systems import baseline, blip2, clip, pneumollm, rllm
from jaxboost.systems.system import FixedTokens, Recorded, System, attention_mode, check_attention

__all__ = [
    "Recorded",
    "System",
    "check_same_weights",
    "fixed_tokens",
    "prepare",
    "resolved",
    "with_dtype",
    "with_layers",
]

# Sections that the model is not built from.
_NOT_OF_A_MODEL = ("seed", "augment", "mix", "optim", "train", "eval")
# Returns the config that the folder of a run has, flat as `continuing.fixed_fields` gives it; None: it has none.
Before = Callable[[], Mapping[str, Any] | None]


def prepare(
    config: Config,
    info: DatasetInfo,
    *,
    with_weights: bool = True,
    recorded: Recorded | None = None,
) -> System:
    """Traces the model of a config, and finds its weights; nothing large is read or computed.

    Args:
      config: of a run; `config.validate` and `check_data` have accepted it.
      info: the data set of the run.
      with_weights: find the pretrained weights, and convert them if the config asks for that. If False, a block that is
        missing has the shapes of the family that the config names.
      recorded: of a finished run, what its result says; None: the run is new or unfinished.

    Raises:
      UserError: weights are missing, or do not fit the model.
    """
    # A copy: the system is kept, and its `build` reads the config each time.
    config = with_overrides(with_dtype(config), {})
    system = _system(config).prepare(config, info, with_weights=with_weights, recorded=recorded)
    check_attention(config, system, info)
    return dataclasses.replace(system, origin=_origin(config, info))


def _origin(config: Config, info: DatasetInfo) -> str:
    """The fields that a model can depend on, and what it is told about the data; see `System.origin`."""
    fields = {
        name: value for name, value in continuing.flat(config).items() if name.partition(".")[0] not in _NOT_OF_A_MODEL
    }
    fields["attention"] = attention_mode(config)
    shapes = (info.task, info.classes, info.channels, info.ndim, info.size, info.column_features)
    return repr((sorted(fields.items()), shapes))


def fixed_tokens(config: Config) -> FixedTokens | None:
    """The encoder's tokens of a config that trains; None if something in the encoder is trained or random."""
    return _system(config).fixed_tokens(config)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Raises UserError if a finished run in `folder` used other pretrained weights than the config now names.

    Args:
      config: of the run, as it is given now.
      finished: role -> entry of result.json, `RunResult.parts`.
      folder: of the run.
    """
    _system(config).check_same_weights(config, finished, folder)


def resolved(config: Config, before: Before = lambda: None) -> Config:
    """The config as a run records it: with what its first start chose, and what the device and the weights decide.

    See `continuing.with_choices`, `with_dtype` and `with_layers`.
    """
    before = functools.cache(before)
    return with_layers(with_dtype(continuing.with_choices(config, before), before), before)


def with_dtype(config: Config, before: Before = lambda: None) -> Config:
    """Replaces `model.dtype=auto` in a config by the dtype with which its run started; of a new run by the device's.

    So a run that goes on where the device has another default computes as before.

    Args:
      config: of a run.
      before: see `Before`.
    """
    if config.model.dtype != continuing.AUTO:
        return config
    dtype = (before() or {}).get("model.dtype", continuing.AUTO)
    if dtype == continuing.AUTO:
        dtype = device.default_dtype(device.current())
    return with_overrides(config, {"model.dtype": dtype})


def with_layers(config: Config, before: Before = lambda: None) -> Config:
    """Replaces `layers=()` in a config by the numbers of its LLaMA layers, as a run records them.

    Args:
      config: of a run.
      before: see `Before`. It gives the numbers if the block is missing.
    """
    system = _system(config)
    # A baseline and CLIP have no such layers.
    if not system.SECTION or config[system.SECTION].layers:
        return config
    layers: tuple[int, ...] = ()
    # A block that cannot be read is reported by `prepare`.
    with contextlib.suppress(UserError):
        layers = system.layers(config)
    if not layers and (recorded := before()):
        layers = tuple(recorded.get(f"{system.SECTION}.layers", ()))
    return with_overrides(config, {f"{system.SECTION}.layers": layers})


def _system(config: Config) -> types.ModuleType:
    if "baseline" in config:
        return baseline
    if "clip" in config:
        return clip
    if "blip2" in config:
        return blip2
    return pneumollm if "pneumollm" in config else rllm
