"""The numbers that a checkpoint's own configuration gives: config.json, params.json or GGUF metadata."""

import json
from collections.abc import Mapping
from typing import Any

from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig


class Settings:
    """A mapping read with messages that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    @classmethod
    def parse(cls, text: bytes, where: str) -> "Settings":
        """Parses a JSON object.

        Raises:
          UserError: if `text` is not one.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON ({error}): download it again") from error
        if not isinstance(values, dict):
            raise UserError(f"{where} does not hold a JSON object: download it again")
        return cls(values, where)

    def get(self, key: str) -> Any:
        """The value, None where it is null or absent."""
        return self.values.get(key)

    def section(self, key: str) -> "Settings":
        """The object under `key`, empty where it is null or absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self.where}: {key!r} is {value!r} instead of an object")
        return Settings(value or {}, f"{self.where}, {key}")

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; without a default the key must be there."""
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{self.where} has no {key!r}: the file is incomplete, download it again")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise UserError(f"{self.where}: {key!r} is {value!r} instead of a positive number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number; without a default the key must be there."""
        value = self.number(key, default)
        if value != int(value):
            raise UserError(f"{self.where}: {key!r} is {value!r} instead of a whole number")
        return int(value)


def layer_config(
    where: str,
    *,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    mlp_width: int,
    eps: float,
    rope_base: float,
    rope_factors: tuple[float, ...] | None = None,
) -> LlamaConfig:
    """A `LlamaConfig` whose numbers go together.

    Raises:
      UserError: if they do not.
    """
    if heads % kv_heads:
        raise UserError(f"{where}: {heads} heads are not a multiple of {kv_heads} key/value heads")
    if head_dim % 2:
        raise UserError(f"{where}: the head width {head_dim} is odd, the rotary embedding needs pairs")
    if rope_factors is not None and len(rope_factors) != head_dim // 2:
        raise UserError(f"{where}: {len(rope_factors)} rotary factors for a head width of {head_dim}")
    return LlamaConfig(
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        eps=eps,
        rope_base=rope_base,
        rope_factors=rope_factors,
    )
