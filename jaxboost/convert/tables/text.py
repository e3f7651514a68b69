"""CLIP checkpoints with both towers: what config.json says of the text encoder, and which tensor is which weight."""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import TEXT_WEIGHTS, Part, check_tensors
from jaxboost.convert.tables.vit_names import CLIP
from jaxboost.errors import UserError
from jaxboost.models.activations import ACTIVATIONS

# Of Hugging Face's configuration class, for keys that config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_EMBEDDING_WIDTH = 512
# The type of a checkpoint with both towers; the types of those with one of the towers alone -> what it lacks.
_BOTH = "clip"
_HALVES = {
    "clip_text_model": "a text encoder without its vision encoder",
    "clip_vision_model": "a vision encoder without its text encoder",
}
_PREFIX = "text_model."
TOKENS, VISION_PROJECTION, SCALE = (
    f"{_PREFIX}embeddings.token_embedding.weight",
    "visual_projection.weight",
    "logit_scale",
)
# Our names of the weights that are in no block -> the tensors.
_OUTER = {
    "positions": f"{_PREFIX}embeddings.position_embedding.weight",
    "norm.scale": f"{_PREFIX}final_layer_norm.weight",
    "norm.bias": f"{_PREFIX}final_layer_norm.bias",
    "projection.kernel": "text_projection.weight",
}


def check_both_towers(tensors: HuggingFaceTensors) -> None:
    """Raises UserError if config.json does not describe a CLIP with a text encoder and a vision encoder."""
    found = tensors.settings.get("model_type")
    if found == _BOTH:
        return
    what = _HALVES.get(found, f"no CLIP (model_type {reprlib.repr(found)})")
    raise UserError(
        f"{tensors.source} is {what}: images and texts are compared by the projections of both: pass a CLIP that has"
        " both, such as openai/clip-vit-base-patch32"
    )


def parse_text(tensors: HuggingFaceTensors) -> tuple[dict[str, Any], Settings]:
    """Arguments of `models.text.TextEncoder`, and the text encoder's section of config.json with all defaults.

    Raises:
      UserError: `models.text.TextEncoder` cannot be this model.
    """
    # Early files have a second section, which wins in transformers.
    older, section = (tensors.settings.section(name) for name in ("text_config_dict", "text_config"))
    found, where = older if older.values else section, section.where
    settings = Settings(_DEFAULTS | {key: value for key, value in found.values.items() if value is not None}, where)
    activation = settings.get("hidden_act")
    if activation not in tuple(ACTIVATIONS):
        raise UserError(
            f"{where}: the activation is {reprlib.repr(activation)}, not one of {', '.join(ACTIVATIONS)}: choose"
            " another checkpoint"
        )
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if width % heads:
        raise UserError(f"{where}: the width {width} is not a multiple of {heads} heads")
    arguments = {
        "context": settings.integer("max_position_embeddings"),
        "width": width,
        "depth": settings.integer("num_hidden_layers", limit=MAX_LAYERS),
        "heads": heads,
        "mlp_width": settings.integer("intermediate_size"),
        "eps": settings.number("layer_norm_eps"),
        "activation": activation,
        "embedding_width": tensors.settings.integer("projection_dim", _EMBEDDING_WIDTH),
    }
    return arguments, settings


def check(tensors: HuggingFaceTensors, arguments: Mapping[str, Any], *, vocabulary: int, vision_width: int) -> None:
    """Raises one `UserError` that names every missing or misshapen tensor of the text side; see `check_tensors`.

    Args:
      tensors: the checkpoint.
      arguments: see `parse_text`.
      vocabulary: number of tokens.
      vision_width: W of the vision encoder.
    """
    width, embedding_width = arguments["width"], arguments["embedding_width"]
    wanted: dict[str, tuple[int, ...]] = {
        TOKENS: (vocabulary, width),
        VISION_PROJECTION: (embedding_width, vision_width),
        SCALE: (),
    }
    for key, of_part in shapes.text_parts(arguments).items():
        for weight, names in _names(key).items():
            shape = of_part[weight]
            if weight.endswith(".kernel"):
                shape = (shape[1] // len(names), shape[0])
            elif weight != "positions":
                shape = (shape[0] // len(names),)
            wanted |= dict.fromkeys(names, shape)
    check_tensors(
        tensors,
        wanted,
        (),
        part="CLIP's text encoder",
        whole="the text encoder and the projections that its configuration describes",
        kind="CLIP checkpoint with both towers",
    )


def parts(tensors: HuggingFaceTensors, arguments: Mapping[str, Any]) -> list[Part]:
    """The parts of the text encoder, without what depends on the classes."""

    def read(key: str, weight: str, dtype: np.dtype) -> np.ndarray:
        arrays = [tensors.read(name) for name in _names(key)[weight]]
        joined = np.concatenate([array.T if weight.endswith(".kernel") else array for array in arrays], axis=-1)
        return np.ascontiguousarray(joined, dtype)

    return [
        Part(key=key, shapes=of_part, read=lambda weight, dtype, key=key: read(key, weight, dtype))
        for key, of_part in shapes.text_parts(arguments).items()
    ]


def state_for_transformers(tensors: HuggingFaceTensors, arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All weights of transformers' `CLIPTextModelWithProjection`, float32, by its names."""
    names = {TOKENS} | {
        name for key in shapes.text_parts(arguments) for names in _names(key).values() for name in names
    }
    return {name: np.asarray(tensors.read(name), np.float32) for name in sorted(names)}


def _names(key: str) -> dict[str, tuple[str, ...]]:
    """Our name of each weight of a part -> its tensors' names."""
    if key == TEXT_WEIGHTS:
        return {weight: (name,) for weight, name in _OUTER.items()}
    return {weight: tuple(_PREFIX + name for name in names) for weight, names in CLIP.names(key).items()}
