"""All config fields by their dotted names, and the default configs.

R-LLM's config has the sections data, model, augment, mix, optim, train, eval and boost; PneumoLLM's has pneumollm and
llama instead of boost, that of CLIP with learned prompts has clip, and that of BLIP-2 has blip2 and llama. The common
sections are equal, except that `model` has more fields in R-LLM, and `llama` fewer in BLIP-2. A baseline's config has
only data, model, baseline and eval, because nothing in it is trained by gradients; `model` and `eval` have fewer fields
there.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.data_fields import AUGMENT, DATA, MIX
from jaxboost.config.fields import Field, Range
from jaxboost.config.llm_fields import BLIP2, BLIP2_LLAMA, BOOST, LLAMA, PNEUMOLLM
from jaxboost.config.model_fields import (
    BASELINE,
    BASELINE_MODEL,
    BLIP2_MODEL,
    CLIP,
    CLIP_MODEL,
    ENCODER,
    MODEL,
    PNEUMOLLM_MODEL,
)
from jaxboost.config.training_fields import BASELINE_EVAL, EVAL, OPTIM, TRAIN

SEED = Field(0, "random seed of the initial weights and of the order of the data", range=Range(least=0, below=2**32))


def _table(model: dict[str, Field], **own: dict[str, Field]) -> dict[str, Field]:
    shared = {
        "data": DATA,
        "model": model,
        "augment": AUGMENT,
        "mix": MIX,
        "optim": OPTIM,
        "train": TRAIN,
        "eval": EVAL,
    }
    return _named(shared | own)


def _named(sections: dict[str, dict[str, Field]]) -> dict[str, Field]:
    named = {f"{section}.{name}": field for section, fields in sections.items() for name, field in fields.items()}
    return {"seed": SEED} | named


RLLM_FIELDS = _table(MODEL | ENCODER, boost=BOOST)
PNEUMOLLM_FIELDS = _table(PNEUMOLLM_MODEL, pneumollm=PNEUMOLLM, llama=LLAMA)
CLIP_FIELDS = _table(CLIP_MODEL, clip=CLIP)
BLIP2_FIELDS = _table(BLIP2_MODEL, blip2=BLIP2, llama=BLIP2_LLAMA)
BASELINE_FIELDS = _named({"data": DATA, "model": BASELINE_MODEL, "baseline": BASELINE, "eval": BASELINE_EVAL})
ALL_FIELDS = BLIP2_FIELDS | PNEUMOLLM_FIELDS | CLIP_FIELDS | BASELINE_FIELDS | RLLM_FIELDS


def fields_of(config: ConfigDict | Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields of a config's system, such as R-LLM, PneumoLLM or a baseline, by their dotted names."""
    if "baseline" in config:
        return BASELINE_FIELDS
    if "clip" in config:
        return CLIP_FIELDS
    if "blip2" in config:
        return BLIP2_FIELDS
    return PNEUMOLLM_FIELDS if "pneumollm" in config else RLLM_FIELDS


def get_config() -> ConfigDict:
    """Returns R-LLM's default config. It is locked: setting an unknown field raises an error."""
    return _defaults(RLLM_FIELDS)


def get_pneumollm_config() -> ConfigDict:
    """Returns PneumoLLM's default config, which is also locked."""
    return _defaults(PNEUMOLLM_FIELDS)


def get_clip_config() -> ConfigDict:
    """Returns the default config of CLIP with learned prompts, which is also locked."""
    return _defaults(CLIP_FIELDS)


def get_blip2_config() -> ConfigDict:
    """Returns the default config of BLIP-2, which is also locked."""
    return _defaults(BLIP2_FIELDS)


def get_baseline_config() -> ConfigDict:
    """Returns the default config of a baseline, which is also locked."""
    return _defaults(BASELINE_FIELDS)


def _defaults(fields: dict[str, Field]) -> ConfigDict:
    tree: dict[str, Any] = {}
    for name, field in fields.items():
        section, _, last = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[last] = field.default
    return ConfigDict(tree).lock()
