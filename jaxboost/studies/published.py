"""Published figures of other people for a data set, each with its protocol."""

import functools
import importlib.resources
import json
from typing import Any

from jaxboost.studies.record import Record

_FOLDER = "folder"
_RADIOGRAPHS = {"normal", "pneumoconiosis"}  # PneumoLLM's classes


def of_study(record: Record) -> list[dict[str, Any]]:
    """The published figures that a report shows beside a study's own, as `figures` gives them.

    For a user's radiographs with PneumoLLM's two classes, and no others, they are those of the paper, whose radiographs
    are private: each says that it is of other patients.
    """
    configs = (run.result.get("config") or {} for run in record.runs)
    if record.data.get("source") == _FOLDER and any(
        set((config.get("data") or {}).get("classes") or ()) == _RADIOGRAPHS for config in configs
    ):
        return [dict(entry) for entry in _file()["radiographs"]]
    return figures(record.data.get("name"))


def figures(dataset: Any) -> list[dict[str, Any]]:
    """The published figures for a data set, the paper's first; none for one that is not known.

    A user's own data set cannot have the name of a published one.

    Args:
      dataset: its name, such as "vesselmnist3d".

    Returns:
      Entries with "source", "method", "protocol", "acc" and "auc": fractions, [mean, SD] over seeds, or None; and with
      "not_run", the reason, where this project has no such method. PneumoLLM's have "row", the method's row in
      `pneumollm:ROW`, where there is one.
    """
    known = _file()["datasets"].get(dataset, []) if isinstance(dataset, str) else []
    return [dict(entry) for entry in known]


@functools.cache
def _file() -> dict[str, Any]:
    file = importlib.resources.files("jaxboost.studies").joinpath("published.json")
    return json.loads(file.read_text(encoding="utf-8"))
