"""The fields of a run's config: which may change when the run goes on, and which configs are the same run's."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Where things lie, how often they are reported, and limits that only refuse: these may change when a run goes on.
# Weights and data are compared by their fingerprints instead.
_FREE = {
    "data.root",
    "data.max_pixels",
    "data.max_voxels",
    "model.weights",
    "model.weights_source",
    "model.weights_convert",
    "boost.block",
    "boost.source",
    "boost.convert",
    "llama.block",
    "llama.source",
    "llama.convert",
    "pneumollm.vision",
    "pneumollm.vision_source",
    "pneumollm.vision_convert",
    "train.log_every",
    "train.checkpoint_every",
}
# Places too, but whether one is given decides what is done.
_GIVEN_OR_NOT = ("data.masks", "data.folds_file")
# A message names so many fields, with values of so many characters.
_NAMED, _SHOWN = 10, 80
# Fields that a config of an earlier version lacks -> the value for what was done then.
ADDED = {
    "data.nan": "",
    "data.max_pixels": 2**26,
    "data.max_voxels": 2**29,
    "data.patient": "",
    "data.duplicates": "warn",
    "boost.init": "uniform",
    "augment.rgb": False,
    "optim.by_epoch": False,
    "train.last_batch": "drop",
    "train.epoch_multiple": 0,
    "eval.ties": "earlier",
}


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples as lists."""
    return json.loads(config.to_json())


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of each field of a config that was made a dict."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found


def held(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of what may not change when a run goes on.

    Args:
      config: as `to_dict` gives it.
    """
    found = {**ADDED, **flat(config)}
    return {name: bool(value) if name in _GIVEN_OR_NOT else value for name, value in found.items() if name not in _FREE}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two configs, in words; both as `held` gives them."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    texts = [
        f"{name[:_SHOWN]} ({_text(before.get(name))} there, {_text(now.get(name))} now)" for name in names[:_NAMED]
    ]
    return [*texts, f"{len(names) - _NAMED} more"] if len(names) > _NAMED else texts


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
