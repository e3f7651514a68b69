"""Building blocks of the encoders: normalised pixels, linear layers, norms, patches, stacks of layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models import convolution, depthwise

CHANNELS = 3  # every backbone sees three; grey images are repeated, as the reference does

# fan_in -> (kernel initialiser, bias initialiser) of a linear layer.
LinearInit = Callable[[int], tuple[nnx.Initializer, nnx.Initializer]]


def normalize_pixels(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], *, keep_grey: bool = False
) -> jax.Array:
    """([0, 1] - mean) / std of uint8 pixels (..., c), c in {1, 3}.

    Grey is repeated to three channels (..., 3). With `keep_grey` it stays one channel, where three would be equal.
    """
    x = (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
    return x if keep_grey else jnp.broadcast_to(x, (*images.shape[:-1], CHANNELS))


def with_columns(pooled: jax.Array, columns: jax.Array | None) -> jax.Array:
    """A pooled feature (B, W) and behind it the features of clinical columns (B, F), if there are any: (B, W + F)."""
    return pooled if columns is None else jnp.concatenate([pooled, columns], axis=1)


def torch_init(fan_in: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernel and bias, as torch.nn.Linear is initialised."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform


def vit_init(fan_in: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    """N(0, .02) kernels and zero biases, as in the 2D ViT, whose truncation at +-2 (100 deviations) has no effect."""
    del fan_in
    return nnx.initializers.normal(0.02), nnx.initializers.zeros


class Linear(nnx.Linear):
    """A linear layer whose matrix LoRA may change, see `tuning.add_lora`.

    Attributes:
      lora: a `lora.Lora` whose matrix is called "kernel"; None: no LoRA.
    """

    lora: Any = None

    def __call__(self, inputs: jax.Array, *args: Any, **given: Any) -> jax.Array:
        """The outputs (..., out) of inputs (..., in)."""
        y = super().__call__(inputs, *args, **given)
        return y if self.lora is None else y + self.lora(inputs.astype(y.dtype), "kernel")


def linear(
    fan_in: int, fan_out: int, *, bias: bool = True, init: LinearInit, dtype: jnp.dtype, rngs: nnx.Rngs
) -> Linear:
    """A linear layer with float32 weights that computes in `dtype`."""
    kernel_init, bias_init = init(fan_in)
    return Linear(
        fan_in,
        fan_out,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dot_general=flat_product,
        rngs=rngs,
    )


def flat_product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """The product x @ kernel, (..., in) -> (..., out), with the leading axes of x flattened to one.

    With several leading axes, XLA on CPU copies activations in the backward pass. `nnx.Linear` passes more arguments:
    the dimension numbers of this same product, and defaults. They are ignored.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Convolution(nnx.Module):
    """A 2D convolution, (B, h, w, C) -> (B, h', w', D), with float32 weights.

    Args:
      channels: C.
      width: D.
      size: side of the kernel (size, size, C / groups, D), in pixels.
      stride: of the kernel.
      groups: the channels are divided into so many groups, which are not mixed.
      padding: zeros on each side; "SAME": as TensorFlow pads, so that h' = h / stride, rounded up, with the odd zero
        below and to the right.
      init: initialisers of kernel and bias; no second one: no bias.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        size: int,
        stride: int = 1,
        groups: int = 1,
        padding: int | Literal["SAME"] = 0,
        init: tuple[nnx.Initializer, nnx.Initializer | None],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init = init
        self.stride, self.groups, self.padding, self.dtype = stride, groups, padding, dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, channels // groups, width)))
        self.bias = None if bias_init is None else nnx.Param(bias_init(rngs.params(), (width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The convolved images."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        strides, padding = (self.stride, self.stride), self.padding
        if isinstance(padding, str):
            (top, bottom), (left, right) = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
            pads = (top, bottom), (left, right)
        else:
            pads = (padding, padding), (padding, padding)
        if self.groups == x.shape[-1] == kernel.shape[-1]:
            y = depthwise.convolve(x, kernel, stride=self.stride, pads=pads)
        else:
            y = convolution.convolve(x, kernel, strides=strides, pads=pads, groups=self.groups)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def exact_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product x @ kernel of float32, (..., in) -> (..., out), on a GPU too without its fast, shorter products.

    For CLIP's embeddings: its scale is 100, and the fast products would cost the first decimal of a logit.
    """
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def layer_norm(width: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with a two-pass variance: Flax's one-pass default loses digits where the mean is large."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)


def patches_2d(images: jax.Array, patch: int) -> jax.Array:
    """(B, S, S, C) -> (B, N, patch*patch*C), rows first."""
    B, S, _, C = images.shape
    n = S // patch
    x = images.reshape(B, n, patch, n, patch, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, n * n, patch * patch * C)


def prepend(token: jax.Array, x: jax.Array) -> jax.Array:
    """Prepends a learned token (D,) to the tokens x (B, N, D) -> (B, 1 + N, D)."""
    cls = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([cls, x], axis=1)


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` independently initialised modules as one, every weight with a leading axis of length `depth`."""
    return nnx.vmap(make)(rngs.split(depth))


def layer_of(layers: Any, index: int | jax.Array) -> Any:
    """One layer of a `stack`."""
    return jax.tree.map(lambda weights: weights[index], layers)
