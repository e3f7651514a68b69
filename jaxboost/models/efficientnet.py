"""EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation and with ReLU6) for 2D images."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.layers import Convolution
from jaxboost.models.resnet import BatchNorm, checkpointed
from jaxboost.models.taps import tap
from jaxboost.models.transformer import StochasticDepth, drop_path, stochastic_depths

# (expansion of the width, side of the depthwise kernel, stride of the first block) of each stage, table 1 of the paper.
STAGES = ((1, 3, 1), (6, 3, 2), (6, 5, 2), (6, 3, 2), (6, 5, 1), (6, 5, 2), (6, 3, 1))
STEM, HEAD = 32, 1280  # widths
# Of the published TensorFlow weights: their batch norms and their padding.
EPS, SAME, SYMMETRIC = 1e-3, "same", "symmetric"
DEFAULTS: dict[str, Any] = dict(eps=EPS, padding=SAME)


class ConvNorm(nnx.Module):
    """A convolution without bias, its batch norm, and ReLU6 if `activates`; arguments: see `layers.Convolution`."""

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        size: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: str,
        eps: float,
        activates: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.activates = activates
        # Normal with variance 2 / fan_out, where a group counts alone.
        init = nnx.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")
        self.conv = Convolution(
            channels,
            width,
            size=size,
            stride=stride,
            groups=groups,
            padding="SAME" if padding == SAME else size // 2,
            init=(init, None),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(width, eps=eps, dtype=dtype)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The result; `train`: see `resnet.BatchNorm`."""
        x = self.norm(self.conv(x), train=train)
        return jax.nn.relu6(x) if self.activates else x


class Block(nnx.Module):
    """Inverted residual: expand, depthwise, project, (B, h, w, C) -> (B, h', w', D), plus x where the shapes agree."""

    def __init__(self, channels: int, width: int, *, expansion: int, size: int, stride: int, **given: Any):
        inner = expansion * channels
        self.adds = stride == 1 and channels == width
        self.expand = ConvNorm(channels, inner, **given) if expansion > 1 else None
        self.depthwise = ConvNorm(inner, inner, size=size, stride=stride, groups=inner, **given)
        self.project = ConvNorm(inner, width, activates=False, **given)

    def __call__(self, x: jax.Array, *, train: bool, stochastic_depth: StochasticDepth | None = None) -> jax.Array:
        """The block's output; `train`: see `resnet.BatchNorm`."""
        y = x if self.expand is None else self.expand(x, train=train)
        y = self.project(self.depthwise(y, train=train), train=train)
        return x + drop_path(y, stochastic_depth) if self.adds else y


class EfficientNetLite(nnx.Module):
    """Images (B, S, S, C) -> the pooled feature as one token (B, 1, W).

    Args:
      image_size: S, in pixels; any.
      channels: C.
      depths: number of blocks in each of the STAGES.
      widths: of each stage.
      eps: of the batch norms.
      padding: SAME: as TensorFlow pads, whose published weights need it; SYMMETRIC: as PyTorch pads.
      remat: store only the input of each block for the backward pass, and recompute the rest.
      drop_path: stochastic depth in training: the last block's probability that an example skips it; it grows linearly
        from 0 in the first block. Blocks that change the shape are never skipped.
      dtype: of the convolutions and of the batch norms' output.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(
        gives_tokens=False,
        has_statistics=True,
        stacks=(Stack(name="blocks", followers=("head",)),),
        names="efficientnet",
        defaults=DEFAULTS,
        open={"eps": (), "padding": (SAME, SYMMETRIC)},
    )

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        depths: Sequence[int],
        widths: Sequence[int],
        eps: float = DEFAULTS["eps"],
        padding: str = DEFAULTS["padding"],
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        del image_size
        self.remat, self.drop_path, self.tokens, self.width = remat, drop_path, 1, HEAD
        given: dict[str, Any] = dict(eps=eps, padding=padding, dtype=dtype, rngs=rngs)
        self.stem = ConvNorm(channels, STEM, size=3, stride=2, **given)
        blocks, before = [], STEM
        for (expansion, size, stride), depth, width in zip(STAGES, depths, widths, strict=True):
            for number in range(depth):
                step = 1 if number else stride
                blocks.append(Block(before, width, expansion=expansion, size=size, stride=step, **given))
                before = width
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(before, HEAD, **given)

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The pooled feature as one token (B, 1, W).

        Args:
          images: normalised pixels.
          queries: not used: there is one token.
          key: random key of a training step, see `encoder.Encoder`. With it, batch norms use the batch's statistics and
            update the running ones.
        """
        del queries
        train = key is not None
        x = self.stem(images, train=train)
        for block, dropped in zip(self.blocks, stochastic_depths(self.drop_path, len(self.blocks), key), strict=True):
            run = checkpointed if self.remat else type(block).__call__
            x = run(block, x, train=train, stochastic_depth=dropped)
        return tap("feature_map", self.head(x, train=train)).mean((1, 2))[:, None]
