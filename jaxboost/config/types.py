"""The type of a run's config in signatures.

`ml_collections.ConfigDict` gives its fields no useful static types, so a type checker would reject most uses of a
section. For the type checker `Config` is therefore `Any`; at run time it is `ConfigDict`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Config = Any
else:
    from ml_collections import ConfigDict as Config

__all__ = ["Config"]
