"""The schema of config.json, for the fields that a prediction reads: types are checked before a model is built.

Fields that earlier versions lacked are filled in before, see `finished.read`. `config.validation.validate_present`
checks the ranges of the numbers.
"""

import dataclasses
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jaxboost import schema

Scalar = bool | int | float | str | None
# A config has no deeper nesting.
ConfigJson = dict[str, Scalar | dict[str, Scalar | list[Scalar]]]
_Text = Annotated[str, Field(max_length=10_000)]
_Layers = Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(max_length=1000)]
_Names = Annotated[tuple[_Text, ...], Field(max_length=100)]
# The command line turns the column 1 into a number.
_Column = Annotated[_Text, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
_Floats = Annotated[tuple[float, ...], Field(max_length=1000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Fields of the section `data` that a prediction reads."""

    source: _Text
    size: int
    masks: _Text
    window: _Floats
    spacing: float
    folds: int
    fold: int
    nan: _Text
    max_pixels: int
    max_voxels: int
    columns: Annotated[tuple[_Column, ...], Field(max_length=1000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The section `model`. The fields with the default None are those that not every system has."""

    backbone: _Text
    image_size: int
    mean: _Floats
    std: _Floats
    dtype: _Text
    attention: _Text
    remat: bool | None = None
    weights: _Text | None = None
    weights_source: _Text | None = None
    weights_convert: bool | None = None
    frozen: bool | None = None
    last_block: bool | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: _Names | None = None
    cache_gb: float | None = None
    drop_path: float | None = None
    slices: int | None = None
    slice_axes: tuple[int, ...] | None = None
    slice_size: int | None = None
    slice_pooling: _Text | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentFields:
    """Fields of the section `augment` that a prediction reads."""

    resize: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Fields of the section `train` that a prediction reads."""

    loss: _Text
    compilation_cache: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Fields of the section `eval` that a prediction reads."""

    protocol: _Text
    batch_size: int
    unit: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Llama:
    family: _Text
    block: _Text
    source: _Text
    convert: bool
    layers: _Layers
    final_norm: _Text
    adapter: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boost(_Llama):
    """The section `boost`."""

    kind: _Text
    trainable: bool
    rope: bool
    path: _Text
    causal: bool
    init: _Text
    control: _Text
    control_seed: int
    lora_rank: int
    lora_alpha: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama(_Llama):
    """The section `llama`; BLIP-2's LLM is always used and causal."""

    used: bool | None = None
    causal: bool | None = None
    remat: bool
    shard: bool
    weights: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class PneumoLLM:
    """The section `pneumollm`."""

    vision: _Text
    vision_source: _Text
    vision_convert: bool
    every: int
    vision_adapters: bool
    llama_adapters: bool
    tokens: _Text
    count: int
    emitter: bool
    adapters: _Text
    question: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """The section `clip`."""

    method: _Text
    text: _Text
    context: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blip2:
    """The section `blip2`."""

    qformer: _Text
    qformer_source: _Text
    qformer_convert: bool
    question: _Text
    dropout: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """The section `baseline`."""

    features: _Text
    classifier: _Text
    ndim: int
    views: _Text
    cache: _Text
    text: _Text
    slices: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """The sections that a prediction reads.

    R-LLM's configs have `boost`, PneumoLLM's `pneumollm` and `llama`, BLIP-2's `blip2` and `llama`, CLIP's `clip`;
    those of baselines have `baseline`, and neither `augment` nor `train`.
    """

    seed: int
    data: Data
    model: Model
    augment: AugmentFields | None = None
    train: Train | None = None
    eval: Evaluation
    baseline: Baseline | None = None
    boost: Boost | None = None
    pneumollm: PneumoLLM | None = None
    llama: Llama | None = None
    clip: Clip | None = None
    blip2: Blip2 | None = None


def check_config(content: Any) -> dict[str, Any]:
    """Returns the content of a config.json unchanged; raises ValueError if it is not the config of a run."""
    schema.validated(ConfigJson, content)
    needed = ("seed", "data", "model", *(() if "baseline" in content else ("train",)), "eval")
    lacking = [name for name in needed if name not in content]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return content
