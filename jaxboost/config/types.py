"""The type of a run's config in signatures.

`ml_collections.ConfigDict` returns each field as an unspecified value, so a type checker would reject nearly every use
of a section. For the checker a `Config` is therefore `Any`; at run time it is a `ConfigDict`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Config = Any
else:
    from ml_collections import ConfigDict as Config

__all__ = ["Config"]
