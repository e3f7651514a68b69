"""Tiny random BLIP-2 checkpoints of transformers, every weight away from its start, and what transformers computes."""

from typing import Any

import numpy as np

from tests.convert import vision_checkpoints as vision

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
        "num_hidden_layers": 3,
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
