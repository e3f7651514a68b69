"""Swin Transformer (Liu et al. 2021) for 2D images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models.attention import unavailable
from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.layers import Convolution, layer_norm, linear, vit_init
from jaxboost.models.taps import tap
from jaxboost.models.transformer import MATRICES, Mlp, StochasticDepth, drop_path, stochastic_depths

EPS = 1e-5
# Added to the scores of tokens that only the cyclic shift has made neighbours, as in the authors' code.
_HIDDEN = -100.0


def _side(patch: int, depths: Sequence[int]) -> int:
    """Side of the image under one token of the last stage, in pixels."""
    return patch * 2 ** (len(depths) - 1)


def _size_problem(image_size: int, arguments: Mapping[str, Any]) -> str:
    multiple = _side(arguments["patch"], arguments["depths"]) * arguments["window"]
    if image_size > 0 and image_size % multiple == 0:
        return ""
    nearest = max(1, round(image_size / multiple)) * multiple
    return f"images of {image_size} pixels are not a multiple of {multiple}, which gives whole windows: give {nearest}"


def relative_positions(window: int) -> np.ndarray:
    """The row of the table of biases for each pair of a query and a key in a window, (N, N) with N = window^2."""
    y, x = np.divmod(np.arange(window**2), window)
    dy, dx = (axis[:, None] - axis[None] + window - 1 for axis in (y, x))
    return dy * (2 * window - 1) + dx


def regions(side: int, window: int, shift: int) -> np.ndarray:
    """Which tokens of each window belong together after a cyclic shift, as equal numbers: (windows, N).

    In the last row and column of windows, the shift puts tokens from opposite edges of the grid side by side.
    """
    bounds = np.array([side - window, side - shift])
    band = np.searchsorted(bounds, np.arange(side), side="right")
    grid = 3 * band[:, None] + band[None]
    return np.asarray(_windows(grid[None, ..., None], window))[0, ..., 0]


def _windows(x: Any, window: int) -> Any:
    """(B, S, S, D) -> (B, windows, N, D), rows first."""
    B, S, _, D = x.shape
    n = S // window
    return x.reshape(B, n, window, n, window, D).swapaxes(2, 3).reshape(B, n * n, window * window, D)


def _grid(x: jax.Array, side: int, window: int) -> jax.Array:
    """The inverse of `_windows`."""
    B, _, _, D = x.shape
    n = side // window
    return x.reshape(B, n, n, window, window, D).swapaxes(2, 3).reshape(B, side, side, D)


class WindowAttention(nnx.Module):
    """Multi-head self-attention inside windows with relative position biases, (B, S, S, D) -> (B, S, S, D).

    Args:
      width: D.
      heads: H; heads have the width D / H.
      side: S, a multiple of the window.
      window: side of a window, in tokens.
      shift: the grid is shifted cyclically by so many tokens, and back; 0: no shift.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(self, width: int, *, heads: int, side: int, window: int, shift: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads, self.side, self.window, self.shift = heads, side, window, shift
        self.attention_mode = "auto"  # see `attention.choose`
        self.qkv = linear(width, 3 * width, init=vit_init, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, init=vit_init, dtype=dtype, rngs=rngs)
        self.biases = nnx.Param(0.02 * jax.random.normal(rngs.params(), ((2 * window - 1) ** 2, heads)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The result (B, S, S, D).

        Raises:
          UserError: `model.attention=fused`, which has no biases.
        """
        if self.attention_mode == "fused":
            raise unavailable("windows with position biases (Swin)")
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        qkv = self.qkv(_windows(x, self.window))
        B, W, N, _ = qkv.shape
        q, k, v = qkv.reshape(B, W, N, 3, self.heads, -1).transpose(3, 0, 1, 4, 2, 5)  # (B, W, H, N, K)
        scores = ((q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)).astype(jnp.float32)
        scores += self.biases[...][relative_positions(self.window)].transpose(2, 0, 1)
        if self.shift:
            region = regions(self.side, self.window, self.shift)
            scores += np.where(region[:, :, None] != region[:, None], np.float32(_HIDDEN), 0)[:, None]
        mixed = jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v
        mixed = self.out(mixed.swapaxes(2, 3).reshape(B, W, N, -1))
        mixed = _grid(mixed, self.side, self.window)
        return jnp.roll(mixed, (self.shift, self.shift), axis=(1, 2)) if self.shift else mixed


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (B, S, S, D) -> (B, S, S, D). `given`: see `WindowAttention`."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs, **given: Any):
        shared: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(width, eps=eps, **shared)
        self.attention = WindowAttention(width, **given, **shared)
        self.mlp_norm = layer_norm(width, eps=eps, **shared)
        self.mlp = Mlp(width, 4 * width, activation="gelu", init=vit_init, **shared)

    def __call__(self, x: jax.Array, stochastic_depth: StochasticDepth | None = None) -> jax.Array:
        """The block's output."""
        attention_depth, mlp_depth = (None, None) if stochastic_depth is None else stochastic_depth.split()
        x = x + drop_path(self.attention(self.attention_norm(x)), attention_depth)
        return x + drop_path(self.mlp(self.mlp_norm(x)), mlp_depth)


class Merging(nnx.Module):
    """Four neighbours side by side, a LayerNorm and a linear map: (B, S, S, D) -> (B, S / 2, S / 2, 2D)."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(4 * width, eps=eps, dtype=dtype, rngs=rngs)
        self.reduction = linear(4 * width, 2 * width, bias=False, init=vit_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The smaller grid."""
        B, S, _, D = x.shape
        # The order of the neighbours is that of published weights: first column first, each from above.
        x = x.reshape(B, S // 2, 2, S // 2, 2, D).transpose(0, 1, 3, 4, 2, 5).reshape(B, S // 2, S // 2, 4 * D)
        return self.reduction(self.norm(x))


class Stage(nnx.Module):
    """Blocks on one grid, after a `Merging` in all stages but the first; every second block shifts its windows."""

    def __init__(self, width: int, depth: int, *, merges: bool, side: int, window: int, eps: float, **given: Any):
        shared = {name: given[name] for name in ("dtype", "rngs")}
        self.merging = Merging(width // 2, eps=eps, **shared) if merges else None
        # With a single window there is nothing to shift to.
        shift = window // 2 if side > window else 0
        blocks = [
            Block(width, eps=eps, side=side, window=window, shift=shift * (number % 2), **given)
            for number in range(depth)
        ]
        self.blocks = nnx.List(blocks)


class Swin(nnx.Module):
    """Images (B, S, S, C) -> the tokens of the last grid (B, N, D) after the final LayerNorm, rows first.

    There is no CLS token: the feature of an image is the mean of the tokens. Because the norm comes before the mean, it
    belongs to the encoder.

    Args:
      image_size: S, in pixels; each stage has whole windows.
      channels: C.
      patch: side of a patch, in pixels.
      width: of the first stage; it doubles from stage to stage.
      depths: number of blocks in each stage.
      heads: in each stage.
      window: side of a window, in tokens.
      eps: of all LayerNorms.
      remat: store only the input of each block for the backward pass, and recompute the rest.
      drop_path: stochastic depth in training: the last block's probability that an example skips a branch; it grows
        linearly from 0 in the first block.
      dtype: of the computation.
      rngs: of the weights.

    Attributes:
      patch: side of the image under one token of the result, in pixels.
    """

    traits: ClassVar[Traits] = Traits(
        cls_first=False,
        stacks=(Stack(name="stages", followers=("norm",)),),
        matrices=MATRICES,
        head_init=vit_init,
        names="swin",
        defaults={"eps": EPS},
        size_problem=_size_problem,
        open={"eps": ()},
    )

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        patch: int,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        eps: float = EPS,
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if problem := _size_problem(image_size, {"patch": patch, "depths": depths, "window": window}):
            raise ArgumentError(problem)
        self.patch = _side(patch, depths)
        self.remat, self.drop_path, self.depth = remat, drop_path, sum(depths)
        given: dict[str, Any] = dict(eps=eps, dtype=dtype, rngs=rngs)
        shared: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.embedding = Convolution(channels, width, size=patch, stride=patch, init=vit_init(0), **shared)
        self.embedding_norm = layer_norm(width, **given)
        stages, side = [], image_size // patch
        for number, (depth, own) in enumerate(zip(depths, heads, strict=True)):
            of_stage: dict[str, Any] = dict(heads=own, side=side >> number, window=window)
            stages.append(Stage(width << number, depth, merges=number > 0, **of_stage, **given))
        self.stages = nnx.List(stages)
        self.width, self.tokens = width << (len(depths) - 1), (image_size // self.patch) ** 2
        self.norm = layer_norm(self.width, **given)

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first tokens (B, Q, D), see `encoder.Encoder`."""
        x, number = self.embedding_norm(self.embedding(images)), 0
        dropped = stochastic_depths(self.drop_path, self.depth, key)
        for stage in self.stages:
            if stage.merging is not None:
                x = stage.merging(x)
            for block in stage.blocks:
                run = jax.checkpoint(Block.__call__) if self.remat else Block.__call__
                x = run(block, x, dropped[number])
                number += 1
        x = tap("feature_map", self.norm(x))
        return x.reshape(x.shape[0], -1, self.width)[:, :queries]
