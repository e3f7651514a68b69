"""BLIP-2 checkpoints hold several models: which part of one is converted, and their relatives that are refused."""

import reprlib

from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables import llama_configs, qformer, vit_configs
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.parts import LLAMA, QFORMER, VISION
from jaxboost.convert.tables.qformer import QFormerSource
from jaxboost.convert.tables.vit import VitSource
from jaxboost.errors import UserError

# Values of --part -> kinds of converted folders.
PARTS = {"encoder": VISION, "qformer": QFORMER, "block": LLAMA}

_MODEL_TYPE, _OPT, _T5 = "blip-2", "opt", "t5"
_TWIN = "Salesforce/blip2-opt-2.7b"
# model_type of a relative -> what it is.
_RELATIVES = {
    "blip": "a BLIP, which has a text decoder of its own and no Q-Former",
    "instructblip": "an InstructBLIP, whose Q-Former reads the question too",
    "instructblipvideo": "an InstructBLIP for videos, whose Q-Former reads the question too",
}


def is_blip2(settings: Settings) -> bool:
    """Whether config.json describes a BLIP-2 whose language model is OPT.

    Raises:
      UserError: it describes a BLIP-2 with another language model, or a relative of BLIP-2.
    """
    model_type = settings.get("model_type")
    if isinstance(model_type, str) and model_type in _RELATIVES:
        raise UserError(
            f"{settings.where}: this is {_RELATIVES[model_type]}: choose a BLIP-2 with OPT, such as {_TWIN}"
        )
    if model_type != _MODEL_TYPE:
        return False
    language = settings.section("text_config").get("model_type") or _OPT
    if language != _OPT:
        what = "an encoder with a decoder (Flan-T5)" if language == _T5 else f"of the type {reprlib.repr(language)}"
        raise UserError(
            f"{settings.where}: the language model of this BLIP-2 is {what}, not OPT: choose its twin with OPT, such as"
            f" {_TWIN}"
        )
    return True


def check_part(part: str | None, kind: str, source: str) -> None:
    """Raises UserError if a source, which is of a kind of `parts`, is not the stated part, a key of PARTS."""
    if part is not None and PARTS[part] != kind:
        (found,) = (name for name, each in PARTS.items() if each == kind)
        raise UserError(f"--part {part}: {source} has none, it is converted with --part {found} or without --part")


def part_of(tensors: HuggingFaceTensors, part: str | None) -> LlamaSource | VitSource | QFormerSource:
    """A part of a BLIP-2 in Hugging Face's layout.

    Args:
      tensors: the checkpoint.
      part: a key of PARTS.

    Raises:
      UserError: `part` is None; or config.json describes a part that the models cannot be.
    """
    if part is None:
        raise UserError(
            f"{tensors.source} is a BLIP-2, which holds several models: say which with --part {', '.join(PARTS)}, or"
            " with --question"
        )
    of_part = {
        "encoder": vit_configs.encoder_of,
        "qformer": qformer.qformer_of,
        "block": llama_configs.of_hugging_face,
    }
    return of_part[part](tensors)
