"""Shapes of converted arrays, from tracing the models: no array is made, and no device is needed."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from jaxboost.convert.tables.parts import EMBEDDING, FINAL_NORM, NORM, POOL, Shapes
from jaxboost.models.families import LAYER_NORM
from jaxboost.models.layers import layer_norm
from jaxboost.models.llama import LlamaConfig, LlamaLayer
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.vit import ViT

CHANNELS = 3
# The beginning of the names of the block in a ViT with one block.
_BLOCK = "transformer.last."


@functools.lru_cache(maxsize=8)
def llama_layer(config: LlamaConfig) -> Shapes:
    """Shapes of a decoder layer's weights."""
    return _shapes(lambda: LlamaLayer(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def llama_part(config: LlamaConfig, key: str) -> Shapes:
    """Shapes of a layer, or of the norm after the last one."""
    if key != FINAL_NORM:
        return llama_layer(config)
    return dict.fromkeys(("scale", "bias") if config.norm == LAYER_NORM else ("scale",), (config.width,))


def is_pooled(arguments: Mapping[str, Any]) -> bool:
    """Whether the encoder with these arguments is a `models.pooled_vit.PooledViT`, not a `models.vit.ViT`."""
    return "pooling" in arguments


def vit_parts(arguments: Mapping[str, Any], image_size: int) -> dict[str, Shapes]:
    """Key of each part of a vision encoder, and of the norm after its blocks -> shapes of its weights.

    Args:
      arguments: of the encoder, as its manifest records them.
      image_size: side of the images in pixels.
    """
    embedding, block, norm, pool = _vit(image_size, tuple(sorted(arguments.items())))
    blocks = {str(layer): block for layer in range(arguments["depth"])}
    return {EMBEDDING: embedding} | blocks | {NORM: norm} | ({POOL: pool} if pool else {})


@functools.lru_cache(maxsize=8)
def _vit(image_size: int, items: tuple[tuple[str, Any], ...]) -> tuple[Shapes, Shapes, Shapes, Shapes]:
    # All blocks have the same shapes.
    arguments: dict[str, Any] = dict(items) | {"depth": 1, "image_size": image_size, "channels": CHANNELS}
    make: Any = PooledViT if is_pooled(arguments) else ViT
    rest = dict(_shapes(lambda: make(**arguments, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    def take(beginning: str) -> Shapes:
        return {name.removeprefix(beginning): rest.pop(name) for name in list(rest) if name.startswith(beginning)}

    block, pool, norm = take(_BLOCK), take(f"{POOL}."), take(f"{NORM}.")
    if not norm:
        norm = _shapes(
            lambda: layer_norm(arguments["width"], eps=arguments["eps"], dtype=jnp.float32, rngs=nnx.Rngs(0))
        )
    return rest, block, norm, pool


def _shapes(make: Callable[[], nnx.Module]) -> Shapes:
    flat: Any = flatten_dict(nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param)), sep=".")
    return {name: weight.shape for name, weight in flat.items()}
