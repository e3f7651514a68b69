"""The store of the decoded images of a data set."""

from collections.abc import Mapping
from typing import Any

from jaxboost.data.rows import place
from jaxboost.data.rows.store import Store


def open_store(name: str, identity: Mapping[str, Any], keeping: place.Keeping, *, version: str) -> Store:
    """The store of a data set's decoded images.

    Args:
      name, identity: see `place.entry`.
      keeping: whether they are kept on disk.
      version: see `Store`.
    """
    where = None if keeping.mode == place.OFF else place.entry(name, identity)
    if where is not None:
        place.describe(where, identity)
    return Store(
        where,
        what="images",
        version=version,
        room=lambda needed: place.make_room(where, needed, keeping.most_gb * 1e9) if where else "",
        renew=keeping.mode == place.RENEW,
    )
