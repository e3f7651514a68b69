"""Where attention is computed by cuDNN's fused kernel: one table for all models, and the switch `model.attention`.

The fused kernel does not store the weights (N x N for each head), which saves memory; whether it is faster depends on
the shapes. The plain computation is each model's own. Both give the same result up to the rounding of 16 bits.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost import device
from jaxboost.device import Device
from jaxboost.errors import ArgumentError
from jaxboost.models.taps import is_open

# "auto": fused where the device and the form of the attention allow it; "plain": never; "fused": an error if not.
MODES = ("auto", "plain", "fused")
Mask = Literal["none", "causal", "keys"]

_AMPERE, _HOPPER = (8, 0), (9, 0)
_FIX = 'set model.attention to "auto" or "plain"'

_portable: contextvars.ContextVar[bool] = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """A context in which traced functions can be lowered for every platform, as an export needs.

    Attention is never fused there: whether the kernel applies depends on the device at run time, not known here. What
    else depends on the platform is chosen when a function is lowered instead of when it is traced. Use it for forward
    passes only: a gradient would keep the activations of all implementations. A function that `jax.jit` traced before
    is not traced again.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def is_portable() -> bool:
    """Whether the trace runs inside `portable`."""
    return _portable.get()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """The form of an attention, as far as it decides about the fused kernel.

    Attributes:
      dtype: of queries, keys and values.
      head_dim: K, width of a head.
      queries, keys: lengths Q and N.
      mask: "none"; "causal"; "keys": some keys are hidden from all queries, with or without a causal mask.
    """

    dtype: str
    head_dim: int
    queries: int
    keys: int
    mask: Mask = "none"

    @property
    def is_padded(self) -> bool:
        """Whether a length is odd: the gradient of cuDNN's kernel takes even ones (jax 0.10.2, with a mask or not)."""
        return bool(self.queries % 2 or self.keys % 2)


def fused_problem(given: Device, form: Form) -> str:
    """Why a device has no fused kernel for an attention and its gradient; "" if it has one.

    The conditions are those of cuDNN 9 as jax 0.10.2 checks them. Gradients are always assumed.
    """
    if found := device_problem(given, form.dtype):
        return found
    capability, most = given.capability or _AMPERE, 128
    if capability >= _HOPPER:
        most = 256
    if form.head_dim % 8 or not 0 < form.head_dim <= most:
        return f"heads of width {form.head_dim}: it takes multiples of 8 up to {most} on this device"
    if form.mask == "causal" and form.queries != form.keys:
        return f"a causal mask for {form.queries} queries and {form.keys} keys: it takes equally many"
    return ""


def device_problem(given: Device, dtype: str) -> str:
    """The part of `fused_problem` that is known without the form of an attention."""
    if given.capability is None:
        return f"{given.kind} is no NVIDIA GPU"
    if given.capability < _AMPERE:
        major, minor = given.capability
        return f"{given.kind} has the compute capability {major}.{minor}: it takes 8.0 or more"
    if dtype not in ("bfloat16", "float16"):
        return f"a computation in {dtype}: it takes 16-bit floats (model.dtype=bfloat16)"
    return ""


def takes_fused(
    mode: str, q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Mask = "none", capped: bool = False
) -> bool:
    """Whether an attention is computed by `fused`.

    Never for a single query, which costs next to nothing without; nor inside `portable`, or where a tap reads weights.

    Args:
      mode: one of MODES.
      q: queries (B, Q, H, K).
      k: keys (B, N, G, K).
      v: values (B, N, G, K).
      mask: see `Form`.
      capped: the scores have a soft cap, which the kernel does not compute.

    Raises:
      UserError: the mode is "fused", and the device has no kernel for this attention.
    """
    if mode == "plain" or q.shape[1] == 1 or is_portable() or is_open():
        return False
    form = Form(dtype=q.dtype.name, head_dim=q.shape[-1], queries=q.shape[1], keys=k.shape[1], mask=mask)
    problem = "scores with a soft cap" if capped else fused_problem(device.current(), form) or _refusal(q, k, v, mask)
    if problem and mode == "fused":
        raise unavailable(problem)
    return not problem


def unavailable(problem: str) -> ArgumentError:
    """The error where `model.attention=fused` cannot be."""
    return ArgumentError(f"config field model.attention: there is no fused attention for {problem}: {_FIX}")


def fused(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """Attention softmax(q k^T / sqrt(K)) v by the fused kernel. Odd lengths are padded, exactly; see `Form.is_padded`.

    Args:
      q: queries (B, Q, H, K).
      k: keys (B, N, G, K); G divides H, and query heads i H/G to (i + 1) H/G - 1 share key head i.
      v: values (B, N, G, K).
      causal: query i sees the keys 0 to i.
      mask: (B, N) or (1, N), True for keys that are seen; None for all.
      implementation: "cudnn"; "xla" computes the same call on any device, for tests.

    Returns:
      (B, Q, H, K).
    """
    Q, N = q.shape[1], k.shape[1]
    q, (k, v) = _even(q), map(_even, (k, v))
    hidden: dict[str, Any] = {}
    if mask is not None:
        # The kernel takes a mask as a bias of the full lengths.
        full = _even(mask)[:, None, None]
        hidden["mask"] = jnp.broadcast_to(full, (len(mask), 1, q.shape[1], k.shape[1]))
    elif N % 2 and not causal:
        # Under a causal mask only the added query sees the added key. Under `jax.vmap` the kernel's rule takes lengths
        # only with the mapped axis of the keys, so they are computed from the keys: both choices are the same number.
        condition = k[:, 0, 0, 0] == 0
        hidden["query_seq_lengths"], hidden["key_value_seq_lengths"] = (
            jnp.where(condition, length, length) for length in (jnp.int32(q.shape[1]), jnp.int32(N))
        )
    call: Any = jax.nn.dot_product_attention
    return call(q, k, v, is_causal=causal, implementation=implementation, **hidden)[:, :Q]


def _even(x: jax.Array) -> jax.Array:
    """X (B, N, ...) with one more token of zeros (False in a mask) if N is odd."""
    return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)])


def _refusal(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> str:
    """Why this version of jax cannot trace the kernel and its gradient for these shapes; "" if it can."""
    hidden = jnp.ones((1, k.shape[1]), bool) if mask == "keys" else None
    call = functools.partial(fused, causal=mask == "causal", mask=hidden)

    def with_gradient(*given: jax.Array) -> Any:
        mixed, pull = jax.vjp(call, *given)
        return pull(mixed)

    try:
        jax.eval_shape(with_gradient, q, k, v)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"these shapes, which jax {jax.__version__} refuses ({' '.join(str(error).split())})"
    return ""


def choose(model: nnx.Module, mode: str) -> nnx.Module:
    """Sets how all attention of a model is computed, and returns the model; `mode` is one of MODES.

    The mode is part of the model's structure, so that programs of different modes are never mixed up.
    """
    node: Any
    for _, node in nnx.iter_modules(model):
        if hasattr(node, "attention_mode"):
            node.attention_mode = mode
    return model
