"""Finds the question that a config names, and checks that it fits the LLM and the classes."""

import logging
from collections.abc import Sequence
from typing import Any

import jax

from jaxboost import io
from jaxboost.convert import questions
from jaxboost.convert.placing import Placement, placed
from jaxboost.errors import UserError
from jaxboost.models.question import QuestionSpec
from jaxboost.systems.blocks import Layers
from jaxboost.systems.text_encoders import Load
from jaxboost.systems.weights import RANDOM, Pretrained

ROLE = "question"
# About the length of a question, if only shapes are needed, or for a random one.
_TOKENS, _PLACE = 24, 4

logger = logging.getLogger(__name__)


def find_question(
    field: str,
    folder: str,
    *,
    classes: Sequence[str],
    layers: Layers,
    with_weights: bool,
) -> tuple[QuestionSpec, Pretrained | None]:
    """The shape of a question, and its part of the model, which is frozen and always float32.

    The part's weights are those of a `models.question.Question` that is the model's attribute `question`.

    Args:
      field: dotted name of the config field, for messages.
      folder: its value: a folder made by `jaxboost convert --question`, or "random": the control.
      classes: names, of the data set.
      layers: of the LLM.
      with_weights: whether the question is needed, or only its shape. Then a missing one has about the usual length.

    Raises:
      UserError: the question is missing or altered, belongs to another LLM, or has not one answer for each class; or
        the LLM's block lacks layers.
    """
    path = io.user_path(folder)
    if folder == RANDOM and not layers.config.rotary:
        logger.info(
            "a random question has no learned positions: the LLM's layers do not know the order of their tokens"
        )
    if folder == RANDOM or not (with_weights or path.exists()):
        spec = QuestionSpec(tokens=_TOKENS, place=_PLACE, answers=len(classes))
        about = {"source": RANDOM, "dtype": "float32"}
        text = "a random question: the control without pretraining"
        return spec, _part(about, text, None) if folder == RANDOM else None
    if not folder:
        raise UserError(
            f"config field {field} is empty: give the folder that `jaxboost convert --source SOURCE --question TEXT"
            " --answers ANSWERS` made"
        )
    manifest = questions.read_manifest(path)
    questions.check_classes(path, manifest, tuple(classes))
    questions.check_block(path, manifest, layers.manifest, layers.config.width)
    _check_whole(field, layers)
    of_classes = {name: (answer.text,) for name, answer in zip(classes, manifest.answers, strict=True)}
    about = {
        "source": manifest.source,
        "dtype": manifest.dtype,
        "question": manifest.question,
        "prompts": of_classes,
    }
    answers = ", ".join(f"{name}: {answer}" for name, (answer,) in of_classes.items())
    text = f"question of {len(manifest.tokens)} tokens of {manifest.source}, answers {answers}"
    spec = QuestionSpec(
        tokens=len(manifest.tokens),
        place=manifest.place,
        answers=len(manifest.answers),
        cap=manifest.cap,
        positions=manifest.positions,
    )

    def load(placement: Placement) -> tuple[tuple[dict[str, jax.Array], ...], str]:
        weights = {name: placed(array, placement) for name, array in questions.load(path).items()}
        return (weights,), questions.fingerprint_at(path)

    return spec, _part(about, text, load) if with_weights else None


def check_positions(field: str, spec: QuestionSpec, tokens: int) -> None:
    """Raises UserError if the LLM has learned positions, and fewer than `tokens`: those of image and question."""
    if spec.positions and tokens > spec.positions:
        raise UserError(
            f"config field {field}: the LLM has {spec.positions} positions, too few for {tokens - spec.tokens} tokens"
            f" of the image and {spec.tokens} of the question: convert a shorter question"
        )


def _check_whole(field: str, layers: Layers) -> None:
    """Raises UserError if a block lacks layers of the LLM; warns if the config leaves out some that it has."""
    block = layers.manifest
    if block is None or layers.numbers == tuple(range(block.layers_in_source)):
        return
    listed, depth = ", ".join(map(str, layers.numbers)), block.layers_in_source
    if layers.numbers == block.layers:
        raise UserError(
            f"config field llama.block: the block at {layers.folder} holds the layers {listed} of {block.source}, and"
            f" only all {depth}, in their order, answer {field}: convert it with `--part block --layers all`"
        )
    logger.warning(
        "llama.layers: the layers %s of %s answer %s, not all %d in their order: the answers' scores are not the LLM's",
        listed,
        block.source,
        field,
        depth,
    )


def _part(about: dict[str, Any], text: str, load: Load | None) -> Pretrained:
    return Pretrained(role=ROLE, paths=((ROLE,),), trainable=False, about=about, text=text, load=load)
