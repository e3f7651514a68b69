"""PneumoLLM from a config: the model, and the weights of its encoder and of LLaMA."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxboost.config.types import Config
from jaxboost.convert import encoders
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models import pneumollm
from jaxboost.models.pneumollm import ENCODERS, PneumoLLM, PneumoSpec
from jaxboost.systems import blocks
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.system import System, model_arguments, texts, trace
from jaxboost.systems.weights import RANDOM, Pretrained, check_same

# The section of the config that names the LLaMA layers.
SECTION = "llama"


def prepare(
    config: Config, info: DatasetInfo, *, with_weights: bool, trained: Mapping[str, Mapping[str, Any]]
) -> System:
    """Prepares PneumoLLM, see `systems.prepare`. Its pretrained parts are all frozen."""
    del trained
    backbone = config.model.backbone
    vision, arguments = _resolve_vision(config, with_weights=with_weights)
    spec, llama = _resolve_llama(config, with_weights=with_weights)
    parts = tuple(part for part in (vision, llama) if part is not None)

    def build(rngs: nnx.Rngs) -> PneumoLLM:
        return pneumollm.build(
            spec=spec, classes=len(info.classes), encoder_arguments=arguments, rngs=rngs, **model_arguments(config)
        )

    return System(
        **trace(build),
        title=f"{backbone} + pneumollm{texts(parts)}",
        pretrained=parts,
        summary={"model": backbone, "boost": "pneumollm", "vision": None, "llama": None},
        encoder_key=None if not _is_pretrained(backbone) or spec.vision_adapters else f"{config.model} {spec.every}",
    )


def layers(config: Config) -> tuple[int, ...]:
    """The layers of a config whose `llama.layers` is empty, see `blocks.named_layers`."""
    llama = config.llama
    return blocks.named_layers(family=llama.family, block=llama.block, used=llama.used, default=blocks.ALL)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of PneumoLLM's encoder and layers, see `systems.check_same_weights`."""
    llama = config.llama
    check_same("encoder", config.pneumollm.vision, finished["vision"], encoders.fingerprint_at, folder)
    check_same(
        "block",
        llama.block,
        finished["llama"],
        lambda path: blocks.fingerprint(path, layers=llama.layers, final_norm=llama.final_norm),
        folder,
    )


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
            raise UserError(
                'config field pneumollm.vision is empty: give the folder that `jaxboost convert` made, or "random"'
            )
    return resolve_encoder(
        "vision",
        backbone,
        fields.vision,
        source=fields.vision_source,
        convert_missing=fields.vision_convert,
        image_size=config.model.image_size,
        dtype=config.model.dtype,
        trainable=False,
        with_norm=False,
    )


def _resolve_llama(config: Config, *, with_weights: bool) -> tuple[PneumoSpec, Pretrained | None]:
    fields, llama = dict(config.pneumollm), dict(config.llama)
    for name in ("vision", "vision_source", "vision_convert"):
        fields.pop(name)
    if not _is_pretrained(config.model.backbone):
        fields["vision_adapters"] = False
    used, remat, shards, causal, storage = (llama.pop(name) for name in ("used", "remat", "shard", "causal", "weights"))
    if not used:
        llama |= {"final_norm": "ones"}
    found = blocks.find_layers(SECTION, used=used, default=blocks.ALL, with_weights=with_weights, **llama)
    blocks.check_rope(SECTION, found.config, used=used)
    spec = PneumoSpec(llama=found.config, depth=len(found.numbers) if used else 0, causal=causal, remat=remat, **fields)
    if not used:
        return spec, None
    part = blocks.pretrained_layers(
        "llama", ("llama",), found, trainable=False, shards=shards, storage=storage, dtype=config.model.dtype
    )
    return spec, part
