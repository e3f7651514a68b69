"""Finds the pretrained vision encoder that a config names, and checks that it is the config's backbone."""

import functools
import pathlib
from typing import Any

import numpy as np

from jaxboost.config.types import Config
from jaxboost.convert import encoders
from jaxboost.convert.placing import Placement
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.systems.weights import (
    RANDOM,
    Pretrained,
    as_trained,
    find_converted,
    stored_dtype,
    warn_if_rounded,
    warn_once,
)


def resolve_encoder(
    role: str,
    model: Config,
    fields: Config,
    name: str,
    *,
    trainable: bool,
    partly: bool = False,
    with_norm: bool = True,
    image_size: int | None = None,
) -> tuple[Pretrained, dict[str, Any]]:
    """Finds the weights of a model's `encoder`, and the arguments that replace those of the backbone.

    Args:
      role, trainable, partly: see `Pretrained`.
      model: the config's section `model`; its backbone is a key of BACKBONES.
      fields, name: a section of the config, and its field with the folder of the vision encoder, or with "random" for
        the control, a frozen random encoder. `{name}_source` and `{name}_convert` are fields of that section too.
      with_norm: whether the encoder's final norm is needed too, as the model's `head_norm`, if its backbone has one.
      image_size: side of the images that the encoder sees; None: that of `model`.

    Raises:
      UserError: the encoder is missing, or is another model than `backbone`.
    """
    row = BACKBONES[model.backbone]
    with_norm = with_norm and row.head_eps is not None
    paths = (("encoder",), ("head_norm",))[: 1 + with_norm]
    # Running statistics need float32.
    frozen_dtype = stored_dtype(model.dtype, trainable=row.traits.has_statistics)
    if fields[name] == RANDOM:
        about = {"source": RANDOM, "dtype": frozen_dtype}
        text = "a random encoder: the control without pretraining"
        # The stem of a ResNet depends on the image size, unless weights decide it: the control has theirs.
        arguments = {"stem": "large"} if row.traits.names == "resnet" else {}
        given: dict[str, Any] = dict(role=role, paths=paths, trainable=False, partly=partly)
        return Pretrained(**given, about=about, text=text, load=None), arguments
    folder = find_converted(
        "encoder",
        fields[name],
        fields[f"{name}_source"],
        "all",
        dtype=stored_dtype(frozen_dtype, trainable=trainable or partly),
        convert_missing=fields[f"{name}_convert"],
    )
    manifest = encoders.read_manifest(folder)
    _check_encoder(folder, manifest, model.backbone)
    if text := other_pixels(manifest, model):
        warn_once(text)
    if trainable or partly:
        warn_if_rounded("encoder", folder, manifest.dtype)
    trained = "trained too" if trainable else "frozen but for its last block" if partly else "frozen"
    part = Pretrained(
        role=role,
        paths=paths,
        statistics=(("encoder",),) if row.traits.has_statistics else (),
        trainable=trainable,
        partly=partly,
        kept_dtype=frozen_dtype if partly else None,
        about={"source": manifest.source, "dtype": manifest.dtype, "arguments": dict(manifest.arguments)},
        text=f"encoder of {manifest.source}, {trained}",
        load=functools.partial(_load_encoder, folder, image_size or model.image_size, trainable, with_norm),
    )
    return part, dict(manifest.arguments)


def other_pixels(manifest: encoders.EncoderManifest, model: Config) -> str | None:
    """What to tell the user if the config normalises pixels otherwise than in the encoder's training; None: nothing."""
    trained = {"mean": manifest.pixel_mean, "std": manifest.pixel_std}
    other = [
        name
        for name, value in trained.items()
        if value and not np.allclose(value, tuple(model[name]), rtol=0, atol=2e-3)
    ]
    if not other:
        return None
    fix = " ".join(f"--config.model.{name}={','.join(f'{each:.9g}' for each in trained[name] or ())}" for name in other)
    have = ", ".join(f"model.{name}={','.join(f'{each:.9g}' for each in model[name])}" for name in other)
    return f"the encoder of {manifest.source} was trained on pixels of another scale than {have}: it had {fix}"


def _check_encoder(folder: pathlib.Path, manifest: encoders.EncoderManifest, backbone: str) -> None:
    def same_family(name: str) -> bool:
        return BACKBONES[name].traits.names == manifest.family

    problems = BACKBONES[backbone].differing(manifest.arguments)
    if not same_family(backbone):
        problems = [f"the architecture {manifest.family}, not {BACKBONES[backbone].traits.names}"]
    if problems:
        fitting = [
            name for name in BACKBONES if same_family(name) and not BACKBONES[name].differing(manifest.arguments)
        ]
        fix = f"choose the backbone that it is, {' or '.join(fitting)}" if fitting else "no backbone fits it"
        raise UserError(
            f"the encoder at {folder} ({manifest.source}) has {', '.join(problems)} as model.backbone={backbone} has:"
            f" {fix}"
        )


def _load_encoder(
    folder: pathlib.Path, image_size: int, trainable: bool, with_norm: bool, placement: Placement
) -> tuple[tuple[dict[str, Any], ...], str]:
    encoder = encoders.load_encoder(folder, image_size=image_size, placement=placement)
    trees = (encoder.weights, encoder.norm)[: 1 + with_norm]
    trees = tuple(map(as_trained, trees)) if trainable else trees
    # Statistics are always float32.
    return (*trees, *map(as_trained, [encoder.statistics] if encoder.statistics else [])), encoder.fingerprint
