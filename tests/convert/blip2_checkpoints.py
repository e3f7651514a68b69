"""Tiny random BLIP-2 checkpoints of transformers, every weight away from its start, and what transformers computes."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jaxboost.convert import convert, question_text
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.vit import ViT
from tests.convert import vision_checkpoints as vision
from tests.convert.tokens import add_tokenizer

QUERIES, QUERY_WIDTH, LLM_WIDTH, VOCABULARY, IMAGE_TOKEN = 4, 16, 12, 40, 39
_EPS = 2e-3

CONFIG: dict[str, Any] = {
    "vision_config": {
        "hidden_size": vision.WIDTH,
        "num_attention_heads": vision.HEADS,
        "num_hidden_layers": 2,
        "image_size": vision.IMAGE_SIZE,
        "patch_size": vision.PATCH,
        "intermediate_size": vision.MLP_WIDTH,
        "layer_norm_eps": vision.EPS,
    },
    "qformer_config": {
        "hidden_size": QUERY_WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "layer_norm_eps": _EPS,
        "vocab_size": 8,
    },
    "text_config": {
        "model_type": "opt",
        "hidden_size": LLM_WIDTH,
        "word_embed_proj_dim": LLM_WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "ffn_dim": 20,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "num_query_tokens": QUERIES,
    "image_token_index": IMAGE_TOKEN,
}


NAME = "blip2_tiny"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
# As BLIP-2 has it: the image, the token that begins a text, the question.
QUESTION, ANSWERS = "<image><s> is it ill ? answer :", "no,yes,never"
_BACKBONE = Backbone(
    encoder=ViT,
    ndim=2,
    arguments=dict(
        patch=vision.PATCH, width=vision.WIDTH, depth=2, heads=vision.HEADS, mlp_width=vision.MLP_WIDTH, eps=vision.EPS
    ),
    head_eps=vision.EPS,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """transformers' model, and a folder with `source` and its parts `encoder`, `qformer`, `block` and `question`."""

    model: Any
    folder: pathlib.Path

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a config that name the parts."""
        return {
            "model.backbone": NAME,
            "model.weights": str(self.folder / "encoder"),
            "model.image_size": vision.IMAGE_SIZE,
            "model.mean": MEAN,
            "model.std": STD,
            "blip2.qformer": str(self.folder / "qformer"),
            "blip2.question": str(self.folder / "question"),
            "llama.block": str(self.folder / "block"),
        }


@contextlib.contextmanager
def known(folder: pathlib.Path) -> Iterator[Checkpoint]:
    """Writes the checkpoint; its encoder is in the table of backbones while the context is open."""
    model, source = tiny(), str(folder / "source")
    model.save_pretrained(source)
    add_tokenizer(source)
    for part in ("encoder", "qformer", "block"):
        convert(source, "all", folder / part, part=part)
    question_text.convert_question(source, QUESTION, ANSWERS, folder / "question")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, NAME, _BACKBONE)
        yield Checkpoint(model, folder)


def scores(model: Any, images: np.ndarray, tokens: list[int], answers: list[int]) -> np.ndarray:
    """What transformers scores of answers (B, C) after uint8 images (B, S, S, 3) and a question's tokens."""
    import torch

    pixels = (images / 255 - np.array(MEAN)) / np.array(STD)
    pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
    numbers = torch.tensor([[IMAGE_TOKEN] * QUERIES + tokens] * len(images))
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=numbers).logits[:, -1, answers].numpy()


def tiny(**changes: Any) -> Any:
    """A float32 Blip2ForConditionalGeneration with OPT; `changes` of its configuration."""
    import transformers

    model = transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(**CONFIG | changes)).eval()
    return vision.randomised(model)


def read(model: Any, tokens: np.ndarray) -> np.ndarray:
    """The Q-Former's queries (B, Q, W) for an image's tokens (B, N, E), without a mask or a text."""
    import torch

    with torch.no_grad():
        queries = model.query_tokens.expand(len(tokens), -1, -1)
        return model.qformer(queries, encoder_hidden_states=torch.from_numpy(tokens)).last_hidden_state.numpy()
