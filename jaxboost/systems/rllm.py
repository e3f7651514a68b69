"""R-LLM from a config: checks the choices and finds the block's weights."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from jaxboost.convert import encoders
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError, check_choice
from jaxboost.models import classifier
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import INITS, KINDS, PATHS, VARIANTS, check_path
from jaxboost.models.classifier import BoostSpec, Classifier
from jaxboost.models.frozen import merge
from jaxboost.models.llama import LlamaConfig
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.experiment import Experiment, check_model, check_patch, model_arguments, trace
from jaxboost.systems.pretrained import (
    RANDOM,
    Pretrained,
    check_rope,
    check_same,
    llama_fingerprint,
    llama_weights,
    resolve_llama,
)


def prepare(
    config: ConfigDict, info: DatasetInfo, *, with_weights: bool, trained: Mapping[str, Mapping[str, Any]]
) -> Experiment:
    """See `systems.prepare`."""
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

    graphdef, params, frozen, stats = trace(build)
    backbone, kind = config.model.backbone, config.boost.kind
    return Experiment(
        build=build,
        graphdef=graphdef,
        params=params,
        frozen=frozen,
        stats=stats,
        pretrained=parts,
        title=f"{backbone} + {kind}" + "".join(f" ({part.text})" for part in parts),
        describe={"model": backbone, "boost": kind, "encoder": None, "block": None},
        tokens=merge(graphdef, params, frozen, stats).tokens,
    )


def check_same_weights(config: ConfigDict, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """See `systems.check_same_weights`."""
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
        lambda path: llama_fingerprint(path, layers=boost.layers, final_norm=boost.final_norm),
        folder,
    )


def _check_traits(config: ConfigDict) -> None:
    backbone = config.model.backbone
    traits = BACKBONES[backbone].traits
    if config.boost.kind in VARIANTS and not traits.gives_tokens:
        raise UserError(f"backbone {backbone} gives one pooled feature, no tokens: set boost.kind=none")
    if config.model.drop_path and not traits.has_stochastic_depth:
        raise UserError(f"config field model.drop_path: backbone {backbone} has no blocks to drop, set it to 0")
    if config.model.frozen and traits.has_statistics:
        raise UserError(
            f"config field model.frozen: the batch norms of {backbone} would go on changing, set it to False"
        )


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
    config: ConfigDict, trained: Mapping[str, Any] | None, *, with_weights: bool
) -> tuple[tuple[Pretrained, ...], dict[str, Any]]:
    """The encoder's weights, where they are not just its trained rest, and what it is built with.

    Args:
      trained: what a result says of it, see `systems.prepare`.
    """
    model = config.model
    spec, is_random = BACKBONES[model.backbone], model.weights in ("", RANDOM)
    if model.frozen and not model.weights:
        raise UserError(
            "config field model.frozen: an untrained encoder would stay as it is: set model.weights to the folder that"
            ' convert_weights.py made, or to "random": the control'
        )
    if model.frozen and model.drop_path:
        raise UserError("config field model.drop_path: it would only disturb a frozen encoder, set it to 0")
    if not is_random and spec.traits.names is None:
        fitting = ", ".join(name for name, backbone in BACKBONES.items() if backbone.traits.names)
        raise UserError(
            f"config field model.weights: there are none to read for backbone {model.backbone}, only for {fitting}:"
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
    kept = trained if trainable else None
    if kept:
        shape, depth, ref = LlamaConfig(**kept["arguments"]), len(kept["layers"]), None
    else:
        shape, depth, ref = resolve_llama("boost", reads_block=has_layer, with_weights=with_weights, **llama)
    check_rope("boost", shape, used=has_layer and rope)
    if not depth:
        raise UserError("config field boost.layers is empty, which needs a block to take them from: name them")
    spec = BoostSpec(
        kind=kind, config=shape, depth=depth, trainable=trainable, rope=rope, causal=causal, path=path, init=init
    )
    if kept or not has_layer:
        return spec, ()
    part = llama_weights(
        "block",
        ("boost", "block"),
        ref,
        shape=shape,
        layers=tuple(llama["layers"]),
        depth=depth,
        trainable=trainable,
        dtype=dtype,
    )
    return spec, (part,)
