"""A baseline from a config: its frozen encoder, if its classifier sees embeddings."""

import os
import pathlib
from typing import Any

from flax import nnx

from jaxboost.config.model_fields import ZERO_SHOT
from jaxboost.config.types import Config
from jaxboost.convert import encoders, text_encoders
from jaxboost.data.dataset import DatasetInfo
from jaxboost.models import embedder
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.system import Recorded, System, described, model_arguments, trace, with_attention
from jaxboost.systems.text_encoders import ROLE, find_text, text_part
from jaxboost.systems.weights import Pretrained, check_same

# There are no LLaMA layers in a baseline.
SECTION = ""
ENCODER = "encoder"


class NoEncoder(nnx.Module):
    """The model of a baseline without an encoder: it has no weights."""

    tokens = 0


def prepare(config: Config, info: DatasetInfo, *, with_weights: bool, recorded: Recorded | None) -> System:
    """Prepares the encoder of a baseline, see `systems.prepare`. The system has no trainable weights.

    A finished run has what it needs of the text encoder in its own folder.
    """
    fields = config.baseline
    parts: tuple[Pretrained, ...] = ()
    further = " and columns" if reads_columns(config) else ""
    if fields.features != ENCODER:
        on = {"none": "", "columns": " on columns"}.get(fields.features, f" on {fields.features} features{further}")
        title = f"{fields.classifier}{on}"
        return System(**trace(lambda _: NoEncoder()), title=title, pretrained=(), boost="baseline")
    arguments: dict[str, Any] = {}
    if with_weights:
        part, arguments = resolve_encoder("encoder", config.model, config.model, "weights", trainable=False)
        parts = (part,)
        if fields.classifier == ZERO_SHOT and not recorded:
            path = find_text("baseline.text", fields.text, config.model, info.classes)
            parts += (text_part(path, lambda _: ((), _text_fingerprint(path)), prompts=True),)

    def build(rngs: nnx.Rngs) -> embedder.Embedder:
        return embedder.build(encoder_arguments=arguments, rngs=rngs, **model_arguments(config))

    title = f"{fields.classifier} on embeddings of {config.model.backbone}{further}{described(parts)}"
    return System(**trace(with_attention(config, build)), title=title, pretrained=parts, boost="baseline")


def reads_columns(config: Config) -> bool:
    """Whether a baseline's classifier reads the clinical columns of `data.columns`."""
    fields = config.baseline
    return bool(config.data.columns) and fields.features != "none" and fields.classifier != ZERO_SHOT


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of a baseline's encoder, see `systems.check_same_weights`."""
    weights = config.model.weights
    check_same("encoder", "model.weights", weights, finished[ENCODER], encoders.fingerprint_at, folder)
    text, recorded = config.baseline.text, finished.get(ROLE)
    check_same("text encoder", "baseline.text", text, recorded, _text_fingerprint, folder)


def _text_fingerprint(path: str | os.PathLike) -> str:
    return text_encoders.fingerprint_at(path, prompts=True)
