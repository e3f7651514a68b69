"""ResNet (He et al. 2016) for images and volumes, also with 2D kernels in volumes (ACS, Yang et al. 2021)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

# torch.nn.BatchNorm's.
MOMENTUM, EPS = 0.1, 1e-5

# Kernel size and stride of the first convolution: MedMNIST's own ResNet for 28 pixels, torchvision's for 224. Only the
# latter is followed by max-pooling.
STEMS = {"small": (3, 1), "large": (7, 2)}
SMALL_STEM_UP_TO = 64  # pixels; MedMNIST names no stem between 28 and 224

# The convolutions of a residual block from its inner width and stride: (kernel size, output width, stride) of each.
# The bottleneck's stride is in its 3x3 convolution, as in torchvision's and MedMNIST's.
BLOCKS = {
    "basic": lambda width, stride: ((3, width, stride), (3, width, 1)),
    "bottleneck": lambda width, stride: ((1, width, 1), (3, width, stride), (1, 4 * width, 1)),
}
CONVOLUTIONS = {"2d": 2, "3d": 3, "acs": 3}  # kind -> spatial dimensions of its input


class Convolution(nnx.Module):
    """(B, S, S[, S], C) -> (B, S', S'[, S'], D) with S' = ceil(S / stride), no bias; the kernel's size is odd.

    Of kind "acs" the kernel is a 2D one (k, k, C, D): its first third of output channels acts in the last two axes of a
    volume (axial), its second in the first and last (coronal), its third in the first two (sagittal). What D / 3 leaves
    goes to the first parts.
    """

    def __init__(
        self, channels: int, width: int, *, size: int, stride: int, kind: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.stride, self.kind, self.dtype = stride, kind, dtype
        sides = [size] * (3 if kind == "3d" else 2)
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (*sides, channels, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.kind != "acs":
            return _convolve(x, kernel, self.stride)
        if kernel.shape[0] == 1:
            # One pixel is the same in all three planes.
            return _convolve(x, kernel[None], self.stride)
        parts = jnp.split(kernel, acs_bounds(kernel.shape[-1]), axis=-1)
        planes = [_convolve(x, jnp.expand_dims(part, axis), self.stride) for axis, part in enumerate(parts)]
        return jnp.concatenate(planes, axis=-1)


def acs_bounds(width: int) -> tuple[int, int]:
    """The output channels with which the coronal and the sagittal part begin."""
    share, rest = divmod(width, 3)
    coronal = share + (rest > 0)
    return coronal, coronal + share + (rest > 1)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    sides = kernel.shape[:-2]
    layout = ("NHWC", "HWIO", "NHWC") if len(sides) == 2 else ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[stride] * len(sides),
        padding=[(side // 2, side // 2) for side in sides],
        dimension_numbers=layout,
    )


class BatchNorm(nnx.Module):
    """torch.nn.BatchNorm over all axes but the last, with statistics in float32.

    As there, a batch is normalised by its biased variance, and the running one takes the unbiased; Flax's takes the
    biased. A batch that is spread over devices is one batch.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.variance = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """train: normalise by the batch's statistics and move the running ones, which are taken else."""
        x = x.astype(jnp.float32)
        if train:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean = x.mean(axes)
            variance = jnp.square(x - mean).mean(axes)
            unbiased = variance * (count / max(count - 1, 1))
            for running, value in ((self.mean, mean), (self.variance, unbiased)):
                running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * value
        else:
            mean, variance = self.mean[...], self.variance[...]
        scale = self.scale[...] * jax.lax.rsqrt(variance + EPS)
        return ((x - mean) * scale + self.bias[...]).astype(self.dtype)


class ConvNorm(nnx.Module):
    """A convolution and the batch norm after it; arguments as of `Convolution`."""

    def __init__(
        self, channels: int, width: int, *, size: int, stride: int, kind: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.conv = Convolution(channels, width, size=size, stride=stride, kind=kind, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, dtype=dtype)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.conv(x), train=train)


class Residual(nnx.Module):
    """A residual block: relu(convolutions(x) + x), with x projected where its shape changes."""

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
        y = x
        for conv in self.convs[:-1]:
            y = jax.nn.relu(conv(y, train=train))
        y = self.convs[-1](y, train=train)
        return jax.nn.relu(y + (x if self.projection is None else self.projection(x, train=train)))


class ResNet(nnx.Module):
    """Images (B, S, S, C) or volumes (B, S, S, S, C) -> the pooled feature as one token (B, 1, W).

    Args:
      image_size: S, in pixels.
      block: a key of BLOCKS.
      depths: blocks of each stage. From stage to stage the inner width doubles and the side is halved.
      convolution: a key of CONVOLUTIONS.
      base_width: inner width of the first stage.
      stem: a key of STEMS, or "auto": small up to SMALL_STEM_UP_TO pixels.
      remat: keep only the input of each residual block for the backward pass, and compute all else again.
      dtype: of the convolutions and of what the batch norms return.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        block: str,
        depths: Sequence[int],
        convolution: str,
        base_width: int = 64,
        stem: str = "auto",
        remat: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if stem == "auto":
            stem = "small" if image_size <= SMALL_STEM_UP_TO else "large"
        size, stride = STEMS[stem]
        self.remat, self.tokens = remat, 1
        self.pools = stem == "large"
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

    def __call__(self, images: jax.Array, *, queries: int | None = None, train: bool) -> jax.Array:
        """The one token, whatever `queries`.

        Args:
          train: see `BatchNorm`. It changes the model's statistics.
        """
        del queries
        x = jax.nn.relu(self.stem(images, train=train))
        if self.pools:
            sides = (3,) * (x.ndim - 2)
            x = nnx.max_pool(x, sides, strides=(2,) * len(sides), padding=((1, 1),) * len(sides))
        for block in self.blocks:
            x = self._run(block, x, train=train)
        return x.mean(tuple(range(1, x.ndim - 1)))[:, None]

    def _run(self, block: Residual, x: jax.Array, *, train: bool) -> jax.Array:
        if not self.remat:
            return block(x, train=train)

        def body(block: Residual, x: jax.Array) -> tuple[jax.Array, nnx.State]:
            return block(x, train=train), nnx.state(block, nnx.BatchStat)

        # What is traced inside cannot change a variable outside: the statistics leave as a result.
        x, stats = jax.checkpoint(body)(block, x)
        nnx.update(block, stats)
        return x
