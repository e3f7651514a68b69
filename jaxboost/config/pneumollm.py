"""The shared part of PneumoLLM's configs, and the rows of its tables: --config configs/pneumollm.py:ROW."""

import types
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config import model_fields
from jaxboost.config.continuing import flat
from jaxboost.config.table import (
    get_baseline_config,
    get_blip2_config,
    get_clip_config,
    get_config,
    get_pneumollm_config,
)

CLIP_INPUT: dict[str, object] = {f"model.{name}": value for name, value in model_fields.CLIP_INPUT.items()}
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
    # The text branch that PneumoLLM removes (Luo et al. 2023). A score's zero means nothing to the code's loss.
    "lavin": {
        "pneumollm.question": "blocks/llama-7b-question",
        "pneumollm.adapters": "mixture",
        "pneumollm.tokens": "none",
        "pneumollm.emitter": False,
        "llama.causal": True,
        "train.loss": "auto",
    },
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
_CLIP: dict[str, object] = {
    "model.backbone": "clip_vit_l14",
    # Not the encoder of the other rows, whose weights are rounded to 16 bits.
    "model.weights": "blocks/clip-vit-l14-float32",
    "model.weights_source": "openai/clip-vit-large-patch14",
    **CLIP_INPUT,
}
_TEXT = "blocks/clip-vit-l14-text"
# AdamW as for the other rows. The papers take SGD at this rate.
_PROMPTS: dict[str, object] = {**_CLIP, "clip.text": _TEXT, "optim.lr": 2e-3, "optim.weight_decay": 0.0}
_BLIP2_SOURCE = "Salesforce/blip2-opt-2.7b"
_BLIP2: dict[str, object] = {
    "model.backbone": "blip2_vit_g14",
    "model.weights": "blocks/blip2-vit-g14",
    "model.weights_source": _BLIP2_SOURCE,
    # BLIP-2's encoder was trained with CLIP's pixels.
    "model.mean": model_fields.CLIP_INPUT["mean"],
    "model.std": model_fields.CLIP_INPUT["std"],
    "blip2.qformer": "blocks/blip2-qformer",
    "blip2.qformer_source": _BLIP2_SOURCE,
    "blip2.question": "blocks/blip2-question",
    "llama.family": "opt-2.7b",
    "llama.block": "blocks/blip2-opt-2.7b",
    "llama.source": _BLIP2_SOURCE,
    # Of BLIP-2's released fine-tuning, for captions. The paper does not name its own.
    "optim.lr": 1e-5,
    "optim.weight_decay": 0.05,
}


def _encoder_alone(
    backbone: str, folder: str, source: str, **changes: object
) -> tuple[Callable[[], ConfigDict], dict[str, object]]:
    """A row of Table 2: a pretrained encoder and a linear head, of which all weights are trained.

    The paper says of their training only that it follows "open-source configurations". They take PneumoLLM's batches,
    epochs, schedule and weight decay, and a learning rate that suits pretrained weights.
    """
    return get_config, {
        "boost.kind": "none",
        "model.backbone": backbone,
        "model.weights": f"blocks/{folder}",
        "model.weights_source": source,
        # All of it is trained: nothing is rounded to 16 bits to save memory.
        "model.dtype": "auto",
        "optim.lr": 1e-4,
        **changes,
    }


# The rows of Tables 2 and 3 that are another system than PneumoLLM: its defaults, what the row changes. The sizes of
# Table 2 are those whose published weights have the paper's numbers of parameters: with ImageNet's 1000 classes, but
# DINOv2 with no head, and ViT and DINOv2 with positions for 384 and 518 pixels.
OTHERS: dict[str, tuple[Callable[[], ConfigDict], dict[str, object]]] = {
    "resnet50": _encoder_alone("resnet50", "resnet50", "timm/resnet50.tv_in1k"),
    "vit": _encoder_alone(
        "vit_b32",
        "vit-b32",
        "timm/vit_base_patch32_384.augreg_in1k",
        # The pixels that these weights were trained on.
        **{"model.mean": (0.5, 0.5, 0.5), "model.std": (0.5, 0.5, 0.5)},
    ),
    "swin": _encoder_alone("swin_tiny", "swin-tiny", "timm/swin_tiny_patch4_window7_224.ms_in1k"),
    "convnext": _encoder_alone("convnext_base", "convnext-base", "timm/convnext_base.fb_in1k"),
    "dinov2": _encoder_alone("dinov2_s14", "dinov2-s14", "timm/vit_small_patch14_dinov2.lvd142m"),
    "clip_zero_shot": (
        get_baseline_config,
        {**_CLIP, "baseline.features": "encoder", "baseline.classifier": "zero_shot", "baseline.text": _TEXT},
    ),
    "clip_probe": (
        get_baseline_config,
        {**_CLIP, "baseline.features": "encoder", "baseline.classifier": "logistic"},
    ),
    "coop_clip": (get_clip_config, {**_PROMPTS, "clip.method": "coop_clip", "clip.context": 16}),
    "cocoop_clip": (get_clip_config, {**_PROMPTS, "clip.method": "cocoop_clip", "clip.context": 4}),
    "blip2": (get_blip2_config, _BLIP2),
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
      config: of PneumoLLM; it is changed.
      argument: what follows the colon in --config FILE:ARGUMENT; "" changes nothing.
      own: word of the config file -> what it changes.

    Returns:
      The same config; for a row of OTHERS a config of that system, with the fields that both have.

    Raises:
      ValueError: an unknown word, a word twice, or two rows.
    """
    words = argument.split("+") if argument else []
    options = {**own, "reference": REFERENCE}
    for word in words:
        if word not in ROWS and word not in OTHERS and word not in options:
            known = ", ".join((*ROWS, *OTHERS, *options))
            raise ValueError(f"unknown row {word!r}: give one of {known}, or several with + between them")
        if words.count(word) > 1:
            raise ValueError(f"{argument!r} names {word} twice: give it once")
    rows = [word for word in words if word in ROWS or word in OTHERS]
    if len(rows) > 1:
        raise ValueError(f"{argument!r} names two rows: give one")
    for word in words:
        if word in options:
            config.update_from_flattened_dict(options[word])
    if not rows:
        return config
    if rows[0] in ROWS:
        config.update_from_flattened_dict(ROWS[rows[0]])
        return config
    make, fields = OTHERS[rows[0]]
    if make is get_baseline_config and "reference" in words:
        raise ValueError(f"{argument!r}: {rows[0]} has no epochs to pick from: leave reference out")
    return _of_system(make(), config, fields)


def _of_system(config: ConfigDict, before: ConfigDict, fields: Mapping[str, object]) -> ConfigDict:
    """A config of another system with the fields that both have, and then with others."""
    values = flat(before)
    config.update_from_flattened_dict({name: values[name] for name in flat(config) if name in values})
    if "train" in config:
        # The loss of the released code is PneumoLLM's alone. It compares logits with 0, which cosines and the scores of
        # an LLM are not made for.
        config.train.loss = "auto"
    config.update_from_flattened_dict(dict(fields))
    return config
