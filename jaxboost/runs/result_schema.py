"""What config.json and result.json of a run may hold: checked before anything is made from it.

Types are checked here, the ranges of a config's numbers by `ranges`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from jaxboost import io, schema
from jaxboost.config import continuing

_Scalar = bool | int | float | str | None
# Nothing that we write is nested deeper.
_Section = dict[str, _Scalar | list[_Scalar]]
_Text = Annotated[str, Field(max_length=10_000)]
_Digest = Annotated[str, Field(max_length=64)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Step = Annotated[int, Field(ge=1, lt=2**31)]
_Layers = Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(max_length=1000)]
_Floats = Annotated[tuple[float, ...], Field(max_length=1000)]
_Names = Annotated[tuple[_Text, ...], Field(max_length=10_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The fields of the section `data` that a prediction reads."""

    source: _Text
    size: int
    masks: _Text
    window: _Floats
    spacing: float
    folds: int
    fold: int
    nan: _Text = continuing.ADDED["data.nan"]
    max_pixels: int = continuing.ADDED["data.max_pixels"]
    max_voxels: int = continuing.ADDED["data.max_voxels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The section `model`, whose fields after `dtype` PneumoLLM does not have."""

    backbone: _Text
    image_size: int
    mean: _Floats
    std: _Floats
    dtype: _Text
    remat: bool
    weights: _Text | None = None
    weights_source: _Text | None = None
    weights_convert: bool | None = None
    frozen: bool | None = None
    drop_path: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentFields:
    """The field of the section `augment` that a prediction reads."""

    resize: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The fields of the section `train` that a prediction reads."""

    loss: _Text
    compilation_cache: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The fields of the section `eval` that a prediction reads."""

    protocol: _Text
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Llama:
    family: _Text
    block: _Text
    source: _Text
    convert: bool
    layers: _Layers
    final_norm: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boost(_Llama):
    """The section `boost`."""

    kind: _Text
    trainable: bool
    rope: bool
    path: _Text
    causal: bool
    init: _Text = continuing.ADDED["boost.init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama(_Llama):
    """The section `llama`."""

    used: bool
    causal: bool
    remat: bool
    shard: bool
    weights: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pneumo:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a prediction reads of a run's config: that of R-LLM has `boost`, that of PneumoLLM the last two."""

    seed: int
    data: Data
    model: Model
    augment: AugmentFields
    train: Train
    eval: Evaluation
    boost: Boost | None = None
    pneumollm: Pneumo | None = None
    llama: Llama | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The best epoch, `checkpoint.Best`, and what picked it."""

    split: Literal["val", "test"]
    metric: _Text
    epoch: _Step
    step: _Step
    value: float | None
    sha256: _Digest = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold and what it gives on the test split; None for infinity."""

    split: Literal["val", "test"]
    specificity: float
    value: float | None
    test: dict[_Text, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Those of a split; None where they are undefined."""

    acc: float | None
    auc: float | None
    majority_acc: float | None
    n: _Count
    ci95: dict[_Text, tuple[float | None, float | None]]
    sensitivity: float | None = None
    specificity: float | None = None
    balanced_acc: float | None = None
    avg: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A pretrained part, see `pretrained.Pretrained.about`."""

    source: _Text
    sha256: _Digest
    dtype: Literal["float32", "bfloat16"] | None = None
    layers: _Layers | None = None
    arguments: dict[_Text, _Scalar | list[float]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaArguments:
    """The arguments of a part that consists of LLaMA layers, see `models.llama.LlamaConfig`."""

    width: Annotated[int, Field(ge=1, le=2**16)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    kv_heads: Annotated[int, Field(ge=1, le=1024)]
    head_dim: Annotated[int, Field(ge=2, le=1024, multiple_of=2)]
    mlp_width: Annotated[int, Field(ge=1, le=2**18)]
    eps: Annotated[float, Field(gt=0, le=1)]
    rope_base: Annotated[float, Field(gt=0, le=1e12)]
    rope_factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=512)] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers the model has."""

    trainable: _Count
    frozen: _Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Versions:
    """What computed the result."""

    device: _Text
    jax: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one run."""

    dataset: _Text
    task: Literal["binary-class", "multi-class", "ordinal-regression", "multi-label, binary-class"]
    classes: Annotated[_Names, Field(min_length=1)]
    splits: dict[_Text, _Count]
    seed: int
    protocol: Literal["validation", "reference"]
    warning: _Text | None
    model: _Text
    boost: _Text
    parameters: Parameters
    data_sha256: _Digest | None
    splits_sha256: _Digest | None = None
    config: dict[str, _Scalar | _Section]
    versions: Versions
    selection: Selection
    val: Figures | None = None
    test: Figures
    baselines: dict[_Text, dict[_Text, float | None]]
    threshold: Threshold | None
    seconds: Annotated[float, Field(ge=0)]
    encoder: Part | None = None
    block: Part | None = None
    vision: Part | None = None
    llama: Part | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllFolds:
    """What is read of a cross-validation's result."""

    folds: list[dict[str, Any]]
    config: dict[str, _Scalar | _Section]


def check_config(content: Any) -> dict[str, Any]:
    """Returns `content`, that of a config.json; raises ValueError where it is no config of any run."""
    schema.check(dict[str, _Scalar | _Section], content)
    lacking = [name for name in ("seed", "data", "model", "train", "eval") if name not in content]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return content


def check_result(content: Any) -> dict[str, Any]:
    """Returns `content`, that of a result.json; raises ValueError where it is not what a run wrote."""
    schema.check(AllFolds if isinstance(content, dict) and "folds" in content else Result, content)
    # Earlier versions wrote none.
    if "sha256" in content and content["sha256"] != checksum(content):
        raise ValueError("it was altered after it was written: its checksum does not match")
    return content


def checksum(content: Mapping[str, Any]) -> str:
    """Of everything but itself and the time that the run took: the same result has the same checksum."""
    return io.json_sha256({name: value for name, value in content.items() if name not in ("sha256", "seconds")})
