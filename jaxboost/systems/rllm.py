"""R-LLM from a config: checks its choices, and finds the weights of its encoder and of its block."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxboost.config.types import Config
from jaxboost.convert import encoders
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError, check_choice
from jaxboost.models import classifier
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import INITS, KINDS, PATHS, VARIANTS, check_path
from jaxboost.models.classifier import BoostSpec, Classifier
from jaxboost.models.llama import LlamaConfig
from jaxboost.systems import blocks
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.system import System, check_model, check_patch, model_arguments, texts, trace
from jaxboost.systems.weights import RANDOM, Pretrained, check_same

# The section of the config that names the LLaMA layers.
SECTION = "boost"


def prepare(
    config: Config, info: DatasetInfo, *, with_weights: bool, trained: Mapping[str, Mapping[str, Any]]
) -> System:
    """Prepares R-LLM, see `systems.prepare`."""
    model = dict(config.model)
    check_choice(model["backbone"], BACKBONES, "config field model.backbone")
    _check_input(model["backbone"], model["image_size"], info)
    check_model(model)
    _check_traits(config)
    encoder, arguments = _resolve_encoder(config, trained.get("encoder"), with_weights=with_weights)
    spec, block = _resolve_boost(trained.get("block"), with_weights=with_weights, dtype=model["dtype"], **config.boost)
    parts = (*encoder, *block)

    def build(rngs: nnx.Rngs) -> Classifier:
        return classifier.build(
            boost=spec, classes=len(info.classes), encoder_arguments=arguments, rngs=rngs, **model_arguments(config)
        )

    backbone, kind = config.model.backbone, config.boost.kind
    return System(
        **trace(build),
        title=f"{backbone} + {kind}{texts(parts)}",
        pretrained=parts,
        summary={"model": backbone, "boost": kind, "encoder": None, "block": None},
    )


def layers(config: Config) -> tuple[int, ...]:
    """The layers of a config whose `boost.layers` is empty, see `blocks.named_layers`."""
    boost = config.boost
    used = boost.kind in VARIANTS and VARIANTS[boost.kind].layer
    return blocks.named_layers(family=boost.family, block=boost.block, used=used, default=blocks.LAST)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of R-LLM's encoder and block, see `systems.check_same_weights`."""
    boost = config.boost
    # The random start of a trained encoder is not recorded.
    check_same(
        "encoder",
        config.model.weights or RANDOM,
        finished.get("encoder") or {"source": RANDOM, "sha256": ""},
        encoders.fingerprint_at,
        folder,
    )
    check_same(
        "block",
        boost.block,
        finished["block"],
        lambda path: blocks.fingerprint(path, layers=boost.layers, final_norm=boost.final_norm),
        folder,
    )


def _check_traits(config: Config) -> None:
    backbone = config.model.backbone
    traits = BACKBONES[backbone].traits
    if config.boost.kind in VARIANTS and not traits.gives_tokens:
        raise UserError(f"backbone {backbone} gives one pooled feature, no tokens: set boost.kind=none")
    if config.model.drop_path and not traits.has_stochastic_depth:
        raise UserError(f"config field model.drop_path: backbone {backbone} has no blocks to drop, set it to 0")
    if config.model.frozen and traits.has_statistics:
        raise UserError(f"config field model.frozen: the batch norms of {backbone} would still change, set it to False")


def _check_input(backbone: str, image_size: int, info: DatasetInfo) -> None:
    spec = BACKBONES[backbone]
    if spec.ndim != info.ndim:
        fitting = ", ".join(name for name, b in BACKBONES.items() if b.ndim == info.ndim)
        raise UserError(
            f"data set {info.name} is {info.ndim}-D but backbone {backbone} takes {spec.ndim}-D input:"
            f" set model.backbone to one of {fitting}"
        )
    if "patch" in spec.arguments:
        check_patch(backbone, spec.arguments["patch"], image_size)
    elif image_size <= 0:
        raise UserError(f"config field model.image_size: {image_size} should be above 0")
    if info.ndim == 3 and image_size != info.size:
        raise UserError(
            f"config field model.image_size: volumes are not resampled, set it to data.size ({info.size}), not"
            f" {image_size}"
        )


def _resolve_encoder(
    config: Config, trained: Mapping[str, Any] | None, *, with_weights: bool
) -> tuple[tuple[Pretrained, ...], dict[str, Any]]:
    """The encoder as a pretrained part, none where it starts at random and is trained, and its own arguments.

    Args:
      config: of the run.
      trained: what result.json says about the encoder, see `systems.prepare`.
      with_weights: see `systems.prepare`.
    """
    model = config.model
    spec, is_random = BACKBONES[model.backbone], model.weights in ("", RANDOM)
    if model.frozen and not model.weights:
        raise UserError(
            "config field model.frozen: an untrained encoder would stay untrained: set model.weights to the folder that"
            ' `jaxboost convert` made, or to "random": the control'
        )
    if model.frozen and model.drop_path:
        raise UserError("config field model.drop_path: it would only disturb a frozen encoder, set it to 0")
    if not is_random and spec.traits.names is None:
        fitting = ", ".join(name for name, backbone in BACKBONES.items() if backbone.traits.names)
        raise UserError(
            f"config field model.weights: backbone {model.backbone} cannot load weights, only {fitting} can:"
            " leave it empty"
        )
    if not with_weights or (is_random and not model.frozen):
        return (), {}
    if trained and not model.frozen:
        return (), dict(trained["arguments"])
    part, arguments = resolve_encoder(
        "encoder",
        model.backbone,
        model.weights,
        source=model.weights_source,
        convert_missing=model.weights_convert,
        image_size=model.image_size,
        dtype=model.dtype,
        trainable=not model.frozen,
        with_norm=spec.head_eps is not None,
    )
    return (part,), arguments


def _resolve_boost(
    trained: Mapping[str, Any] | None,
    *,
    with_weights: bool,
    dtype: str,
    kind: str,
    trainable: bool,
    rope: bool,
    causal: bool,
    path: str,
    init: str,
    **llama: Any,
) -> tuple[BoostSpec, tuple[Pretrained, ...]]:
    check_choice(kind, KINDS, "config field boost.kind")
    check_choice(path, PATHS, "config field boost.path")
    check_choice(init, INITS, "config field boost.init")
    if kind == "none":
        return BoostSpec(kind=kind), ()
    try:
        check_path(path, kind, rope=rope)
    except ValueError as error:
        raise UserError(f"config field boost.path: {error}; set it to auto") from None
    has_layer = VARIANTS[kind].layer
    # A block that was trained comes from the checkpoint: only its shape is needed.
    kept = trained if trainable else None
    if kept:
        found = blocks.Layers(config=LlamaConfig(**kept["arguments"]), numbers=kept["layers"])
    else:
        found = blocks.find_layers(SECTION, used=has_layer, default=blocks.LAST, with_weights=with_weights, **llama)
    blocks.check_rope(SECTION, found.config, used=has_layer and rope)
    spec = BoostSpec(
        kind=kind,
        config=found.config,
        depth=len(found.numbers),
        trainable=trainable,
        rope=rope,
        causal=causal,
        path=path,
        init=init,
    )
    if kept or not has_layer:
        return spec, ()
    return spec, (blocks.pretrained_layers("block", ("boost", "block"), found, trainable=trainable, dtype=dtype),)
