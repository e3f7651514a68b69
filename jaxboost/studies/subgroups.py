"""Subgroups of samples: the columns of labels.csv that say neither what a sample is nor where it belongs."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.studies.record import Items

TABLE = "labels.csv"
_KNOWN = ("file", "label", "labels", "patient_id", "patient", "split")
_MAX_VALUES = 12  # a column with more values makes no subgroups


def with_columns(items: Items, config: Mapping[str, Any]) -> Items:
    """Adds the columns of a user's labels.csv to samples; if it is not there or has other files, there are none.

    Args:
      items: samples of a split.
      config: the config of a run, as JSON.
    """
    fields = config["data"]
    table = pathlib.Path(os.path.expanduser(fields.get("root") or ".")) / TABLE
    if fields.get("source") != SOURCE or not os.path.isfile(table):
        return items
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = {row["file"]: row for row in csv.DictReader(file)}
        found = [rows[str(name)] for name in items.names]
    except (OSError, ValueError, KeyError, csv.Error):
        return items
    names = [name for name in found[0] if name and name.lower() not in _KNOWN and "/" not in name]
    columns = {name: np.array([row[name] or "" for row in found]) for name in names}
    few = {name: values for name, values in columns.items() if 1 < len(np.unique(values)) <= _MAX_VALUES}
    return dataclasses.replace(items, columns=few)
