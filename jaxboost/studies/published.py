"""Published figures of other people for a data set, each with its protocol."""

import functools
import importlib.resources
import json
from typing import Any


def figures(dataset: Any) -> list[dict[str, Any]]:
    """The published figures for a data set, the paper's first; none for one that is not known.

    A user's own data set cannot have the name of a published one.

    Args:
      dataset: its name, such as "vesselmnist3d".

    Returns:
      Entries with "source", "method", "protocol", "acc" and "auc": fractions, [mean, SD] over seeds, or None.
    """
    known = _known().get(dataset, []) if isinstance(dataset, str) else []
    return [dict(entry) for entry in known]


@functools.cache
def _known() -> dict[str, list[dict[str, Any]]]:
    file = importlib.resources.files("jaxboost.studies").joinpath("published.json")
    return json.loads(file.read_text(encoding="utf-8"))["datasets"]
