"""ResNet (He et al. 2016) for images and volumes, also with 2D kernels in volumes (ACS, Yang et al. 2021)."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.attention import is_portable
from jaxboost.models.convolution import convolve
from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.frozen import Frozen
from jaxboost.models.layers import flat_product
from jaxboost.models.taps import tap

# The defaults of torch.nn.BatchNorm.
MOMENTUM, EPS = 0.1, 1e-5
STATISTICS = ("mean", "variance")  # the names of the running statistics of a `BatchNorm`

# A size or stride: of all axes, or of each.
Sides = int | tuple[int, ...]
# Kernel size and stride of the first convolution: "small" is that of MedMNIST's own ResNet for 28 pixels, "large" that
# of torchvision's for 224, "inflated" that of `inflated_resnet`. All but the small one are followed by max-pooling.
STEMS: dict[str, tuple[Sides, Sides]] = {"small": (3, 1), "large": (7, 2), "inflated": ((7, 7, 3), (2, 2, 1))}
AUTO = "auto"
BASE_WIDTH = 64
SMALL_STEM_UP_TO = 64  # pixels; MedMNIST names no stem between 28 and 224

# (inner width, stride) of a residual block -> (kernel size, output width, stride) of each of its convolutions. The
# bottleneck's stride is in its 3x3 convolution, as in torchvision and MedMNIST.
BLOCKS = {
    "basic": lambda width, stride: ((3, width, stride), (3, width, 1)),
    "bottleneck": lambda width, stride: ((1, width, 1), (3, width, stride), (1, 4 * width, 1)),
}
CONVOLUTIONS = {"2d": 2, "3d": 3, "acs": 3}  # kind -> spatial dimensions of its input


class Convolution(nnx.Module):
    """(B, S, S[, S], C) -> (B, S', S'[, S'], D) with S' = ceil(S / stride), without bias. The kernel's sizes are odd.

    Size and stride are one number for all axes; of kind "3d" they may be one for each axis.

    Kind "acs" has a 2D kernel (k, k, C, D): the first third of its output channels acts in the last two axes of a
    volume (axial), the second in the first and last (coronal), the third in the first two (sagittal). The remainder of
    D / 3 goes to the first parts.
    """

    def __init__(
        self, channels: int, width: int, *, size: Sides, stride: Sides, kind: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.stride, self.kind, self.dtype = stride, kind, dtype
        sides = _of_each(size, 3 if kind == "3d" else 2)
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (*sides, channels, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The convolved images or volumes."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.kind != "acs":
            return _convolve(x, kernel, self.stride)
        if kernel.shape[0] == 1:
            # A kernel of one pixel is the same in all three planes.
            return _convolve(x, kernel[None], self.stride)
        parts = jnp.split(kernel, acs_bounds(kernel.shape[-1]), axis=-1)
        planes = [_convolve(x, jnp.expand_dims(part, axis), self.stride) for axis, part in enumerate(parts)]
        return jnp.concatenate(planes, axis=-1)


def acs_bounds(width: int) -> tuple[int, int]:
    """The first output channels of the coronal and of the sagittal part."""
    share, rest = divmod(width, 3)
    coronal = share + (rest > 0)
    return coronal, coronal + share + (rest > 1)


def _of_each(sides: Sides, axes: int) -> tuple[int, ...]:
    return (sides,) * axes if isinstance(sides, int) else sides


def _convolve(x: jax.Array, kernel: jax.Array, stride: Sides) -> jax.Array:
    sides = kernel.shape[:-2]
    strides = _of_each(stride, len(sides))
    convolution = functools.partial(convolve, strides=strides, pads=tuple((side // 2, side // 2) for side in sides))
    if set(sides) != {1}:
        return convolution(x, kernel)
    product = functools.partial(_product, strides)
    if is_portable():
        return jax.lax.platform_dependent(x, kernel, cpu=product, default=convolution)
    return (product if jax.default_backend() == "cpu" else convolution)(x, kernel)


def _product(strides: tuple[int, ...], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `convolve` with a kernel of one pixel. On a CPU faster, above all its gradients if there is a stride."""
    read = (slice(None), *(slice(None, None, stride) for stride in strides))
    return flat_product(x[read], kernel.reshape(kernel.shape[-2:]))


class BatchNorm(nnx.Module):
    """torch.nn.BatchNorm over all axes but the last, with statistics in float32 (of float64 in float64).

    With frozen weights its running statistics are frozen too: it normalises by them in training as in evaluation.

    As in torch, a batch is normalised by its biased variance, while the running variance is updated with the unbiased
    one; Flax uses the biased one for both. A batch that is sharded over devices counts as one batch.
    """

    def __init__(self, width: int, *, eps: float = EPS, dtype: jnp.dtype):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.variance = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The normalised x, in `dtype`.

        Args:
          x: (..., D).
          train: normalise by the batch's statistics and update the running ones; else normalise by the running ones.
        """
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train and not isinstance(self.scale, Frozen):
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean = x.mean(axes)
            variance = jnp.square(x - mean).mean(axes)
            unbiased = variance * (count / max(count - 1, 1))
            for running, value in ((self.mean, mean), (self.variance, unbiased)):
                running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * value
        else:
            mean, variance = self.mean[...], self.variance[...]
        scale = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
        return ((x - mean) * scale + self.bias[...]).astype(self.dtype)


class ConvNorm(nnx.Module):
    """A convolution and the batch norm after it; arguments: see `Convolution`."""

    def __init__(
        self, channels: int, width: int, *, size: Sides, stride: Sides, kind: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.conv = Convolution(channels, width, size=size, stride=stride, kind=kind, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, dtype=dtype)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The result of both; `train`: see `BatchNorm`."""
        return self.norm(self.conv(x), train=train)


class Residual(nnx.Module):
    """A residual block: relu(convolutions(x) + x), with x projected if its shape changes."""

    def __init__(
        self, channels: int, width: int, *, block: str, stride: int, kind: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        def conv(channels: int, size: int, width: int, stride: int) -> ConvNorm:
            return ConvNorm(channels, width, size=size, stride=stride, kind=kind, dtype=dtype, rngs=rngs)

        made, self.width = [], channels
        for size, out, step in BLOCKS[block](width, stride):
            made.append(conv(self.width, size, out, step))
            self.width = out
        self.convs = nnx.List(made)
        projects = stride != 1 or channels != self.width
        self.projection = conv(channels, 1, self.width, stride) if projects else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The block's output; `train`: see `BatchNorm`."""
        y = x
        for conv in self.convs[:-1]:
            y = jax.nn.relu(conv(y, train=train))
        y = self.convs[-1](y, train=train)
        return jax.nn.relu(y + (x if self.projection is None else self.projection(x, train=train)))


class ResNet(nnx.Module):
    """Images (B, S, S, C) or volumes (B, S, S, S, C) -> the pooled feature as one token (B, 1, W).

    Args:
      image_size: S, in pixels.
      channels: C.
      block: a key of BLOCKS.
      depths: number of blocks in each stage. From stage to stage the inner width doubles and the side is halved.
      convolution: a key of CONVOLUTIONS.
      base_width: inner width of the first stage.
      stem: a key of STEMS, or "auto": small up to SMALL_STEM_UP_TO pixels.
      remat: store only the input of each residual block for the backward pass, and recompute the rest.
      dtype: of the convolutions and of the batch norms' output.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(
        gives_tokens=False,
        has_statistics=True,
        has_stochastic_depth=False,
        stacks=(Stack(name="blocks"),),
        names="resnet",
        defaults={"base_width": BASE_WIDTH, "stem": AUTO},
        # 2D kernels also act in volumes, and pretrained ones decide the stem.
        open={"convolution": ("2d", "acs"), "stem": (AUTO, "large")},
    )

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        block: str,
        depths: Sequence[int],
        convolution: str,
        base_width: int = BASE_WIDTH,
        stem: str = AUTO,
        remat: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if stem == AUTO:
            stem = "small" if image_size <= SMALL_STEM_UP_TO else "large"
        size, stride = STEMS[stem]
        self.remat, self.tokens = remat, 1
        self.pools = stem != "small"
        self.stem = ConvNorm(channels, base_width, size=size, stride=stride, kind=convolution, dtype=dtype, rngs=rngs)
        blocks, width = [], base_width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                made = Residual(
                    width,
                    base_width * 2**stage,
                    block=block,
                    stride=2 if stage and not number else 1,
                    kind=convolution,
                    dtype=dtype,
                    rngs=rngs,
                )
                blocks.append(made)
                width = made.width
        self.blocks, self.width = nnx.List(blocks), width

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The pooled feature as one token (B, 1, W).

        Args:
          images: normalised pixels.
          queries: not used: there is one token.
          key: not None in training: batch norms then use the batch's statistics and update the running ones.
        """
        del queries
        train = key is not None
        x = jax.nn.relu(self.stem(images, train=train))
        if self.pools:
            sides = (3,) * (x.ndim - 2)
            padding: Any = ((1, 1),) * len(sides)  # annotated as str in Flax, which takes pairs too
            x = nnx.max_pool(x, sides, strides=(2,) * len(sides), padding=padding)
        for block in self.blocks:
            x = checkpointed(block, x, train=train) if self.remat else block(x, train=train)
        return tap("feature_map", x).mean(tuple(range(1, x.ndim - 1)))[:, None]


def checkpointed(block: Any, x: jax.Array, **given: Any) -> jax.Array:
    """block(x, **given), of which only the input is stored for the backward pass; for blocks with batch norms."""

    def body(block: Any, x: jax.Array) -> tuple[jax.Array, nnx.State]:
        return block(x, **given), nnx.state(block, nnx.BatchStat)

    # A traced function cannot change a variable outside it: it returns the new statistics.
    x, stats = jax.checkpoint(body)(block, x)
    nnx.update(block, stats)
    return x
