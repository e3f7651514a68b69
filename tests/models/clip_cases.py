"""A tiny CLIP checkpoint, converted, and the row of the table of backbones that its vision encoder is."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from jaxboost.convert import class_prompts, convert
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.text import TEXT_ENCODERS
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

TEXT = dict(
    context=clip.CONTEXT,
    width=clip.WIDTH,
    depth=clip.DEPTH,
    heads=clip.HEADS,
    mlp_width=clip.MLP_WIDTH,
    eps=clip.EPS,
    activation="quick_gelu",
    embedding_width=clip.EMBEDDING_WIDTH,
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


@contextlib.contextmanager
def known(folder: pathlib.Path) -> Iterator[Checkpoint]:
    """Writes the checkpoint; its encoders are in the tables of encoders while the context is open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, NAME, BACKBONE)
        patch.setitem(TEXT_ENCODERS, NAME, TEXT)
        yield write(folder)
