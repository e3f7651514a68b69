"""Finds the pretrained vision encoder that a config names, and checks that it is the config's backbone."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxboost.config.types import Config
from jaxboost.convert import encoders
from jaxboost.convert.placing import Placement
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.systems.weights import RANDOM, Pretrained, as_trained, find_converted, stored_dtype

# Two forms of one function of the encoders with a pooling: timm computes most SigLIPs' by erf, Hugging Face by tanh.
# Each encoder has its source's.
_GELUS = {"gelu", "gelu_tanh"}


def resolve_encoder(
    role: str, model: Config, fields: Config, name: str, *, trainable: bool, with_norm: bool
) -> tuple[Pretrained, dict[str, Any]]:
    """Finds the weights of a model's `encoder`, and the arguments that replace those of the backbone.

    Args:
      role, trainable: see `Pretrained`.
      model: the config's section `model`; its backbone is a key of BACKBONES.
      fields, name: a section of the config, and its field with the folder of the vision encoder, or with "random" for
        the control, a frozen random encoder. `{name}_source` and `{name}_convert` are fields of that section too.
      with_norm: whether the encoder's final norm is needed too, as the model's `head_norm`.

    Raises:
      UserError: the encoder is missing, or is another model than `backbone`.
    """
    paths = (("encoder",), ("head_norm",))[: 1 + with_norm]
    if fields[name] == RANDOM:
        about = {"source": RANDOM, "dtype": model.dtype}
        text = "a random encoder: the control without pretraining"
        return Pretrained(role=role, paths=paths, trainable=False, about=about, text=text, load=None), {}
    folder = find_converted(
        "encoder",
        fields[name],
        fields[f"{name}_source"],
        "all",
        dtype=stored_dtype(model.dtype, trainable=trainable),
        convert_missing=fields[f"{name}_convert"],
    )
    manifest = encoders.read_manifest(folder)
    _check_encoder(folder, manifest, model.backbone)
    part = Pretrained(
        role=role,
        paths=paths,
        trainable=trainable,
        about={"source": manifest.source, "dtype": manifest.dtype, "arguments": dict(manifest.arguments)},
        text=f"encoder of {manifest.source}, {'trained too' if trainable else 'frozen'}",
        load=functools.partial(_load_encoder, folder, model.image_size, trainable, with_norm),
    )
    return part, dict(manifest.arguments)


def differing(backbone: str, arguments: Mapping[str, Any]) -> list[str]:
    """The differences between the arguments of an encoder and those of a backbone, in words."""
    expected, found = BACKBONES[backbone].recorded_arguments, dict(arguments)
    if "pooling" in expected and {expected.get("activation"), found.get("activation")} == _GELUS:
        found["activation"] = expected["activation"]
    return [
        f"{name} {found.get(name)}, not {expected.get(name)}"
        for name in {**expected, **found}
        # eps may differ between checkpoints of the same model.
        if name != "eps" and (name not in expected or found.get(name) != expected[name])
    ]


def _check_encoder(folder: pathlib.Path, manifest: encoders.EncoderManifest, backbone: str) -> None:
    if problems := differing(backbone, manifest.arguments):
        fitting = [
            name for name, spec in BACKBONES.items() if spec.traits.names and not differing(name, manifest.arguments)
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
    return tuple(map(as_trained, trees)) if trainable else trees, encoder.fingerprint
