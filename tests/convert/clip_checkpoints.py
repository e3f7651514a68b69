"""Tiny random CLIP checkpoints with both towers and a tokenizer, every weight away from its start."""

import json
import string
from pathlib import Path
from typing import Any

from tests.convert import vision_checkpoints as vision

WIDTH, HEADS, DEPTH, MLP_WIDTH, CONTEXT, EMBEDDING_WIDTH, EPS = 20, 2, 3, 28, 32, 48, 2e-3
LOGIT_SCALE = 2.0  # the logarithm of the scale
PROMPTS = {
    "dark": ["a dark image", "an image without light"],
    "grey": {"prompts": ["a grey image"], "called": "half light"},
    "light": ["a light image"],
}
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = [("a", "r"), ("i", "m"), ("im", "a"), ("l", "i"), ("t", "h"), ("a", "n</w>")]


def vocabulary() -> dict[str, int]:
    """Letters, a few merged ones, and the two special tokens at the end, as in CLIP."""
    letters = [*string.ascii_lowercase, ".", ","]
    merged = ["".join(pair) for pair in _MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    return {token: number for number, token in enumerate(tokens)}


def tiny(*, vision_config: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A CLIPModel; `changes` of the text encoder's configuration."""
    numbers = vocabulary()
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "vocab_size": len(numbers),
        "layer_norm_eps": EPS,
        "projection_dim": EMBEDDING_WIDTH,
        "bos_token_id": numbers[START],
        "eos_token_id": numbers[END],
        "pad_token_id": numbers[END],
    }
    own = vision.KINDS["clip"][1]["vision_config"] if vision_config is None else vision_config
    model = vision.tiny("clip", vision_config=own, text_config=text | changes, projection_dim=EMBEDDING_WIDTH)
    model.logit_scale.data.fill_(LOGIT_SCALE)
    return model


def write(folder: Path, model: Any | None = None) -> str:
    """Writes a checkpoint of `tiny` with its tokenizer, and returns its path."""
    (model or tiny()).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in _MERGES), ""]))
    return str(folder)


def tokenizer(folder: str) -> Any:
    """transformers' own tokenizer of a checkpoint."""
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(folder)
