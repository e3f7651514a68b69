"""Taps: named places in a forward pass where a value can be read, and its gradient taken.

A model calls `tap(name, x)` at such a place. Nothing happens there unless the pass runs inside `opened`, so taps change
no number of a run. The names: "encoder_last", tokens that enter the last block of a stack of the encoder;
"encoder_attention", the attention in that block; "feature_map", the last of an encoder without CLS; "tokens", the
encoder's output; "llm_attention", the attention in the last LLM layer; "llm_in" and "llm_out", tokens before and after
PneumoLLM's LLaMA.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taps:
    """The taps of one forward pass.

    Attributes:
      differences: name -> array that the pass adds to the value. The gradient of a result with respect to a difference
        of zeros is the gradient with respect to the value.
      values: name -> the value, filled by the pass. A name that is passed again gets the ending "/1", "/2", ...
    """

    differences: Mapping[str, jax.Array]
    values: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


_taps: contextvars.ContextVar[Taps | None] = contextvars.ContextVar("taps", default=None)


@contextlib.contextmanager
def opened(differences: Mapping[str, jax.Array] | None = None) -> Iterator[dict[str, jax.Array]]:
    """A context in which a forward pass fills the dictionary that it gives: see `Taps`.

    A function that `jax.jit` traced before is not traced again, so its taps stay as they were.
    """
    taps = Taps(differences=differences or {})
    token = _taps.set(taps)
    try:
        yield taps.values
    finally:
        _taps.reset(token)


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """A context without taps, for what jax traces apart, such as a scan's body: values cannot leave it."""
    token = _taps.set(None)
    try:
        yield
    finally:
        _taps.reset(token)


def is_open() -> bool:
    """Whether the pass runs inside `opened`."""
    return _taps.get() is not None


def tap(name: str, x: jax.Array) -> jax.Array:
    """Returns x. Inside `opened` it stores x, and returns the sum of x and the tap's difference."""
    taps = _taps.get()
    if taps is None:
        return x
    repeated = sum(name == other.partition("/")[0] for other in taps.values)
    key = f"{name}/{repeated}" if repeated else name
    taps.values[key] = x
    return x + taps.differences[key].astype(x.dtype) if key in taps.differences else x
