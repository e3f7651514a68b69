"""A ViT without CLS whose tokens an attention pools, as SigLIP's (Zhai et al. 2023)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.encoder import Stack, Traits
from jaxboost.models.layers import layer_norm, linear, patches_2d, vit_init
from jaxboost.models.transformer import MATRICES, Attention, Mlp, Transformer
from jaxboost.models.vit import PLAIN, vit_block

POOLINGS = ("map",)


class AttentionPool(nnx.Module):
    """Multihead attention pooling (Zhai et al. 2022, "Scaling Vision Transformers"): (B, N, D) -> (B, 1, D).

    A trained probe attends to the tokens: y = attention(probe, x), then y + mlp(norm(y)).

    Args:
      width: D.
      heads, mlp_width, eps, activation: as in the blocks before it, see `transformer.Block`.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        mlp_width: int,
        eps: float,
        activation: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.probe = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.attention = Attention(
            width, heads=heads, head_dim=width // heads, qkv_bias=True, init=vit_init, dtype=dtype, rngs=rngs
        )
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp_width, activation=activation, init=vit_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The pooled token (B, 1, D)."""
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        y = self.attention(x, probe=probe)
        return y + self.mlp(self.norm(y))


class PooledViT(nnx.Module):
    """Images (B, S, S, C) -> one pooled feature, as a single token (B, 1, D).

    The final LayerNorm stands before the pooling, so it belongs to the encoder, not to the head.

    Args:
      pooling: one of POOLINGS, see `AttentionPool`.
      image_size, patch, channels, width, depth, heads, mlp_width, patch_bias, pre_norm, layer_scale: see `vit.ViT`.
      eps, activation: see `vit.ViT`; those of the pooling too.
      remat, drop_path: see `transformer.Transformer`.
      dtype: of the computation.
      rngs: of the weights.
    """

    traits: ClassVar[Traits] = Traits(
        gives_tokens=False,
        stacks=(Stack(name="transformer", followers=("norm", "pool")),),
        matrices=MATRICES,
        head_init=vit_init,
        names="vit",
        defaults=PLAIN,
        # The GELUs are two forms of one function: timm computes most SigLIPs' by erf, Hugging Face by tanh. Each
        # encoder has its source's.
        open={"eps": (), "activation": ("gelu_tanh", "gelu")},
    )

    def __init__(
        self,
        *,
        pooling: str,
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
        remat: bool = False,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
        self.patch, self.width, self.depth, self.tokens = patch, width, depth, 1
        self.embedding = linear(patch * patch * channels, width, bias=patch_bias, init=vit_init, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), ((image_size // patch) ** 2, width)))
        self.pre_norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        block = vit_block(
            width,
            heads=heads,
            mlp_width=mlp_width,
            eps=eps,
            activation=activation,
            layer_scale=layer_scale,
            dtype=dtype,
        )
        self.transformer = Transformer(block, depth, remat=remat, drop_path=drop_path, rngs=rngs)
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.pool = AttentionPool(
            width, heads=heads, mlp_width=mlp_width, eps=eps, activation=activation, dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """The pooled feature (B, 1, D), see `encoder.Encoder`; `queries` has no effect."""
        del queries
        return self.pool(self.norm(self.transformer(self._embed(images), key=key)))

    def _embed(self, images: jax.Array) -> jax.Array:
        x = self.embedding(patches_2d(images, self.patch))
        x = x + self.positions[...].astype(x.dtype)
        return x if self.pre_norm is None else self.pre_norm(x)
