"""The fields of the sections `model`, `clip` and `baseline`."""

import dataclasses
from collections.abc import Iterable

from jaxboost.config.fields import MAX_SIDE, Field, Range
from jaxboost.config.slice_fields import SLICE_FIELDS


def _backbones() -> Iterable[str]:
    from jaxboost.models.backbones import BACKBONES

    return BACKBONES


def _pneumollm_encoders() -> Iterable[str]:
    from jaxboost.models.image_llm import ENCODERS

    return ENCODERS


def _prompt_methods() -> Iterable[str]:
    from jaxboost.models.prompted_clip import METHODS

    return METHODS


def _attention_modes() -> Iterable[str]:
    from jaxboost.models.attention import MODES

    return MODES


# Fields of all systems that train.
MODEL = {
    "backbone": Field("", "image encoder, a key of jaxboost.BACKBONES", choices=_backbones),
    "image_size": Field(
        28,
        "side of the images that the encoder sees; 2D images are resized to it, bicubic",
        unit="pixels",
        range=Range(most=MAX_SIDE),
    ),
    "mean": Field((0.0,), "pixels in [0, 1] become (pixel - mean) / std; one value for all channels, or one for each"),
    "std": Field((1.0,), "see model.mean"),
    "dtype": Field(
        "auto",
        'precision of the computation; trained weights stay float32; "auto": bfloat16 where the device has it in'
        " hardware, else float32. A run keeps what it started with, also on another device",
        choices=("auto", "float32", "bfloat16"),
    ),
    "attention": Field(
        "auto",
        'attention in the encoder and in the LLM layers: "fused": by cuDNN\'s kernel, which does not store its weights;'
        ' "plain"; "auto": fused where the device and the shapes allow it. The results are the same up to rounding',
        choices=_attention_modes,
        resume="free",
        before="auto",
    ),
    "remat": Field(False, "rematerialise encoder layers in the backward pass: less memory, more time"),
}
# Fields about the encoder that PneumoLLM has in its own section.
ENCODER = {
    "weights": Field(
        "",
        'pretrained weights of the 2D encoder: a folder made by `jaxboost convert`; "" or "random": a random start',
        resume="free",
    ),
    "weights_source": Field(
        "", "source of these weights for `jaxboost convert`; the error for missing weights names it", resume="free"
    ),
    "weights_convert": Field(
        False, "convert missing weights from model.weights_source at the start of the run", resume="free"
    ),
    "frozen": Field(False, 'do not train the encoder and its final norm; needs model.weights, which may be "random"'),
    "last_block": Field(
        False,
        "frozen encoder: train its last block and the norms after it all the same; the head is always trained",
        before=False,
    ),
    "lora_rank": Field(
        0,
        "frozen encoder: rank of trained low-rank changes (LoRA) of matrices in all of its blocks; 0: none",
        range=Range(least=0, most=4096),
        before=0,
    ),
    "lora_alpha": Field(
        0.0,
        "alpha of LoRA, whose changes are scaled by alpha / model.lora_rank; 0: a scale of 1",
        range=Range(least=0),
        before=0.0,
    ),
    "lora_targets": Field(
        ("qkv",),
        "matrices that LoRA changes: qkv (queries, keys and values, in one matrix), out, and the MLP's up and down;"
        " ConvNeXt has up and down alone",
        before=("qkv",),
    ),
    "cache_gb": Field(
        4.0,
        "frozen encoder: its tokens are computed once and kept if those of all images take at most this much; 0: never",
        unit="GB",
        range=Range(least=0),
        resume="free",
    ),
    "drop_path": Field(
        0.0,
        "stochastic depth: probability of dropping a branch of the last encoder layer, increasing linearly from 0",
        range=Range(least=0, below=1, words="0 to below 1"),
    ),
}
ENCODER |= SLICE_FIELDS
# A baseline's encoder is always frozen, and its runs train nothing.
BASELINE_MODEL = {
    **{name: MODEL[name] for name in ("image_size", "mean", "std", "dtype", "attention")},
    "backbone": Field(
        "",
        "image encoder, a key of jaxboost.BACKBONES; only read for encoder features",
        choices=_backbones,
        optional=True,
    ),
    **{name: ENCODER[name] for name in ("weights", "weights_source", "weights_convert")},
}
# What CLIP was trained with (Radford et al. 2021, the released code). Its scale is 100, and 16 bits of a cosine are too
# few for that.
CLIP_INPUT = {
    "image_size": 224,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "dtype": "float32",
}
# CoOp's encoder of images is always frozen too.
CLIP_MODEL = {
    **{name: dataclasses.replace(MODEL[name], default=CLIP_INPUT.get(name, MODEL[name].default)) for name in MODEL},
    **{name: ENCODER[name] for name in ("weights", "weights_source", "weights_convert")},
}
# So is BLIP-2's, whose tokens are all read.
BLIP2_MODEL = MODEL | {name: ENCODER[name] for name in ("weights", "weights_source", "weights_convert", "cache_gb")}
# Fields of PneumoLLM only.
PNEUMOLLM_MODEL = MODEL | {
    "backbone": Field("", "image encoder: a plain ViT of jaxboost.BACKBONES, or conv14", choices=_pneumollm_encoders)
}


# Not PneumoLLM's tokens of similar names (pneumollm.tokens): these systems have no LLM.
CLIP = {
    "method": Field(
        "coop_clip",
        'learned prompts of a frozen CLIP: "coop_clip" (CoOp: one context for all images) or "cocoop_clip" (CoCoOp: a'
        " meta-network of the image shifts the context)",
        choices=_prompt_methods,
    ),
    "text": Field(
        "",
        "CLIP's text encoder with the names of the classes, a folder made by `jaxboost convert --prompts`",
        resume="free",
    ),
    "context": Field(
        16, "number of learned context vectors in front of each class name", range=Range(least=1, most=1024)
    ),
}
# The classifier that compares CLIP's embeddings with class prompts, and is fitted to nothing.
ZERO_SHOT = "zero_shot"
BASELINE = {
    "features": Field(
        "encoder",
        'what the classifier sees of an image: "none", "trivial" (intensities and size, see docs/baselines.md),'
        ' "encoder" (the embedding of a frozen pretrained encoder), or "columns" (only the clinical columns of'
        " data.columns, which otherwise follow the features)",
        choices=("none", "trivial", "encoder", "columns"),
    ),
    "classifier": Field(
        "logistic",
        '"prevalence" (the frequencies of the classes), "logistic" (L2 logistic regression), "knn" (nearest'
        ' neighbours), "boosting" (gradient-boosted trees) or "zero_shot" (CLIP\'s cosines with class prompts)',
        choices=("prevalence", "logistic", "knn", "boosting", ZERO_SHOT),
    ),
    "text": Field(
        "",
        "zero-shot classification: CLIP's text encoder with prompts for the classes, a folder made by `jaxboost convert"
        " --prompts`",
        resume="free",
        before="",
    ),
    "ndim": Field(
        2,
        "spatial dimensions of the images: 2 or 3; a folder's files are read so, other data must agree",
        range=Range(least=2, most=3, words="2 or 3"),
    ),
    "views": Field(
        "middle",
        'what a 2D encoder sees of a volume: "middle": slices along each of the three axes, whose embeddings are'
        " averaged; how many, baseline.slices says",
        choices=("middle",),
    ),
    "slices": Field(
        0,
        "2D encoder on volumes: number of slices along each axis, evenly spaced; 0: the middle one",
        range=Range(least=0, most=MAX_SIDE),
        before=0,
    ),
    "cache": Field(
        "",
        "folder of computed embeddings, which several runs may share; empty: the folder of the run",
        resume="free",
    ),
}
