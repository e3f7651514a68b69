"""Finds CLIP's text encoder that a config names, and checks that it fits the encoder of the images and the classes."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxboost import io
from jaxboost.config.types import Config
from jaxboost.convert import text_encoders
from jaxboost.convert.placing import Placement
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.systems.weights import RANDOM, Pretrained

ROLE = "text"
Load = Callable[[Placement], tuple[tuple[dict[str, Any], ...], str]]


def find_text(field: str, folder: str, model: Config, classes: Sequence[str]) -> pathlib.Path:
    """The folder of the text encoder.

    Args:
      field: dotted name of the config field, for messages.
      folder: its value.
      model: the config's section `model`, which names the encoder of the images.
      classes: names, of the data set.

    Raises:
      UserError: the text encoder is missing or altered, belongs to another encoder of images, or has prompts for other
        classes; or the encoder of images is rounded more than `model.dtype`.
    """
    if not folder:
        raise UserError(
            f"config field {field} is empty: give the folder that `jaxboost convert --source SOURCE --prompts FILE`"
            " made"
        )
    path = io.user_path(folder)
    manifest = text_encoders.read_manifest(path)
    text_encoders.check_classes(path, manifest, classes)
    width = BACKBONES[model.backbone].arguments["width"]
    if model.weights != RANDOM:
        text_encoders.check_vision(path, io.user_path(model.weights), dtype=model.dtype)
    elif width != manifest.vision_width:
        raise UserError(
            f"the text encoder at {path} ({manifest.source}) belongs to a vision encoder of width"
            f" {manifest.vision_width}, and model.backbone={model.backbone} has {width}: choose the backbone of the"
            " same CLIP"
        )
    return path


def text_part(path: pathlib.Path, load: Load, paths: tuple[tuple[str, ...], ...] = (), *, prompts: bool) -> Pretrained:
    """The text encoder as a pretrained part, which is frozen.

    Args:
      path: its folder.
      load, paths: see `Pretrained`; without paths it has no weights in the model.
      prompts: whether the prompts are read, or what CoOp puts behind its context.
    """
    manifest = text_encoders.read_manifest(path)
    about = {
        "source": manifest.source,
        "dtype": manifest.dtype,
        "arguments": dict(manifest.arguments),
        "prompts": {each.name: each.prompts if prompts else (each.called,) for each in manifest.classes},
    }
    text = f"text encoder of {manifest.source}, prompts for {len(manifest.classes)} classes"
    return Pretrained(role=ROLE, paths=paths, trainable=False, about=about, text=text, load=load)
