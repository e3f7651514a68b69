"""The fields of the sections `model`, `boost`, `pneumollm`, `llama`, `clip` and `baseline`."""

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


def _tokens() -> Iterable[str]:
    from jaxboost.models.pneumollm import TOKENS

    return TOKENS


def _adapters() -> Iterable[str]:
    from jaxboost.models.image_llm import ADAPTERS

    return ADAPTERS


def _prompt_methods() -> Iterable[str]:
    from jaxboost.models.prompted_clip import METHODS

    return METHODS


def _attention_modes() -> Iterable[str]:
    from jaxboost.models.attention import MODES

    return MODES


def _kinds() -> Iterable[str]:
    from jaxboost.models.boost import KINDS

    return KINDS


def _paths() -> Iterable[str]:
    from jaxboost.models.boost import PATHS

    return PATHS


def _inits() -> Iterable[str]:
    from jaxboost.models.boost import INITS

    return INITS


def _families() -> Iterable[str]:
    from jaxboost.models.llama import FAMILIES

    return FAMILIES


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


def _llama(final_norm: str, default: str) -> dict[str, Field]:
    return {
        "family": Field(
            "llama-7b",
            "shapes of the layers if no block is read: for random layers, and to describe a missing block",
            choices=_families,
            optional=True,
        ),
        "block": Field(
            "",
            'the layers: a folder made by `jaxboost convert`, or "random": a frozen random block, the control',
            resume="free",
        ),
        "source": Field(
            "", "source of that block for `jaxboost convert`; the error for a missing block names it", resume="free"
        ),
        "adapter": Field(
            "",
            "LoRA adapter of that source, which `jaxboost convert --adapter` merges: a folder of peft, or a hub id",
            resume="free",
            before="",
        ),
        "convert": Field(False, "convert a missing block from `source` at the start of the run", resume="free"),
        "layers": Field(
            (),
            "layers of the LLM, in the order in which they run; (): all layers of the block. If no block is read,"
            f" or if a missing block is converted, () means {default}",
        ),
        "final_norm": Field(
            final_norm,
            'weight of the norm after the last layer: "ones" (of a LayerNorm without bias) or "loaded"',
            choices=("ones", "loaded"),
        ),
    }


BOOST = {
    "kind": Field(
        "rllm",
        'variant of the booster, a key of jaxboost.models.boost.VARIANTS; "none"; or "layer", a trained layer in its'
        " place",
        choices=_kinds,
    ),
    **_llama("ones", "the last layer"),
    "control": Field(
        "",
        'what replaces the weights of the block: "shuffled", the same numbers in random places of each tensor;'
        ' "matched", random numbers with each tensor\'s mean square',
        choices=("shuffled", "matched"),
        optional=True,
        before="",
    ),
    "control_seed": Field(
        0,
        "draw of boost.control, the same for all values of seed",
        range=Range(least=0, below=2**32),
        before=0,
    ),
    "trainable": Field(False, "train the block too: the paper's fine-tuning arm"),
    "lora_rank": Field(
        0,
        "rank of trained low-rank changes (LoRA) of the frozen block's matrices; 0: none",
        range=Range(least=0, most=4096),
        before=0,
    ),
    "lora_alpha": Field(
        0.0,
        "alpha of LoRA, whose changes are scaled by alpha / boost.lora_rank; 0: a scale of 1",
        range=Range(least=0),
        before=0.0,
    ),
    "rope": Field(False, "keep the LLM's rotary position embedding"),
    "path": Field(
        "auto",
        'algorithm for the same result: "full" (all tokens; the only one without CLS), "pooled" (only the CLS'
        ' token), "absorbed" (without keys and values), "auto" (the cheapest)',
        choices=_paths,
    ),
    "init": Field(
        "uniform",
        'initial weights of the linear maps F_E and F_D: "uniform", U(+-1 / sqrt(fan_in)), as in the released 3D code;'
        ' "normal", N(0, 0.02), as in the 2D code',
        choices=_inits,
        before="uniform",
    ),
    "causal": Field(False, "keep the LLM's causal mask; the CLS token is first, so it then attends only to itself"),
}

# With model.backbone="conv14" the encoder is trained, and the first five fields have no effect.
PNEUMOLLM = {
    "vision": Field(
        "",
        'the encoder\'s weights: a folder made by `jaxboost convert`, or "random": the control',
        resume="free",
    ),
    "vision_source": Field(
        "", "source of these weights for `jaxboost convert`; the error for missing weights names it", resume="free"
    ),
    "vision_convert": Field(False, "convert missing weights from vision_source at the start of the run", resume="free"),
    "every": Field(
        4,
        "interval of the source tokens: the CLS token is taken after every N layers of the encoder",
        unit="layers",
        range=Range(least=1, most=1000),
    ),
    "vision_adapters": Field(True, "adapters in the encoder's layers; without them each image is encoded only once"),
    "llama_adapters": Field(True, "adapters in the LLM's layers"),
    "adapters": Field(
        "rep",
        'kind of the adapters: "rep", RepAdapters; "mixture", LaVIN\'s mixture of two, with pneumollm.question',
        choices=_adapters,
        before="rep",
    ),
    "tokens": Field("engine", "diagnosis tokens", choices=_tokens),
    "count": Field(4, "number of diagnosis tokens", range=Range(least=1, most=4096)),
    "emitter": Field(True, "information emitter mask: no token attends to the diagnosis tokens"),
    "question": Field(
        "",
        "question and answers of LaVIN, which has a text branch: a folder made by `jaxboost convert --question`, or"
        ' "random"; "": PneumoLLM, which has none',
        resume="given",
        before="",
    ),
}
LLAMA = {
    "used": Field(
        True,
        "use the LLM; False: the neck's tokens go to the head (Table 4), and this section gives only the width: of the"
        " block if it is named, else of `family`",
    ),
    **_llama("loaded", "all layers"),
    "causal": Field(False, "keep the LLM's causal mask, which PneumoLLM replaces by that of the information emitter"),
    "remat": Field(False, "rematerialise the layers in the backward pass: less memory, more time"),
    "shard": Field(False, "shard the matrices over the devices instead of replicating them"),
    "weights": Field(
        "stored",
        'precision of the matrices: "stored" (as the block has them), or "int8" (rounded as they are loaded)',
        choices=("stored", "int8"),
    ),
}

# BLIP-2's LLM is always there, and causal.
BLIP2_LLAMA = {name: field for name, field in LLAMA.items() if name not in ("used", "causal")}
BLIP2 = {
    "qformer": Field(
        "",
        'the Q-Former\'s initial weights: a folder made by `jaxboost convert --part qformer`, or "random": one of the'
        " published shape that is not pretrained",
        resume="free",
    ),
    "qformer_source": Field(
        "", "source of that Q-Former for `jaxboost convert`; the error for a missing one names it", resume="free"
    ),
    "qformer_convert": Field(
        False, "convert a missing Q-Former from qformer_source at the start of the run", resume="free"
    ),
    "question": Field(
        "",
        "the LLM's question, with one answer for each class: a folder made by `jaxboost convert --question`",
        resume="free",
    ),
    "dropout": Field(
        0.1,
        "dropout of the Q-Former in training: of its attention weights and of what each of its layers adds",
        range=Range(least=0, below=1, words="0 to below 1"),
    ),
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
# Several slices along each axis, as what a 2D encoder sees of a volume.
SLICES = "slices"
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
        'what a 2D encoder sees of a volume: "middle": the three orthogonal middle slices; "slices": baseline.slices'
        " slices along each of the three axes. Their embeddings are averaged",
        choices=("middle", SLICES),
    ),
    "slices": Field(
        0,
        'number of slices along each axis, evenly spaced, if baseline.views is "slices"; else 0',
        range=Range(least=0, most=MAX_SIDE),
        before=0,
    ),
    "cache": Field(
        "",
        "folder of computed embeddings, which several runs may share; empty: the folder of the run",
        resume="free",
    ),
}
