"""The systems that a config can name: R-LLM, and PneumoLLM where it has a section of that name."""

import pathlib
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.data.dataset import DatasetInfo
from jaxboost.systems import pneumo, rllm
from jaxboost.systems.experiment import Experiment


def prepare(
    config: ConfigDict,
    info: DatasetInfo,
    *,
    with_weights: bool = True,
    trained: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
) -> Experiment:
    """Checks what a config says of its model and traces it; nothing large is read or computed.

    Args:
      with_weights: find the pretrained weights (converting them where the config says so). Without, shapes come from
        the families that the config names.
      trained: what result.json says of pretrained parts, by their role, where a checkpoint has those that were trained
        on: their first weights are not wanted.

    Raises:
      UserError: an unknown choice, weights that are missing or do not fit, a backbone that does not fit the data.
    """
    return _system(config).prepare(config, info, with_weights=with_weights, trained=trained)


def check_same_weights(config: ConfigDict, finished: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises UserError where a finished run in `folder` used other pretrained weights than the config now names.

    Args:
      finished: role -> what its result.json says of the pretrained part, see `RunResult.parts`.
    """
    _system(config).check_same_weights(config, finished, folder)


def _system(config: ConfigDict) -> types.ModuleType:
    return pneumo if "pneumollm" in config else rllm
