"""Checks of fields about the LLM's layers that have to fit together."""

from collections.abc import Iterator
from typing import Any

from jaxboost.config.backbone import backbone_of
from jaxboost.config.checks import Check
from jaxboost.config.types import Config


def path_problem(config: Config, architecture: Any = None) -> str | None:
    """Why `boost.path` cannot compute the booster of a config; None if it can.

    Args:
      config: with a section `boost`.
      architecture: of the booster's layers, see `boost.check_path`.
    """
    from jaxboost.models.boost import FIRST, MEAN, check_path

    boost, backbone = config.boost, backbone_of(config)
    pool = FIRST if backbone is None or backbone.traits.cls_first else MEAN
    lora = boost.lora_rank > 0
    try:
        check_path(boost.path, boost.kind, rope=boost.rope, lora=lora, pool=pool, architecture=architecture)
    except ValueError as error:
        return f"config field boost.path: {error}; set it to auto"
    return None


def path(config: Config) -> Iterator[str]:
    """The algorithm of the booster."""
    if config.boost.kind != "none" and (problem := path_problem(config)):
        yield problem


def llm(section: str) -> Check:
    """The check of the LLM's layers in a section, "boost" or "llama"."""

    def check(config: Config) -> Iterator[str]:
        from jaxboost.models.boost import has_block

        fields = config[section]
        layers = fields.layers
        if not all(isinstance(layer, int) and layer >= 0 for layer in layers):
            yield (
                f"config field {section}.layers: {layers} should be layer numbers from 0, such as (31,) or (15, 31), or"
                " () for all layers of the block"
            )
        used = fields.get("used", True) if section == "llama" else has_block(fields.kind)
        if used and fields.block == "random" and fields.final_norm == "loaded":
            yield f"config field {section}.final_norm: a random block has no norm to load, set it to ones"
        if used and fields.block == "random" and fields.adapter:
            yield f'config field {section}.adapter: a random block has no adapter: set it to "", or name a block'

    return check


def controls(config: Config) -> Iterator[str]:
    """The fields about other weights of the block, and about LoRA."""
    from jaxboost.models.boost import has_block

    boost = config.boost
    used = has_block(boost.kind)
    for field, empty in (("control", '""'), ("lora_rank", "0")):
        if boost[field] and not used:
            yield f"config field boost.{field}: boost.kind={boost.kind} has no LLM layers, set it to {empty}"
    if boost.control and used and boost.block in ("", "random"):
        named = f"is {boost.block}" if boost.block else "is empty"
        yield (
            f"config field boost.control: {boost.control} changes the weights of a converted block, but boost.block"
            f' {named}: name its folder, or set boost.control to ""'
        )
    if boost.control_seed and not boost.control:
        yield "config field boost.control_seed: it has no effect without boost.control, set it to 0"
    if boost.lora_rank and boost.trainable:
        yield (
            "config field boost.lora_rank: boost.trainable=True trains the whole matrices, set boost.lora_rank to 0 or"
            " boost.trainable to False"
        )
    if boost.lora_alpha and not boost.lora_rank:
        yield "config field boost.lora_alpha: it has no effect without boost.lora_rank, set it to 0"


def every(config: Config) -> Iterator[str]:
    """The interval of the source tokens."""
    every, backbone = config.pneumollm.every, backbone_of(config)
    # conv14 has no layers, and reads no interval.
    depth = backbone.arguments.get("depth") if backbone else None
    if depth and every > depth:
        yield f"config field pneumollm.every: {every} is more than the {depth} layers of the encoder"


def question(config: Config) -> Iterator[str]:
    """What LaVIN needs, and PneumoLLM does not have."""
    fields, llama, backbone = config.pneumollm, config.llama, backbone_of(config)
    if not fields.question:
        if fields.adapters == "mixture":
            yield (
                "config field pneumollm.adapters: the modality token that routes a mixture is LaVIN's: set"
                " pneumollm.question too, or pneumollm.adapters=rep"
            )
        return
    for field, value, wanted, why in (
        ("llama.used", llama.used, True, "the LLM answers the question"),
        ("llama.causal", llama.causal, True, "the next token is scored under the LLM's causal mask"),
        ("pneumollm.tokens", fields.tokens, "none", "LaVIN has no diagnosis tokens"),
        ("pneumollm.emitter", fields.emitter, False, "LaVIN has no diagnosis tokens to hide"),
        ("train.loss", config.get("train", {}).get("loss", "auto"), "auto", "the zero of a score means nothing"),
    ):
        if value != wanted:
            yield f"config field {field}: {why} (pneumollm.question is set): set it to {wanted}"
    yield from _own_norm(config)
    if backbone is not None and not backbone.traits.has_first_tokens:
        yield (
            f"config field model.backbone: {config.model.backbone} has no CLS tokens for pneumollm.question: choose a"
            " pretrained ViT"
        )


def blip2(config: Config) -> Iterator[str]:
    """What BLIP-2 needs."""
    from jaxboost.models.backbones import BACKBONES

    backbone = backbone_of(config)
    fitting = [name for name, row in BACKBONES.items() if row.loads_weights and row.head_eps is not None]
    if backbone is not None and config.model.backbone not in fitting:
        yield (
            f"config field model.backbone: {config.model.backbone} has no tokens with a final norm for a Q-Former: set"
            " it to blip2_vit_g14, or to the encoder that the Q-Former was trained with"
        )
    for field, value, how in (
        ("model.weights", config.model.weights, '`jaxboost convert --part encoder` made, or to "random": the control'),
        ("blip2.qformer", config.blip2.qformer, '`jaxboost convert --part qformer` made, or to "random"'),
        ("blip2.question", config.blip2.question, "`jaxboost convert --question TEXT --answers ANSWERS` made"),
    ):
        if not value:
            yield f"config field {field} is empty: set it to the folder that {how}"
    if config.train.loss != "auto":
        yield (
            f"config field train.loss: {config.train.loss} compares logits with 0, and an LLM's scores have no such"
            " meaning: set it to auto"
        )
    yield from _own_norm(config)


def _own_norm(config: Config) -> Iterator[str]:
    """The norm before an answer's score."""
    if config.llama.block != "random" and config.llama.final_norm != "loaded":
        yield "config field llama.final_norm: scores are read after the LLM's own norm: set it to loaded"
