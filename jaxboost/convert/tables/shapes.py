"""Shapes of converted arrays, from tracing the models: no array is made, and no device is needed."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from jaxboost.convert.tables.parts import (
    CLASSES,
    EMBEDDING,
    FINAL_NORM,
    NORM,
    POOL,
    PROMPTS,
    TEXT_WEIGHTS,
    WHOLE,
    Shapes,
)
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.families import LAYER_NORM
from jaxboost.models.layers import layer_norm
from jaxboost.models.llama import LlamaConfig, LlamaLayer
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.qformer import QFormer
from jaxboost.models.rngs import make_rngs
from jaxboost.models.text import TextEncoder
from jaxboost.models.vit import ViT

CHANNELS = 3
# `Traits.names` of `models.vit.ViT` and `models.pooled_vit.PooledViT`.
VIT = "vit"
# The beginning of the names of the block in a ViT with one block.
_BLOCK = "transformer.last."


@functools.lru_cache(maxsize=8)
def llama_layer(config: LlamaConfig) -> Shapes:
    """Shapes of a decoder layer's weights."""
    return _shapes(lambda: LlamaLayer(config, dtype=jnp.float32, rngs=make_rngs(0)))


def llama_part(config: LlamaConfig, key: str) -> Shapes:
    """Shapes of a layer, or of the norm after the last one."""
    if key != FINAL_NORM:
        return llama_layer(config)
    return dict.fromkeys(("scale", "bias") if config.norm == LAYER_NORM else ("scale",), (config.width,))


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
    rest = dict(_shapes(lambda: make(**arguments, dtype=jnp.float32, rngs=make_rngs(0))))

    def take(beginning: str) -> Shapes:
        return {name.removeprefix(beginning): rest.pop(name) for name in list(rest) if name.startswith(beginning)}

    block, pool, norm = take(_BLOCK), take(f"{POOL}."), take(f"{NORM}.")
    if not norm:
        norm = _shapes(
            lambda: layer_norm(arguments["width"], eps=arguments["eps"], dtype=jnp.float32, rngs=make_rngs(0))
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
    encoder = nnx.eval_shape(lambda: make(**given, dtype=jnp.float32, rngs=make_rngs(0)))
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


def text_parts(arguments: Mapping[str, Any]) -> dict[str, Shapes]:
    """Key of each part of a `models.text.TextEncoder` -> shapes of its weights; `arguments`: see its manifest."""
    outer, block = _text(tuple(sorted(arguments.items())))
    return {TEXT_WEIGHTS: outer} | {str(layer): block for layer in range(arguments["depth"])}


def class_parts(arguments: Mapping[str, Any], *, classes: int, tokens: int, vision_width: int) -> dict[str, Shapes]:
    """Shapes of what depends on the classes, and of what images need beside it.

    Args:
      arguments: of the text encoder.
      classes: C.
      tokens: L, of the longest class name.
      vision_width: V, width of the vision encoder.

    Returns:
      PROMPTS: "embeddings" (C, D), which the text encoder computed. CLASSES: "names" (C, L, W), "projection" (V, D),
      "scale" (1,), which are in the checkpoint.
    """
    width, embedding_width = arguments["width"], arguments["embedding_width"]
    names = {
        "names": (classes, tokens, width),
        "projection": (vision_width, embedding_width),
        "scale": (1,),
    }
    return {CLASSES: names, PROMPTS: {"embeddings": (classes, embedding_width)}}


def question_part(*, tokens: int, answers: int, width: int, positions: int = 0) -> Shapes:
    """Shapes of the weights of a `models.question.Question` with T tokens, C answers and P learned positions."""
    found = {"tokens": (tokens, width), "answers": (answers, width), "bias": (answers,)}
    return found | ({"positions": (positions, width)} if positions else {})


def text_folder(manifest: Any) -> dict[str, Shapes]:
    """Key of each part of a converted text encoder -> shapes of its arrays; `manifest`: a `TextManifest`."""
    of_classes = class_parts(
        manifest.arguments,
        classes=len(manifest.classes),
        tokens=1 + max(each.end for each in manifest.classes),
        vision_width=manifest.vision_width,
    )
    return of_classes | text_parts(manifest.arguments)


def qformer(arguments: Mapping[str, Any]) -> Shapes:
    """Shapes of the weights of a `models.qformer.QFormer`; `arguments`: see its manifest."""
    return _shapes(lambda: QFormer(**arguments, dtype=jnp.float32, rngs=make_rngs(0)))


@functools.lru_cache(maxsize=8)
def _text(items: tuple[tuple[str, Any], ...]) -> tuple[Shapes, Shapes]:
    arguments: dict[str, Any] = dict(items) | {"depth": 1}
    found = _shapes(lambda: TextEncoder(**arguments, dtype=jnp.float32, rngs=make_rngs(0)))
    block = {name.removeprefix(_BLOCK): shape for name, shape in found.items() if name.startswith(_BLOCK)}
    return {name: shape for name, shape in found.items() if not name.startswith(_BLOCK)}, block


def _shapes(make: Callable[[], nnx.Module]) -> Shapes:
    return _flat(nnx.state(nnx.eval_shape(make), nnx.Param))


def _flat(state: Any) -> Shapes:
    # Entries of lists have numbers as names.
    flat: Any = flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): weight.shape for path, weight in flat.items()}
