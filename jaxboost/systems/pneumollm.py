"""PneumoLLM or LaVIN from a config: the model, and the weights of its encoder, of LLaMA and of LaVIN's question."""

import logging
import pathlib
from typing import Any

from flax import nnx

from jaxboost.config.types import Config
from jaxboost.convert import encoders, questions
from jaxboost.data.dataset import DatasetInfo
from jaxboost.models import lavin, pneumollm
from jaxboost.models.image_llm import ENCODERS
from jaxboost.models.lavin import Lavin, LavinSpec
from jaxboost.models.pneumollm import PneumoLLM, PneumoSpec
from jaxboost.systems import blocks
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.questions import ROLE as QUESTION
from jaxboost.systems.questions import check_positions, find_question
from jaxboost.systems.system import FixedTokens, Recorded, System, described, model_arguments, trace, with_attention
from jaxboost.systems.weights import RANDOM, Pretrained, check_same, empty

# The section of the config that names the LLaMA layers.
SECTION = "llama"

logger = logging.getLogger(__name__)


def prepare(config: Config, info: DatasetInfo, *, with_weights: bool, recorded: Recorded | None) -> System:
    """Prepares PneumoLLM, or LaVIN, see `systems.prepare`. The pretrained parts are all frozen."""
    backbone, name = config.model.backbone, "lavin" if config.pneumollm.question else "pneumollm"
    vision, arguments = _resolve_vision(config, with_weights=with_weights)
    found, llama = _resolve_llama(config, recorded, with_weights=with_weights)
    spec, question = _resolve_spec(config, info, found, with_weights=with_weights)
    parts = tuple(part for part in (vision, llama, question) if part is not None)

    def build(rngs: nnx.Rngs) -> PneumoLLM | Lavin:
        given: dict[str, Any] = dict(encoder_arguments=arguments, rngs=rngs, **model_arguments(config))
        if isinstance(spec, LavinSpec):
            return lavin.build(spec=spec, **given)
        return pneumollm.build(spec=spec, classes=len(info.classes), columns=info.column_features, **given)

    traced = trace(with_attention(config, build))
    if isinstance(spec, LavinSpec):
        check_positions("pneumollm.question", spec.question, traced["tokens"])
    return System(
        **traced,
        title=f"{backbone} + {name}{described(parts)}",
        pretrained=parts,
        boost=name,
        width=None if spec.depth else spec.llama.width,
    )


def fixed_tokens(config: Config) -> FixedTokens | None:
    """The tokens of PneumoLLM's encoder, see `systems.fixed_tokens`."""
    fields = config.pneumollm
    if fields.vision_adapters or not _is_pretrained(config.model.backbone):
        return None
    drawn_by = "pneumollm.vision" if fields.vision == RANDOM else ""
    return FixedTokens(role="vision", key=f"{config.model} {fields.every}", drawn_by=drawn_by)


def layers(config: Config) -> tuple[int, ...]:
    """The layers of a config whose `llama.layers` is empty, see `blocks.named_layers`."""
    return blocks.named_layers(config.llama, used=config.llama.used, default=blocks.ALL)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of encoder, layers and question, see `systems.check_same_weights`."""
    llama, vision = config.llama, config.pneumollm.vision
    check_same("encoder", "pneumollm.vision", vision, finished["vision"], encoders.fingerprint_at, folder)
    check_same(
        "block",
        "llama.block",
        llama.block,
        finished["llama"],
        lambda path: blocks.fingerprint(path, llama),
        folder,
    )
    question = config.pneumollm.question
    check_same("question", "pneumollm.question", question, finished[QUESTION], questions.fingerprint_at, folder)


def _is_pretrained(backbone: str) -> bool:
    return ENCODERS[backbone].traits.has_first_tokens


def _resolve_vision(config: Config, *, with_weights: bool) -> tuple[Pretrained | None, dict[str, Any]]:
    """The encoder's weights (None if it is trained), and the arguments that replace those of the backbone."""
    backbone, fields = config.model.backbone, config.pneumollm
    if not _is_pretrained(backbone):
        return None, {}
    if fields.vision != RANDOM:
        if not with_weights:
            return None, {}
        if not fields.vision:
            raise empty("pneumollm.vision")
    return resolve_encoder("vision", config.model, fields, "vision", trainable=False, with_norm=False)


def _resolve_llama(
    config: Config, recorded: Recorded | None, *, with_weights: bool
) -> tuple[blocks.Layers, Pretrained | None]:
    """The LLM's layers, and their part; None if they are not used."""
    llama = config.llama
    found = blocks.find_layers(
        SECTION, config, used=llama.used, default=blocks.ALL, with_weights=with_weights, recorded=recorded
    )
    # `find_question` says what a question has of them.
    if llama.used and not found.config.rotary and not config.pneumollm.question:
        logger.info("the learned positions of the LLM are left out: its layers do not know the order of their tokens")
    blocks.check_rope(SECTION, found.config, used=llama.used and found.config.rotary)
    if not llama.used:
        return found, None
    part = blocks.pretrained_layers(
        "llama",
        ("llama",),
        found,
        trainable=False,
        shards=llama.shard,
        storage=llama.weights,
        dtype=config.model.dtype,
    )
    return found, part


def _resolve_spec(
    config: Config, info: DatasetInfo, found: blocks.Layers, *, with_weights: bool
) -> tuple[PneumoSpec | LavinSpec, Pretrained | None]:
    """The shape of the model, and LaVIN's question."""
    fields, llama = config.pneumollm, config.llama
    shared: dict[str, Any] = dict(
        llama=found.config,
        depth=len(found.numbers) if llama.used else 0,
        every=fields.every,
        adapters=fields.adapters,
        vision_adapters=fields.vision_adapters and _is_pretrained(config.model.backbone),
        llama_adapters=fields.llama_adapters,
        causal=llama.causal,
        remat=llama.remat,
    )
    if not fields.question:
        return PneumoSpec(tokens=fields.tokens, count=fields.count, emitter=fields.emitter, **shared), None
    question, part = find_question(
        "pneumollm.question",
        fields.question,
        classes=info.classes,
        layers=found,
        with_weights=with_weights,
    )
    return LavinSpec(question=question, **shared), part
