"""The fields of the sections `boost`, `pneumollm`, `llama` and `blip2`: the LLM's layers, and what connects them."""

from collections.abc import Iterable

from jaxboost.config.fields import Field, Range


def _tokens() -> Iterable[str]:
    from jaxboost.models.pneumollm import TOKENS

    return TOKENS


def _adapters() -> Iterable[str]:
    from jaxboost.models.image_llm import ADAPTERS

    return ADAPTERS


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
        "the LLM's question, with one answer for each class: a folder made by `jaxboost convert --question`, or"
        ' "random": the control',
        resume="free",
    ),
    "dropout": Field(
        0.1,
        "dropout of the Q-Former in training: of its attention weights and of what each of its layers adds",
        range=Range(least=0, below=1, words="0 to below 1"),
    ),
}

# BLIP-2's LLM is always there, and causal.
BLIP2_LLAMA = {name: field for name, field in LLAMA.items() if name not in ("used", "causal")}
