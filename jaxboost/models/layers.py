"""What the vision encoders are made of: patches, attention, MLP, and pre-norm blocks that run under a scan."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# fan_in -> (kernel initialiser, bias initialiser) of a linear map.
LinearInit = Callable[[int], tuple[nnx.Initializer, nnx.Initializer]]


def torch_init(fan_in: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernel and bias: what torch.nn.Linear starts from."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform


def vit_init(fan_in: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    """N(0, .02) kernels and zero biases, as the 2D ViT starts; its truncation at +-2 lies 100 sigma out."""
    del fan_in
    return nnx.initializers.normal(0.02), nnx.initializers.zeros


def linear(
    fan_in: int, fan_out: int, *, bias: bool = True, init: LinearInit, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear map with float32 weights that computes in `dtype`."""
    kernel_init, bias_init = init(fan_in)
    return nnx.Linear(
        fan_in, fan_out, use_bias=bias, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs
    )


def layer_norm(width: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm whose variance is taken around the mean: Flax's one-pass default cancels where the mean is large."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)


def patches_2d(images: jax.Array, patch: int) -> jax.Array:
    """(B, S, S, C) -> (B, N, patch*patch*C), rows first."""
    B, S, _, C = images.shape
    n = S // patch
    x = images.reshape(B, n, patch, n, patch, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, n * n, patch * patch * C)


def patches_3d(volumes: jax.Array, patch: int) -> jax.Array:
    """(B, S, S, S, C) -> (B, frames, N, patch**3 * C): frames are groups of `patch` slices along the first axis.

    Within a patch the order is (rows, columns, slices, channels), the reference's.
    """
    B, S, _, _, C = volumes.shape
    n = S // patch
    x = volumes.reshape(B, n, patch, n, patch, n, patch, C)
    return x.transpose(0, 1, 3, 5, 4, 6, 2, 7).reshape(B, n, n * n, patch**3 * C)


def prepend(token: jax.Array, x: jax.Array) -> jax.Array:
    """Puts one learned token (D,) before the tokens x (B, N, D) -> (B, 1 + N, D)."""
    cls = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([cls, x], axis=1)


class PatchEmbedding3D(nnx.Module):
    """LayerNorm - Linear - LayerNorm on flattened patches (..., patch**3 * C) -> (..., D)."""

    def __init__(self, patch_width: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm_in = layer_norm(patch_width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.linear = linear(patch_width, width, init=torch_init, dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, patches: jax.Array) -> jax.Array:
        return self.norm_out(self.linear(self.norm_in(patches)))


class Attention(nnx.Module):
    """Multi-head self-attention (B, N, D) -> (B, N, D); the heads' total width H*K need not equal D."""

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

    def __call__(self, x: jax.Array) -> jax.Array:
        B, N, _ = x.shape
        H, K = self.heads, self.head_dim
        # Head-major operands make plain batched products, which XLA runs faster on CPU than transposing einsums.
        q, k, v = self.qkv(x).reshape(B, N, 3, H, K).transpose(2, 0, 3, 1, 4)  # each (B, H, N, K)
        scores = (q * K**-0.5) @ k.swapaxes(-1, -2)  # (B, H, N, N)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(v.dtype)
        return self.out((weights @ v).transpose(0, 2, 1, 3).reshape(B, N, H * K))


class Mlp(nnx.Module):
    """Linear - GELU (erf) - Linear, (..., D) -> (..., D) through F."""

    def __init__(self, width: int, mlp_width: int, *, init: LinearInit, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.up = linear(width, mlp_width, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(mlp_width, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); (B, N, D) -> (B, N, D)."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        mlp_width: int,
        qkv_bias: bool,
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
        self.mlp = Mlp(width, mlp_width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def volume_block(width: int, *, heads: int, head_dim: int, mlp_width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> Block:
    """The block of both 3D encoders: no bias in q, k and v, LayerNorm eps 1e-5, torch's default initialisation."""
    return Block(
        width,
        heads=heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        qkv_bias=False,
        eps=1e-5,
        init=torch_init,
        dtype=dtype,
        rngs=rngs,
    )


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` independently initialised modules as one, every weight with a leading axis of length `depth`."""
    return nnx.vmap(make)(rngs.split(depth))


# What the backward pass of a stack keeps of each layer's inside, beside the layer's input.
REMAT = {
    "none": None,  # everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # all linear maps' outputs
    "full": jax.checkpoint_policies.nothing_saveable,
}


def scan_stack(
    layers: Any,
    x: jax.Array,
    call: Callable[[Any, jax.Array], jax.Array] = lambda layer, x: layer(x),
    *,
    remat: str = "none",
) -> jax.Array:
    """Runs a `stack` on x, layer after layer; `call(layer, x)` keeps x's shape and dtype.

    A scan: compile time does not grow with depth, and on CPU a step takes less than half the time of unrolled layers.

    Args:
      remat: a key of REMAT; what is not kept is computed again in the backward pass, less memory for more time.
    """

    def body(carry: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return call(layer, carry), None

    if remat != "none":
        # A scan's iterations are not merged with each other, which is what prevent_cse guards against.
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, x, layers)[0]
