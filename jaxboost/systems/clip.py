"""CoOp and CoCoOp from a config: the model, and the weights of CLIP's two encoders, which are frozen."""

import os
import pathlib
from typing import Any

import numpy as np
from flax import nnx

from jaxboost.config.types import Config
from jaxboost.convert import encoders, text_encoders
from jaxboost.convert.placing import Placement, placed
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models import prompted_clip
from jaxboost.models.prompted_clip import PromptedClip, PromptSpec
from jaxboost.models.text import TEXT_ENCODERS
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.system import FixedTokens, Recorded, System, described, model_arguments, trace, with_attention
from jaxboost.systems.text_encoders import ROLE, find_text, text_part
from jaxboost.systems.weights import RANDOM, Pretrained, check_same

# There are no LLaMA layers in CLIP.
SECTION = ""
# The place of the end in a class name of one token and a full stop, if no text encoder is read.
_END = 3


def prepare(config: Config, info: DatasetInfo, *, with_weights: bool, recorded: Recorded | None) -> System:
    """Prepares CoOp or CoCoOp, see `systems.prepare`. Both encoders are frozen."""
    del recorded
    fields, model = config.clip, config.model
    parts: tuple[Pretrained, ...] = ()
    arguments: dict[str, Any] = {}
    if with_weights:
        # First, because it may have to be converted, and the text encoder is compared with it.
        part, arguments = resolve_encoder("encoder", model, model, "weights", trainable=False, with_norm=True)
        path = find_text("clip.text", fields.text, model, info.classes)
        manifest = text_encoders.read_manifest(path)
        ends = {each.name: each.end for each in manifest.classes}
        spec = _spec(config, dict(manifest.arguments), tuple(ends[name] for name in info.classes))
        parts = (
            part,
            text_part(path, lambda placement: _load(path, info, placement), (("text",), ("classes",)), prompts=False),
        )
    else:
        spec = _spec(config, TEXT_ENCODERS[model.backbone], (_END,) * len(info.classes))

    def build(rngs: nnx.Rngs) -> PromptedClip:
        return prompted_clip.build(spec=spec, encoder_arguments=arguments, rngs=rngs, **model_arguments(config))

    return System(
        **trace(with_attention(config, build)),
        title=f"{model.backbone} + {fields.method}{described(parts)}",
        pretrained=parts,
        boost=fields.method,
    )


def fixed_tokens(config: Config) -> FixedTokens:
    """The normed CLS token of CLIP's encoder of images, see `systems.fixed_tokens`."""
    model = config.model
    pixels = {name: model[name] for name in ("backbone", "image_size", "mean", "std", "dtype")}
    drawn_by = "model.weights" if model.weights == RANDOM else ""
    return FixedTokens(role="encoder", key=f"clip {pixels}", drawn_by=drawn_by)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of both encoders, see `systems.check_same_weights`."""
    weights, text = config.model.weights, config.clip.text
    check_same("encoder", "model.weights", weights, finished["encoder"], encoders.fingerprint_at, folder)
    check_same("text encoder", "clip.text", text, finished[ROLE], _fingerprint, folder)


def _spec(config: Config, text: dict[str, Any], ends: tuple[int, ...]) -> PromptSpec:
    fields = config.clip
    spec = PromptSpec(method=fields.method, context=fields.context, text=text, ends=ends)
    if spec.context + spec.tokens > text["context"]:
        raise UserError(
            f"config field clip.context: {spec.context} vectors and the {spec.tokens} tokens of the longest class name"
            f" are more than the text encoder's {text['context']}: set it to {text['context'] - spec.tokens} or less"
        )
    return spec


def _load(path: pathlib.Path, info: DatasetInfo, placement: Placement) -> tuple[tuple[dict[str, Any], ...], str]:
    found = text_encoders.load_classes(path, info.classes)
    arrays = {"names": found.names, "projection": found.projection, "scale": np.full(1, found.scale, np.float32)}
    of_classes = {name: placed(array, placement) for name, array in arrays.items()}
    return (text_encoders.load_weights(path, placement), of_classes), _fingerprint(path)


def _fingerprint(path: str | os.PathLike) -> str:
    return text_encoders.fingerprint_at(path, prompts=False)
