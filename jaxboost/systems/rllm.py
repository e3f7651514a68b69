"""R-LLM from a config: the model, and the weights of its encoder and of its block."""

import dataclasses
import pathlib
from typing import Any

from flax import nnx

from jaxboost.config.backbone import encoder_side, slices_of
from jaxboost.config.llm_combinations import path_problem
from jaxboost.config.types import Config
from jaxboost.convert import encoders
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models import classifier
from jaxboost.models.boost import has_block
from jaxboost.models.classifier import BoostSpec, Classifier
from jaxboost.models.llama import LlamaConfig
from jaxboost.systems import blocks
from jaxboost.systems.controls import Control
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.system import FixedTokens, Recorded, System, described, model_arguments, trace, with_attention
from jaxboost.systems.weights import RANDOM, Pretrained, check_same

# The section of the config that names the LLaMA layers.
SECTION = "boost"
# Its fields that `BoostSpec` has too.
_SPEC_FIELDS = ("kind", "trainable", "rope", "causal", "path", "init", "lora_rank", "lora_alpha")


def prepare(config: Config, info: DatasetInfo, *, with_weights: bool, recorded: Recorded | None) -> System:
    """Prepares R-LLM, see `systems.prepare`."""
    encoder, arguments = _resolve_encoder(config, recorded, with_weights=with_weights)
    spec, block = _resolve_boost(config, recorded, with_weights=with_weights)
    parts, slices = (*encoder, *block), slices_of(config)

    def build(rngs: nnx.Rngs) -> Classifier:
        return classifier.build(
            boost=spec,
            classes=len(info.classes),
            slices=slices,
            columns=info.column_features,
            encoder_arguments=arguments,
            rngs=rngs,
            **model_arguments(config),
        )

    backbone, kind = config.model.backbone, config.boost.kind
    if slices:
        backbone += f" on {slices.total} slices"
    if rank := config.model.lora_rank:
        backbone += f" with LoRA of rank {rank}"
    if config.model.last_block:
        backbone += " with its last block trained"
    return System(
        **trace(with_attention(config, build)),
        title=f"{backbone} + {kind}{described(parts)}",
        pretrained=parts,
        boost=kind,
        width=spec.config.width if spec.config and not has_block(kind) else None,
    )


def fixed_tokens(config: Config) -> FixedTokens | None:
    """The tokens of R-LLM's encoder, see `systems.fixed_tokens`."""
    model = config.model
    if not model.frozen or model.last_block or model.lora_rank or model.drop_path:
        return None
    fields = {name: model[name] for name in ("backbone", "image_size", "mean", "std", "dtype")}
    if model.slices:
        fields |= {name: model[name] for name in ("slices", "slice_axes", "slice_size")}
    drawn_by = "model.weights" if model.weights == RANDOM else ""
    return FixedTokens(role="encoder", key=f"rllm {fields}", drawn_by=drawn_by, most_gb=model.cache_gb)


def layers(config: Config) -> tuple[int, ...]:
    """The layers of a config whose `boost.layers` is empty, see `blocks.named_layers`."""
    boost = config.boost
    return blocks.named_layers(boost, used=has_block(boost.kind), default=blocks.LAST)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of R-LLM's encoder and block, see `systems.check_same_weights`."""
    boost = config.boost
    # The random start of a trained encoder is not recorded.
    check_same(
        "encoder",
        "model.weights",
        config.model.weights or RANDOM,
        finished.get("encoder") or {"source": RANDOM, "sha256": ""},
        encoders.fingerprint_at,
        folder,
    )
    check_same(
        "block",
        "boost.block",
        boost.block,
        finished["block"],
        lambda path: blocks.fingerprint(path, boost),
        folder,
    )


def _resolve_encoder(
    config: Config, recorded: Recorded | None, *, with_weights: bool
) -> tuple[tuple[Pretrained, ...], dict[str, Any]]:
    """The encoder as a pretrained part, and its arguments. No part if it has a random start and is trained.

    Args:
      config: of the run.
      recorded, with_weights: see `systems.prepare`.
    """
    model = config.model
    is_random = model.weights in ("", RANDOM)
    if not with_weights or (is_random and not model.frozen):
        return (), {}
    trained = recorded and recorded.parts.get("encoder")
    if trained and not model.frozen:
        return (), dict(trained["arguments"])
    side, parts = encoder_side(config), dict(trainable=not model.frozen, partly=model.last_block)
    part, arguments = resolve_encoder("encoder", model, model, "weights", image_size=side, **parts)
    which = "lora" if model.lora_rank else "last_block" if model.last_block else "" if model.frozen else "all"
    part = dataclasses.replace(part, about={**part.about, **({"trained": which} if which else {})})
    if slices_of(config):
        inside = {"encoder": ("encoder", "encoder"), "head_norm": ("encoder", "norm")}
        paths, statistics = (tuple(inside[path[0]] for path in each) for each in (part.paths, part.statistics))
        part = dataclasses.replace(part, paths=paths, statistics=statistics)
    return (part,), arguments


def _resolve_boost(
    config: Config, recorded: Recorded | None, *, with_weights: bool
) -> tuple[BoostSpec, tuple[Pretrained, ...]]:
    fields = config.boost
    if fields.kind == "none":
        return BoostSpec(kind=fields.kind), ()
    has_layer = has_block(fields.kind)
    # A block that was trained comes from the checkpoint: only its shape is needed.
    kept = recorded.parts.get("block") if recorded and fields.trainable else None
    if kept:
        found = blocks.Layers(config=LlamaConfig.of_entries(kept["arguments"]), numbers=kept["layers"])
    else:
        found = blocks.find_layers(
            SECTION, config, used=has_layer, default=blocks.LAST, with_weights=with_weights, recorded=recorded
        )
    blocks.check_rope(SECTION, found.config, used=has_layer and fields.rope)
    if problem := path_problem(config, found.config):
        raise UserError(problem)
    own = {name: fields[name] for name in _SPEC_FIELDS}
    spec = BoostSpec(config=found.config, depth=len(found.numbers), **own)
    if kept or not has_layer:
        return spec, ()
    part = blocks.pretrained_layers(
        "block",
        ("boost", "block"),
        found,
        trainable=fields.trainable,
        dtype=config.model.dtype,
        control=Control(kind=fields.control, seed=fields.control_seed) if fields.control else None,
    )
    return spec, (part,)
