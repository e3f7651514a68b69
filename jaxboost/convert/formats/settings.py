"""A checkpoint's own configuration: config.json, params.json or GGUF metadata, read value by value."""

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from jaxboost.convert.formats import kinds
from jaxboost.errors import UserError

# Far above the size of every published configuration.
MAX_BYTES = 64 << 20
# Larger or smaller numbers are mistakes, for every key.
MAX_LAYERS = 1024
MAX_INTEGER, MIN_NUMBER, MAX_NUMBER = 1 << 20, 1e-30, 1e30


class Settings:
    """A mapping whose values are checked; messages name the file (`where`) and the key."""

    def __init__(self, values: Mapping[str, Any], where: str):
        """`where` names the file in messages."""
        self.values, self.where = values, where

    @classmethod
    def parse(cls, text: bytes, where: str) -> "Settings":
        """Parses a JSON object.

        Raises:
          UserError: if `text` is not one.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            kinds.refuse_known(where, text)
            raise UserError(f"{where} is not valid JSON ({error}): download it again") from error
        if not isinstance(values, dict):
            raise UserError(f"{where} does not hold a JSON object: download it again")
        return cls(values, where)

    def get(self, key: str) -> Any:
        """The value, None if it is null or absent."""
        return self.values.get(key)

    def section(self, key: str) -> "Settings":
        """The object under `key`, empty if it is null or absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self.where}: {key!r} is {reprlib.repr(value)} instead of an object")
        return Settings(value or {}, f"{self.where}, {key}")

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number of a sensible size; without a default the key must be there."""
        value = self._required(key, default)
        if not _is_number(value) or not value > 0:
            raise UserError(f"{self.where}: {key!r} is {reprlib.repr(value)} instead of a positive number")
        if not MIN_NUMBER <= value <= MAX_NUMBER:
            raise UserError(
                f"{self.where}: {key!r} is {_short(value)}, which is not between {MIN_NUMBER} and {MAX_NUMBER}: "
                "download the file again"
            )
        return float(value)

    def integer(self, key: str, default: int | None = None, *, limit: int = MAX_INTEGER) -> int:
        """A positive whole number up to `limit`; without a default the key must be there."""
        value = self.number(key, default)
        if value != int(value):
            raise UserError(f"{self.where}: {key!r} is {value!r} instead of a whole number")
        if value > limit:
            raise UserError(f"{self.where}: {key!r} is {_short(value)}, above {limit}: download the file again")
        return int(value)

    def count(self, key: str, default: int, *, limit: int) -> int:
        """A whole number from 0 to `limit`."""
        value = self._required(key, default)
        return 0 if _is_number(value) and value == 0 else self.integer(key, default, limit=limit)

    def _required(self, key: str, default: float | None) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{self.where} has no {key!r}: the file is incomplete, download it again")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: float) -> str:
    """A number in a few characters: an integer may have thousands of digits."""
    return reprlib.repr(int(value) if isinstance(value, float) and value.is_integer() else value)
