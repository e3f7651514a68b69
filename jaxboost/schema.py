"""JSON that jaxboost wrote, checked against a type with bounds before anything reads it."""

import json
from typing import Any, TypeVar

from jaxboost.errors import UserError

T = TypeVar("T")
_NAMED = 3


def parse(kind: type[T], value: Any, *, where: str, fix: str) -> T:
    """As `check`, with an error for the user.

    Args:
      kind: the type.
      value: what `json.loads` gave.
      where: the value comes from, such as a file's path.
      fix: what the user can do about a wrong entry.

    Raises:
      UserError: names the first entries that are wrong.
    """
    try:
        return check(kind, value)
    except ValueError as error:
        raise UserError(f"{where} is damaged or of another version ({error}): {fix}") from None


def check(kind: type[T], value: Any) -> T:
    """The value as a `kind`.

    Types are strict: no text becomes a number, no fraction a whole number; NaN and infinities are refused. A list may
    become a tuple. Entries that `kind` does not name are left out.

    Args:
      kind: a dataclass or another annotated type, with `pydantic.Field` as bounds.
      value: what `json.loads` gave.

    Raises:
      ValueError: names the first entries that are wrong.
    """
    # Imported here, because it takes a tenth of a second.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        texts = [f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in found[:_NAMED]]
        reason = "; ".join(texts) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "it holds NaN or an infinite number"
    raise ValueError(reason)
