"""Subgroups of samples: the columns of labels.csv that say neither what a sample is nor where it belongs."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxboost import io
from jaxboost.data.sources.folder import file_names, labels
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError
from jaxboost.studies.record import Items

_MAX_VALUES = 12  # a column with more values makes no subgroups


def with_columns(items: Items, config: Mapping[str, Any]) -> Items:
    """Adds the further columns of a user's labels.csv to samples; without such a table there are none.

    A patient whose images were pooled has the values of its first image.

    Args:
      items: samples of a split.
      config: the config of a run, as JSON.

    Raises:
      ValueError: the table cannot be read, or lacks samples; the message says which.
    """
    fields = config["data"]
    folder = io.user_path(fields.get("root") or ".")
    table = folder / labels.FILE
    if fields.get("source") != SOURCE or not os.path.isfile(table):
        return items
    try:
        known = labels.further_columns(table)
    except UserError as error:
        raise ValueError(f"labels.csv cannot be read any more ({error})") from None
    rows = dict(zip(file_names.relative(folder, list(known)), known.values(), strict=True))
    if lacking := [str(name) for name in items.names if str(name) not in rows]:
        raise ValueError(f"labels.csv lacks {len(lacking)} of the samples now, such as {lacking[0]}")
    found = [rows[str(name)] for name in items.names]
    columns = {name: np.array([row[name] for row in found]) for name in found[0]}
    few = {name: values for name, values in columns.items() if 1 < len(np.unique(values)) <= _MAX_VALUES}
    return dataclasses.replace(items, columns=few)
