"""Validates JSON that jaxboost wrote against a type with bounds, before other code uses it."""

import functools
import json
from typing import Any, TypeVar

from jaxboost.errors import UserError

T = TypeVar("T")
_MAX_LISTED = 3
# pydantic speaks of a dataclass's constructor here.
_MESSAGES = {"unexpected_keyword_argument": "Unknown entry"}


def parse(kind: type[T], value: Any, *, where: str, fix: str) -> T:
    """Does the same as `validated`, but raises an error for the user.

    Args:
      kind: the type.
      value: what `json.loads` gave.
      where: the origin of the value, such as a file's path, for the message.
      fix: what the user can do about a wrong entry.

    Raises:
      UserError: entries are wrong; the message names the first ones.
    """
    try:
        return validated(kind, value)
    except ValueError as error:
        raise UserError(f"{where} is damaged or of another version ({error}): {fix}") from None


def validated(kind: type[T], value: Any) -> T:
    """Returns a value that was checked and converted to the type `kind`.

    Types are strict: a string is not converted to a number, nor a float to an integer; NaN and infinities are refused.
    A list may become a tuple. Entries that `kind` does not have are ignored, unless its
    `__pydantic_config__` forbids them.

    Args:
      kind: a dataclass or another annotated type, with `pydantic.Field` as bounds.
      value: what `json.loads` gave.

    Raises:
      ValueError: entries are wrong; the message names the first ones.
    """
    # Imported here, because it takes a tenth of a second.
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        texts = [
            f"{'.'.join(map(str, each['loc'])) or 'the file'}: {_MESSAGES.get(each['type'], each['msg'])}"
            for each in found[:_MAX_LISTED]
        ]
        reason = "; ".join(texts) + (f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else "")
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "it holds NaN or an infinite number"
    raise ValueError(reason)


@functools.cache
def _adapter(kind: Any) -> Any:
    """The validator of a type, which takes longer to make than to use."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
