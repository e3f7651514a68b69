"""ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023) for 2D images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models.activations import gelu
from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.layers import Convolution, layer_norm, linear, vit_init
from jaxboost.models.taps import tap
from jaxboost.models.transformer import StochasticDepth, drop_path, stochastic_depths

PATCH, KERNEL = 4, 7  # pixels: side of the stem's patches, and of the depthwise kernels
LAYER_SCALE = 1e-6  # initial value, section A.1 of the first paper
DEFAULTS: dict[str, Any] = dict(eps=1e-6, layer_scale=True, response_norm=False)


def _side(depths: Sequence[int]) -> int:
    """Side of the image under one token of the last stage, in pixels."""
    return PATCH * 2 ** (len(depths) - 1)


def _size_problem(image_size: int, arguments: Mapping[str, Any]) -> str:
    least = _side(arguments["depths"])
    return "" if image_size >= least else f"images of {image_size} pixels give no token: give {least} or more"


class ResponseNorm(nnx.Module):
    """Global response normalisation (Woo et al. 2023, section 3.3), (B, h, w, D) -> (B, h, w, D).

    Each channel is scaled by its norm over the image, relative to the mean of the channels' norms.
    """

    EPS = 1e-6

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.zeros(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The result, in the dtype of x; the norms are float32."""
        wide = x.astype(jnp.float32)
        squares = jnp.square(wide).sum((1, 2), keepdims=True)
        # A channel may be 0 everywhere. There the root has no derivative, and torch's norm takes 0.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        relative = norms / (norms.mean(-1, keepdims=True) + self.EPS)
        return (wide + self.bias[...] + self.scale[...] * (wide * relative)).astype(x.dtype)


class Block(nnx.Module):
    """x + s down(gelu(up(norm(depthwise(x))))), (B, h, w, D) -> (B, h, w, D), through width 4D.

    Args:
      width: D.
      layer_scale: s is a trained vector (D,), else 1.
      response_norm: a `ResponseNorm` after the activation.
      eps: of the LayerNorm.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self, width: int, *, layer_scale: bool, response_norm: bool, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        init = vit_init(0)
        given: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.conv = Convolution(width, width, size=KERNEL, groups=width, padding=KERNEL // 2, init=init, **given)
        self.norm = layer_norm(width, eps=eps, **given)
        self.up = linear(width, 4 * width, init=vit_init, **given)
        self.response_norm = ResponseNorm(4 * width) if response_norm else None
        self.down = linear(4 * width, width, init=vit_init, **given)
        self.layer_scale = nnx.Param(jnp.full(width, LAYER_SCALE)) if layer_scale else None

    def __call__(self, x: jax.Array, stochastic_depth: StochasticDepth | None = None) -> jax.Array:
        """The block's output."""
        y = gelu(self.up(self.norm(self.conv(x))))
        if self.response_norm is not None:
            y = self.response_norm(y)
        y = self.down(y)
        if self.layer_scale is not None:
            y = y * self.layer_scale[...].astype(y.dtype)
        return x + drop_path(y, stochastic_depth)


class Downsampling(nnx.Module):
    """A convolution of patches without overlap and a LayerNorm, before it or after it; (B, h, w, C) -> (B, h', w', D).

    What is left over at the lower and right edge, if a side is not a multiple of the patch, is not read.
    """

    def __init__(
        self, channels: int, width: int, *, patch: int, norm_first: bool, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.norm_first = norm_first
        given: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm = layer_norm(channels if norm_first else width, eps=eps, **given)
        self.conv = Convolution(channels, width, size=patch, stride=patch, init=vit_init(0), **given)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The smaller grid."""
        return self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(x))


class Stage(nnx.Module):
    """Blocks on one grid, after a downsampling by 2 in all stages but the first."""

    def __init__(self, channels: int, width: int, depth: int, *, downsamples: bool, eps: float, **given: Any):
        shared = {name: given[name] for name in ("dtype", "rngs")}
        self.downsample = (
            Downsampling(channels, width, patch=2, norm_first=True, eps=eps, **shared) if downsamples else None
        )
        self.blocks = nnx.List([Block(width, eps=eps, **given) for _ in range(depth)])


class ConvNeXt(nnx.Module):
    """Images (B, S, S, C) -> the tokens of the last grid (B, N, D), rows first, N = (S / 32)^2, rounded down.

    There is no CLS token: the feature of an image is the mean of the tokens. The LayerNorm after the mean belongs to
    the head.

    Args:
      image_size: S, in pixels, at least `patch`.
      channels: C.
      depths: number of blocks in each stage.
      widths: of each stage.
      eps: of all LayerNorms.
      layer_scale: see `Block`; version 1.
      response_norm: see `Block`; version 2.
      remat: store only the input of each block for the backward pass, and recompute the rest.
      drop_path: stochastic depth in training: the last block's probability that an example skips it; it grows linearly
        from 0 in the first block.
      dtype: of the computation.
      rngs: of the weights.

    Attributes:
      patch: side of the image under one token, in pixels.
    """

    traits: ClassVar[Traits] = Traits(
        cls_first=False,
        stacks=(Stack(name="stages"),),
        matrices=("up", "down"),
        head_init=vit_init,
        names="convnext",
        defaults=DEFAULTS,
        size_problem=_size_problem,
        open={"eps": ()},
    )

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        depths: Sequence[int],
        widths: Sequence[int],
        eps: float = DEFAULTS["eps"],
        layer_scale: bool = DEFAULTS["layer_scale"],
        response_norm: bool = DEFAULTS["response_norm"],
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if problem := _size_problem(image_size, {"depths": depths}):
            raise ArgumentError(problem)
        self.patch = _side(depths)
        self.remat, self.drop_path, self.depth = remat, drop_path, sum(depths)
        self.width, self.tokens = widths[-1], (image_size // self.patch) ** 2
        given: dict[str, Any] = dict(eps=eps, dtype=dtype, rngs=rngs)
        self.stem = Downsampling(channels, widths[0], patch=PATCH, norm_first=False, **given)
        stages, before = [], widths[0]
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            norms = dict(layer_scale=layer_scale, response_norm=response_norm)
            stages.append(Stage(before, width, depth, downsamples=number > 0, **norms, **given))
            before = width
        self.stages = nnx.List(stages)

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first tokens (B, Q, D), see `encoder.Encoder`."""
        x, number = self.stem(images), 0
        dropped = stochastic_depths(self.drop_path, self.depth, key)
        for stage in self.stages:
            if stage.downsample is not None:
                x = stage.downsample(x)
            for block in stage.blocks:
                run = jax.checkpoint(Block.__call__) if self.remat else Block.__call__
                x = run(block, x, dropped[number])
                number += 1
        return tap("feature_map", x).reshape(x.shape[0], -1, self.width)[:, :queries]
