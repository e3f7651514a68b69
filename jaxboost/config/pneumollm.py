"""The shared part of PneumoLLM's configs, and the rows of its tables: --config configs/pneumollm.py:ROW."""

import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.table import get_pneumollm_config

# The normalisation that CLIP was trained with (Radford et al. 2021, the released code).
CLIP_PIXELS: dict[str, object] = {
    "model.mean": (0.48145466, 0.4578275, 0.40821073),
    "model.std": (0.26862954, 0.26130258, 0.27577711),
}
# Table 6 from top to bottom, Tables 4 and 5, Figure 6, and a control with random layers, which the paper lacks.
ROWS: dict[str, dict[str, object]] = {
    "baseline": {
        "pneumollm.tokens": "none",
        "pneumollm.emitter": False,
        "pneumollm.vision_adapters": False,
        "pneumollm.llama_adapters": False,
    },
    "simplified": {"pneumollm.tokens": "none", "pneumollm.emitter": False},
    "coop": {"pneumollm.tokens": "coop", "pneumollm.emitter": False},
    "cocoop": {"pneumollm.tokens": "cocoop", "pneumollm.emitter": False},
    "engine": {"pneumollm.emitter": False},
    "full": {},
    # The width is that of `llama.family`, so that nobody has to convert a LLaMA for it.
    "no_llama": {"llama.used": False, "llama.block": ""},
    "random_llama": {"llama.block": "random", "llama.final_norm": "ones"},
    **{f"m{count}": {"pneumollm.count": count} for count in (1, 2, 4, 6, 8)},
    # The encoders of Figure 6.
    "conv14": {"model.backbone": "conv14", "pneumollm.vision": "", "pneumollm.vision_adapters": False},
    "vit_b16": {
        "model.backbone": "vit_b16",
        "pneumollm.every": 2,
        "pneumollm.vision": "blocks/vit-b16",
        "pneumollm.vision_source": "google/vit-base-patch16-224-in21k",
    },
    "vit_l16": {
        "model.backbone": "vit_l16",
        "pneumollm.vision": "blocks/vit-l16",
        "pneumollm.vision_source": "google/vit-large-patch16-224-in21k",
    },
    "clip_vit_l14": {
        "model.backbone": "clip_vit_l14",
        "pneumollm.vision": "blocks/clip-vit-l14",
        "pneumollm.vision_source": "openai/clip-vit-large-patch14",
    },
}
REFERENCE = {"eval.protocol": "reference", "train.loss": "columns", "train.last_batch": "keep"}


def radiographs() -> ConfigDict:
    """Config of the paper's model on a folder of radiographs, in five folds by patient."""
    config: Any = get_pneumollm_config()
    config.data.source = "folder"
    config.data.name = "radiographs"
    config.data.size = 224
    config.data.classes = ("normal", "pneumoconiosis")
    config.data.folds = 5
    config.model.image_size = 224
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.model.dtype = "bfloat16"
    config.update_from_flattened_dict(ROWS["clip_vit_l14"])
    config.llama.block = "blocks/llama-7b-all"
    config.llama.source = "huggyllama/llama-7b"
    config.optim.lr = 3e-4
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.02
    config.optim.warmup_epochs = 2.0
    config.optim.warmup_from = 5e-7
    config.optim.final_lr = 1e-7
    config.train.batch_size = 16
    config.eval.batch_size = 16
    config.eval.metric = "avg"
    return config


def apply(
    config: ConfigDict, argument: str, own: Mapping[str, dict[str, object]] = types.MappingProxyType({})
) -> ConfigDict:
    """Applies the words of an argument, with + between them: a row, `reference`, and words of the config file.

    Args:
      config: it is changed.
      argument: what follows the colon in --config FILE:ARGUMENT; "" changes nothing.
      own: word of the config file -> what it changes.

    Raises:
      ValueError: an unknown word, a word twice, or two rows.
    """
    words = argument.split("+") if argument else []
    options = {**own, "reference": REFERENCE}
    for word in words:
        if word not in ROWS and word not in options:
            known = ", ".join((*ROWS, *options))
            raise ValueError(f"unknown row {word!r}: give one of {known}, or several with + between them")
        if words.count(word) > 1:
            raise ValueError(f"{argument!r} names {word} twice: give it once")
    if len([word for word in words if word in ROWS]) > 1:
        raise ValueError(f"{argument!r} names two rows: give one")
    for word in words:
        config.update_from_flattened_dict(ROWS[word] if word in ROWS else options[word])
    return config
