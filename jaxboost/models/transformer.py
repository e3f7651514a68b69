"""Pre-norm transformer blocks that run under a scan, and the attention and MLP they are made of."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxboost.models.adapters import Adaptation, Projection
from jaxboost.models.layers import LinearInit, flat_product, layer_norm, layer_of, linear, stack, torch_init

# What `Transformer` keeps of a block for the backward pass, by the names that `checkpoint_name` gave.
SAVED = ("qkv", "mixed", "hidden", "up")


_portable: contextvars.ContextVar[bool] = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced within runs on every platform, for it leaves the choices of `attend` to where it is lowered.

    It is for forward passes alone: a gradient would keep what every platform's way needs. Nothing that was traced
    before under the same `jax.jit` is traced anew.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v for q (B, Q, H, K), k and v (B, N, H, K) -> (B, Q, H, K), in the backend's own way."""
    if _portable.get():
        # Without cuDNN's kernel: whether there is one depends on the version and the device that are there in the end.
        return jax.lax.platform_dependent(q, k, v, cpu=_attend_head_major, default=jax.nn.dot_product_attention)
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if _has_cudnn_kernel(q) else None)
    return _attend_head_major(q, k, v)


def _attend_head_major(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """As `attend`. Head-major operands make plain batched products: XLA runs them faster on CPU than einsums."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, H, N, K)
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, H, Q, N)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(v.dtype)
    return (weights @ v).swapaxes(1, 2)


def _has_cudnn_kernel(q: jax.Array) -> bool:
    """cuDNN's fused kernel takes 16-bit floats only, and heads of a multiple of 8 up to 128."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[-1] in range(8, 129, 8) and "cuda" in jax.devices()[0].client.platform_version


def _columns(layer: nnx.Linear | Projection, x: jax.Array, columns: slice) -> jax.Array:
    """Some of the columns of layer(x)."""
    y = flat_product(x, layer.kernel[:, columns].astype(x.dtype))
    return y if layer.bias is None else y + layer.bias[columns].astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention (B, N, D) -> (B, Q, D); the heads' total width H*K need not equal D."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        qkv_bias: bool,
        init: LinearInit,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_dim = heads, head_dim
        self.qkv = linear(width, 3 * heads * head_dim, bias=qkv_bias, init=init, dtype=dtype, rngs=rngs)
        self.out = linear(heads * head_dim, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, queries: int | None = None, projection: Projection | None = None) -> jax.Array:
        """The result for the first Q = `queries` tokens, for all where it is None.

        projection: what makes queries, keys and values instead of `qkv`.
        """
        width = self.heads * self.head_dim
        qkv = self.qkv if projection is None else projection

        def heads(x: jax.Array, parts: int) -> list[jax.Array]:
            x = checkpoint_name(x, "qkv").reshape(*x.shape[:2], parts, self.heads, self.head_dim)
            return [x[:, :, part] for part in range(parts)]

        if queries is None:
            q, k, v = heads(_columns(qkv, x, slice(None)), 3)
        else:
            (q,) = heads(_columns(qkv, x[:, :queries], slice(width)), 1)
            k, v = heads(_columns(qkv, x, slice(width, None)), 2)
        mixed = attend(q, k, v)
        return self.out(checkpoint_name(mixed.reshape(*mixed.shape[:2], width), "mixed"))


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) in float32 by erf, as torch has it; the erfc of `jax.nn.gelu` costs more on CPU."""
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): what CLIP was trained with (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


class Mlp(nnx.Module):
    """Linear - activation - Linear, (..., D) -> (..., D) through F."""

    def __init__(
        self, width: int, mlp_width: int, *, activation: str, init: LinearInit, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.activation = activation
        self.up = linear(width, mlp_width, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(mlp_width, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](checkpoint_name(self.up(x), "up")))


@flax.struct.dataclass
class StochasticDepth:
    """How often the branches of a block are left out; with leading axes, that of a stack of blocks.

    Attributes:
      rate: of the examples, below 1.
      key: says of which.
    """

    rate: jax.Array
    key: jax.Array

    def split(self) -> tuple["StochasticDepth", "StochasticDepth"]:
        """One for each branch."""
        first, second = jax.random.split(self.key)
        return StochasticDepth(rate=self.rate, key=first), StochasticDepth(rate=self.rate, key=second)


def drop_path(x: jax.Array, drop: StochasticDepth | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): a branch (B, ...) is 0 for some examples, and scaled to the same mean."""
    if drop is None:
        return x
    kept = jax.random.bernoulli(drop.key, 1 - drop.rate, (x.shape[0], *[1] * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - drop.rate).astype(x.dtype), 0)


class Block(nnx.Module):
    """Pre-norm transformer block: x + s attention(norm(x)), then x + t mlp(norm(x)); (B, N, D) -> (B, Q, D).

    With `layer_scale` s and t are trained vectors (D,) (Touvron et al. 2021), else 1.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        mlp_width: int,
        qkv_bias: bool,
        activation: str,
        layer_scale: bool,
        eps: float,
        init: LinearInit,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.attention = Attention(
            width, heads=heads, head_dim=head_dim, qkv_bias=qkv_bias, init=init, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp_width, activation=activation, init=init, dtype=dtype, rngs=rngs)
        self.attention_scale = nnx.Param(jnp.ones(width)) if layer_scale else None
        self.mlp_scale = nnx.Param(jnp.ones(width)) if layer_scale else None

    def __call__(
        self,
        x: jax.Array,
        *,
        queries: int | None = None,
        adaptation: Adaptation | None = None,
        drop: StochasticDepth | None = None,
    ) -> jax.Array:
        """The result for the first Q = `queries` tokens, for all where it is None."""
        adaptation = adaptation or Adaptation()
        attention_drop, mlp_drop = (None, None) if drop is None else drop.split()
        normed = adaptation(self.attention_norm(x))
        mixed = self.attention(normed, queries=queries, projection=adaptation.merged)
        mixed = drop_path(_scaled(mixed, self.attention_scale), attention_drop)
        x = checkpoint_name(x[:, :queries] + mixed, "hidden")
        return x + drop_path(_scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale), mlp_drop)


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


# What a block gets beside its tokens, stacked over the blocks.
Extras = tuple[Adaptation | None, StochasticDepth | None]


class Transformer(nnx.Module):
    """Pre-norm blocks, one after the other: (B, N, D) -> (B, Q, D).

    All but the last run under a scan, so that compile time does not grow with depth. The last is apart because it is
    often asked for its first token only, and to cut it out of a stack would copy all weights and their gradients in
    each step.

    Of each block's inside the backward pass finds its input and the results of the costly products; norms, softmax and
    GELU are computed again, which takes less time than to store and load them.

    Args:
      make: make(rngs=...) makes one block.
      remat: keep the blocks' inputs only, and compute all else again: less memory for more time.
      drop_path: in training, the share of examples for which a branch of the last block is left out; it grows
        linearly from 0 in the first block.
    """

    def __init__(self, make: Callable[..., Block], depth: int, *, remat: bool, drop_path: float = 0.0, rngs: nnx.Rngs):
        self.depth, self.remat, self.drop_path = depth, remat, drop_path
        self.blocks = stack(lambda r: make(rngs=r), depth - 1, rngs) if depth > 1 else None
        self.last = make(rngs=rngs)

    def __call__(self, x: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first Q = `queries` tokens, for which alone the last block has queries, projection and MLP; or all.

        key: says which branches are left out; None for none.
        """
        drop = None
        if key is not None and self.drop_path:
            drop = StochasticDepth(
                rate=jnp.linspace(0, self.drop_path, self.depth), key=jax.random.split(key, self.depth)
            )
        return self._run(x, queries=queries, drop=drop)[0]

    def first_tokens(self, x: jax.Array, adaptation: Adaptation | None = None) -> jax.Array:
        """The first token after each block, (B, N, D) -> (depth, B, D); `adaptation` is that of the stack of blocks."""
        x, between = self._run(x, queries=1, adaptation=adaptation, collect=True)
        last = x[None, :, 0]
        return last if between is None else jnp.concatenate([between, last])

    def _run(
        self,
        x: jax.Array,
        *,
        queries: int | None,
        adaptation: Adaptation | None = None,
        drop: StochasticDepth | None = None,
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last block's tokens, and where `collect` the first token after each block before it (depth - 1, B, D)."""
        policy = jax.checkpoint_policies.save_only_these_names(*(() if self.remat else SAVED))

        def call(block: Block, extras: Extras, x: jax.Array, queries: int | None = None) -> jax.Array:
            # prevent_cse keeps what is computed again from being merged with the first time. A scan's iterations are
            # not merged anyway, and the last block's backward pass follows its forward pass: nothing to save there.
            body = jax.checkpoint(
                lambda block, extras, x: block(x, queries=queries, adaptation=extras[0], drop=extras[1]),
                policy=policy,
                prevent_cse=False,
            )
            return body(block, extras, x)

        def step(x: jax.Array, layer: tuple[Block, Extras]) -> tuple[jax.Array, jax.Array | None]:
            x = call(*layer, x)
            return x, x[:, 0] if collect else None

        extras, between = (adaptation, drop), None
        if self.blocks is not None:
            x, between = jax.lax.scan(step, x, (self.blocks, jax.tree.map(lambda leaf: leaf[:-1], extras)))
        return call(self.last, layer_of(extras, -1), x, queries), between


def volume_transformer(
    width: int,
    depth: int,
    *,
    heads: int,
    head_dim: int,
    mlp_width: int,
    remat: bool,
    drop_path: float,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Transformer:
    """That of both 3D encoders: no bias in q, k and v, LayerNorm eps 1e-5, torch's default initialisation."""

    block = functools.partial(
        Block,
        width,
        heads=heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        qkv_bias=False,
        activation="gelu",
        layer_scale=False,
        eps=1e-5,
        init=torch_init,
        dtype=dtype,
    )
    return Transformer(block, depth, remat=remat, drop_path=drop_path, rngs=rngs)
