"""ViT (Dosovitskiy et al. 2021) for 2D images."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.adapters import Adaptation, Projection
from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.grid_rotary import Rotary, on_grid
from jaxboost.models.layers import layer_norm, linear, patches_2d, prepend, vit_init
from jaxboost.models.transformer import MATRICES, Block, Transformer

# The arguments in which CLIP and DINOv2 differ from ImageNet's ViT, with ImageNet's values.
PLAIN: dict[str, Any] = dict(eps=1e-6, activation="gelu", patch_bias=True, pre_norm=False, layer_scale=False)


def vit_block(
    width: int,
    *,
    heads: int,
    mlp_width: int,
    eps: float,
    activation: str,
    layer_scale: bool,
    key_bias: bool = True,
    dtype: jnp.dtype,
) -> Callable[..., Block]:
    """What makes a block of a ViT from its random numbers; arguments: see `transformer.Block`."""
    return functools.partial(
        Block,
        width,
        heads=heads,
        head_dim=width // heads,
        mlp_width=mlp_width,
        qkv_bias=True,
        key_bias=key_bias,
        activation=activation,
        layer_scale=layer_scale,
        eps=eps,
        init=vit_init,
        dtype=dtype,
    )


class ViT(nnx.Module):
    """Images (B, S, S, C) -> tokens (B, 1 + R + N, D), CLS first, before the final LayerNorm.

    The final LayerNorm belongs to the head: R-LLM's booster comes between the two.

    Args:
      image_size: S, a multiple of `patch`, both in pixels.
      patch: side of a patch, in pixels.
      channels: C.
      width, depth, heads, mlp_width: of the blocks, see `transformer.Block`.
      eps: of all LayerNorms.
      activation: a key of `activations.ACTIVATIONS`.
      patch_bias: the patch embedding has a bias (not in CLIP).
      pre_norm: a LayerNorm before the first block (CLIP).
      layer_scale: see `transformer.Block` (DINOv2).
      registers: R, number of trained tokens between CLS and the patches, without positions (Darcet et al. 2024).
      rope: base of rotary positions (DINOv3), see `grid_rotary.on_grid`; None: trained positions.
      key_bias: see `transformer.Attention` (not in DINOv3).
      remat, drop_path: see `transformer.Transformer`.
      dtype: of the computation.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(
        has_first_tokens=True,
        stacks=(Stack(name="transformer"),),
        matrices=MATRICES,
        head_init=vit_init,
        names="vit",
        defaults=PLAIN,
        # It may differ between checkpoints of the same model.
        open={"eps": ()},
    )

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        eps: float = PLAIN["eps"],
        activation: str = PLAIN["activation"],
        patch_bias: bool = PLAIN["patch_bias"],
        pre_norm: bool = PLAIN["pre_norm"],
        layer_scale: bool = PLAIN["layer_scale"],
        registers: int = 0,
        rope: float | None = None,
        key_bias: bool = True,
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.patch, self.width, self.depth, self.rope = patch, width, depth, rope
        self.side, self.head_dim = image_size // patch, width // heads
        positions = 1 + self.side**2
        self.tokens = positions + registers
        self.embedding = linear(patch * patch * channels, width, bias=patch_bias, init=vit_init, dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        trained = rope is None
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (positions, width))) if trained else None
        self.registers = nnx.Param(0.02 * jax.random.normal(rngs.params(), (registers, width))) if registers else None

        self.pre_norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        block = vit_block(
            width,
            heads=heads,
            mlp_width=mlp_width,
            eps=eps,
            activation=activation,
            layer_scale=layer_scale,
            key_bias=key_bias,
            dtype=dtype,
        )
        self.transformer = Transformer(block, depth, remat=remat, drop_path=drop_path, rngs=rngs)

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The first tokens (B, Q, D), see `encoder.Encoder`."""
        return self.transformer(self._embed(images), queries=queries, key=key, rotary=self._rotary())

    def first_tokens(self, images: jax.Array, adaptation: Adaptation | None = None) -> jax.Array:
        """The CLS token after each block (depth, B, D), see `encoder.BlockEncoder`."""
        return self.transformer.first_tokens(self._embed(images), adaptation, rotary=self._rotary())

    def qkv(self) -> Projection:
        """The stacked projections to queries, keys and values, see `encoder.BlockEncoder`."""
        return self.transformer.qkv()

    def _rotary(self) -> Rotary | None:
        if self.rope is None:
            return None
        return on_grid(self.side, first=self.tokens - self.side**2, head_dim=self.head_dim, base=self.rope)

    def _embed(self, images: jax.Array) -> jax.Array:
        x = self.embedding(patches_2d(images, self.patch))
        x = prepend(self.cls[...], x)
        if self.positions is not None:
            x = x + self.positions[...].astype(x.dtype)
        if self.registers is not None:
            registers = jnp.broadcast_to(self.registers[...].astype(x.dtype), (len(x), *self.registers.shape))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        return x if self.pre_norm is None else self.pre_norm(x)
