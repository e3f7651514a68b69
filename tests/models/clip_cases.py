"""A tiny CLIP checkpoint, converted, and the row of the table of backbones that its vision encoder is."""

import dataclasses
import pathlib
from typing import Any

from jaxboost.convert import class_prompts, convert
from jaxboost.models.backbones import Backbone
from jaxboost.models.vit import ViT
from tests.convert import clip_checkpoints as clip
from tests.convert import vision_checkpoints as vision

NAME, SIDE, PATCH = "clip_tiny", 14, 7
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CLASSES = ("dark", "grey", "light")
# In another order than the classes.
PROMPTS = {
    "light": ["a light image"],
    "dark": {"prompts": ["a dark image"], "called": "without light"},
    "grey": ["a grey image"],
}
BACKBONE = Backbone(
    encoder=ViT,
    ndim=2,
    arguments=dict(
        patch=PATCH,
        width=vision.WIDTH,
        depth=vision.DEPTH,
        heads=vision.HEADS,
        mlp_width=vision.MLP_WIDTH,
        eps=vision.EPS,
        activation="quick_gelu",
        patch_bias=False,
        pre_norm=True,
    ),
    head_eps=vision.EPS,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """transformers' model, and a folder with `source`, the text encoder `text` and the vision encoder `vision`."""

    model: Any
    folder: pathlib.Path


def write(folder: pathlib.Path) -> Checkpoint:
    own = vision.KINDS["clip"][1]["vision_config"] | {"patch_size": PATCH, "image_size": SIDE}
    model = clip.tiny(vision_config=own)
    source = clip.write(folder / "source", model)
    class_prompts.convert_text(source, PROMPTS, folder / "text")
    convert(source, "all", folder / "vision")
    return Checkpoint(model, folder)
