"""BLIP-2 from a config: the model, and the weights of its encoder, its Q-Former, its LLM and its question."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxboost import io
from jaxboost.config.types import Config
from jaxboost.convert import encoders, qformers, questions
from jaxboost.convert.placing import Placement
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models import blip2
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.blip2 import Blip2, Blip2Spec
from jaxboost.models.qformer import PUBLISHED
from jaxboost.systems import blocks
from jaxboost.systems.encoders import resolve_encoder
from jaxboost.systems.questions import check_positions, find_question
from jaxboost.systems.system import FixedTokens, Recorded, System, described, model_arguments, trace, with_attention
from jaxboost.systems.weights import RANDOM, Pretrained, as_trained, check_same, find_converted, warn_if_rounded

# The section of the config that names the LLM's layers.
SECTION = "llama"
QFORMER = "qformer"


def prepare(config: Config, info: DatasetInfo, *, with_weights: bool, recorded: Recorded | None) -> System:
    """Prepares BLIP-2, see `systems.prepare`. All but the Q-Former is frozen."""
    model, llama, fields = config.model, config.llama, config.blip2
    arguments: dict[str, Any] = {}
    parts: tuple[Pretrained, ...] = ()
    if with_weights:
        encoder, arguments = resolve_encoder("encoder", model, model, "weights", trainable=False, with_norm=True)
        parts = (encoder,)
    found = blocks.find_layers(
        SECTION, config, used=True, default=blocks.ALL, with_weights=with_weights, recorded=recorded
    )
    blocks.check_rope(SECTION, found.config, used=found.config.rotary)
    shape, qformer = _resolve_qformer(config, found, recorded, with_weights=with_weights)
    spec_of_question, question = find_question(
        "blip2.question",
        fields.question,
        classes=info.classes,
        layers=found,
        with_weights=with_weights,
    )
    if with_weights:
        layers = blocks.pretrained_layers(
            "llama",
            ("llama",),
            found,
            trainable=False,
            shards=llama.shard,
            storage=llama.weights,
            dtype=model.dtype,
        )
        parts = (*parts, *qformer, layers, *((question,) if question else ()))
    spec = Blip2Spec(
        qformer=shape,
        dropout=fields.dropout,
        llama=found.config,
        depth=len(found.numbers),
        question=spec_of_question,
        remat=llama.remat,
    )

    def build(rngs: nnx.Rngs) -> Blip2:
        return blip2.build(spec=spec, encoder_arguments=arguments, rngs=rngs, **model_arguments(config))

    traced = trace(with_attention(config, build))
    check_positions("blip2.question", spec_of_question, traced["tokens"])
    return System(
        **traced,
        title=f"{model.backbone} + blip2{described(parts)}",
        pretrained=parts,
        boost="blip2",
    )


def fixed_tokens(config: Config) -> FixedTokens:
    """The normed tokens of BLIP-2's encoder, see `systems.fixed_tokens`."""
    model = config.model
    pixels = {name: model[name] for name in ("backbone", "image_size", "mean", "std", "dtype")}
    drawn_by = "model.weights" if model.weights == RANDOM else ""
    return FixedTokens(role="encoder", key=f"blip2 {pixels}", drawn_by=drawn_by, most_gb=model.cache_gb)


def layers(config: Config) -> tuple[int, ...]:
    """The layers of a config whose `llama.layers` is empty, see `blocks.named_layers`."""
    return blocks.named_layers(config.llama, used=True, default=blocks.ALL)


def check_same_weights(config: Config, finished: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares the weights of all parts, see `systems.check_same_weights`."""
    llama, fields = config.llama, config.blip2
    for what, field, named, role, fingerprint in (
        ("encoder", "model.weights", config.model.weights, "encoder", encoders.fingerprint_at),
        ("Q-Former", "blip2.qformer", fields.qformer, QFORMER, qformers.fingerprint_at),
        ("block", "llama.block", llama.block, "llama", lambda path: blocks.fingerprint(path, llama)),
        ("question", "blip2.question", fields.question, "question", questions.fingerprint_at),
    ):
        check_same(what, field, named, finished[role], fingerprint, folder)


def _resolve_qformer(
    config: Config, llm: blocks.Layers, recorded: Recorded | None, *, with_weights: bool
) -> tuple[Mapping[str, Any], tuple[Pretrained, ...]]:
    """The Q-Former's arguments, and the Q-Former as a pretrained part, which is trained.

    Args:
      config: of the run.
      llm: the LLM's layers.
      recorded, with_weights: see `systems.prepare`. A trained Q-Former comes from the checkpoint: there is no part.
    """
    fields = config.blip2
    widths = {"context_width": BACKBONES[config.model.backbone].arguments["width"], "output_width": llm.config.width}
    kept = recorded.parts.get(QFORMER) if recorded else None
    if kept:
        return _checked(dict(kept["arguments"]), widths, config, "the finished run's Q-Former"), ()
    if fields.qformer == RANDOM:
        shape = PUBLISHED | widths
        about = {"source": RANDOM, "dtype": "float32", "arguments": shape}
        text = "a random Q-Former of the published shape"
        return shape, (_part(about, text, None),) if with_weights else ()
    if not with_weights and not os.path.exists(io.user_path(fields.qformer)):
        return PUBLISHED | widths, ()
    folder = find_converted(
        "Q-Former",
        fields.qformer,
        fields.qformer_source,
        "all",
        dtype="float32",
        convert_missing=fields.qformer_convert,
    )
    manifest = qformers.read_manifest(folder)
    shape = _checked(manifest.arguments, widths, config, f"the Q-Former at {folder} ({manifest.source})")
    if with_weights:
        warn_if_rounded("Q-Former", folder, manifest.dtype)
        weights = config.model.weights
        encoder = None if weights == RANDOM else encoders.read_manifest(io.user_path(weights))
        qformers.check_parts(folder, manifest, encoder, llm.manifest)
    about = {"source": manifest.source, "dtype": manifest.dtype, "arguments": dict(shape)}
    load = functools.partial(_load, folder)
    return shape, (_part(about, f"Q-Former of {manifest.source}, trained", load),) if with_weights else ()


def _part(about: dict[str, Any], text: str, load: Any) -> Pretrained:
    return Pretrained(role=QFORMER, paths=((QFORMER,),), trainable=True, about=about, text=text, load=load)


def _checked(found: Mapping[str, Any], widths: Mapping[str, int], config: Config, what: str) -> Mapping[str, Any]:
    """The same arguments. Raises UserError if the Q-Former does not fit the encoder or the LLM."""
    parts = {
        "context_width": f"an encoder of width {found['context_width']}, and model.backbone={config.model.backbone}",
        "output_width": f"an LLM of width {found['output_width']}, and the layers of llama.block",
    }
    for name, part in parts.items():
        if found[name] != widths[name]:
            raise UserError(
                f"{what} is for {part} has {widths[name]}: take encoder, Q-Former, layers and question from the same"
                " BLIP-2"
            )
    return found


def _load(folder: pathlib.Path, placement: Placement) -> tuple[tuple[dict[str, Any], ...], str]:
    return (as_trained(qformers.load_weights(folder, placement)),), qformers.fingerprint_at(folder)
