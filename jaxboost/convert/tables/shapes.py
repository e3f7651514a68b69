"""Shapes of converted arrays, from tracing the models: no array is made, and no device is needed."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from jaxboost.convert.tables.parts import EMBEDDING, FINAL_NORM, NORM, POOL, WHOLE, Shapes
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.layers import layer_norm
from jaxboost.models.llama import LlamaConfig, LlamaLayer
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.vit import ViT

CHANNELS = 3
# `Traits.names` of `models.vit.ViT` and `models.pooled_vit.PooledViT`.
VIT = "vit"
# The beginning of the names of the block in a ViT with one block.
_BLOCK = "transformer.last."


@functools.lru_cache(maxsize=8)
def llama_layer(config: LlamaConfig) -> Shapes:
    """Shapes of a decoder layer's weights."""
    return _shapes(lambda: LlamaLayer(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def llama_part(config: LlamaConfig, key: str) -> Shapes:
    """Shapes of a layer, or of the norm after the last one."""
    return {"scale": (config.width,)} if key == FINAL_NORM else llama_layer(config)


def is_pooled(arguments: Mapping[str, Any]) -> bool:
    """Whether the encoder with these arguments is a `models.pooled_vit.PooledViT`, not a `models.vit.ViT`."""
    return "pooling" in arguments


def vit_parts(arguments: Mapping[str, Any], image_size: int) -> dict[str, Shapes]:
    """Key of each part of a ViT, and of the norm after its blocks -> shapes of its weights.

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


def parts_of(family: str, arguments: Mapping[str, Any], image_size: int) -> dict[str, Shapes]:
    """Key of each part of an encoder of any family -> shapes of its weights and statistics.

    Args:
      family: `Traits.names` of the encoder.
      arguments: of the encoder, as its manifest records them.
      image_size: side of a ViT's images in pixels; the arrays of other encoders do not depend on it.
    """
    if family == VIT:
        return vit_parts(arguments, image_size)
    return _whole(family, tuple(sorted(arguments.items())))


@functools.lru_cache(maxsize=8)
def _whole(family: str, items: tuple[tuple[str, Any], ...]) -> dict[str, Shapes]:
    arguments = dict(items)
    rows = [row for row in BACKBONES.values() if row.traits.names == family]
    image_size = next((size for size in range(1, 1 << 14) if not rows[0].traits.size_problem(size, arguments)), 0)
    open_arguments = {name: values[0] for name, values in rows[0].traits.open.items() if values}
    make: Any = rows[0].encoder
    given = {**open_arguments, **arguments, "image_size": image_size, "channels": CHANNELS}
    encoder = nnx.eval_shape(lambda: make(**given, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    parts = {WHOLE: _flat(nnx.state(encoder, nnx.Any(nnx.Param, nnx.BatchStat)))}
    if rows[0].head_eps is not None:
        parts[NORM] = {"scale": (encoder.width,), "bias": (encoder.width,)}
    return parts


def keys_of(family: str, arguments: Mapping[str, Any]) -> list[str]:
    """The keys of the parts of an encoder."""
    if family == VIT:
        return [EMBEDDING, *map(str, range(arguments["depth"])), NORM, *[POOL] * is_pooled(arguments)]
    has_norm = any(row.head_eps is not None for row in BACKBONES.values() if row.traits.names == family)
    return [WHOLE, *[NORM] * has_norm]


def _shapes(make: Callable[[], nnx.Module]) -> Shapes:
    return _flat(nnx.state(nnx.eval_shape(make), nnx.Param))


def _flat(state: Any) -> Shapes:
    # Entries of lists have numbers as names.
    flat: Any = flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): weight.shape for path, weight in flat.items()}
