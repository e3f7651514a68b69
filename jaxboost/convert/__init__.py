"""Conversion of pretrained weights: LLM layers and vision encoders.

`formats` reads files. `tables` maps tensors to weights of the models. `store` and `encoders` load converted weights.
The functions below are imported when they are first used. The package itself can be called: `jaxboost.convert(...)` is
`jaxboost.convert.convert(...)`, because the public function and the package have the same name.
"""

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxboost.convert.conversion import convert, summary
    from jaxboost.convert.tables.hints import Hints

__all__ = ["Hints", "convert", "summary"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxboost.convert import conversion

    return getattr(conversion, name)


class _CallablePackage(types.ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from jaxboost.convert import conversion

        return conversion.convert(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
