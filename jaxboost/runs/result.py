"""The schema of result.json, the result of a finished run. docs/runs.md explains each field."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jaxboost import io, schema
from jaxboost.data.columns import Column
from jaxboost.errors import UserError
from jaxboost.models import prompted_clip
from jaxboost.runs.saved_config import ConfigJson, Scalar
from jaxboost.systems.weights import ROLES
from jaxboost.tasks import TaskName

# Results of earlier versions have the entries of format 1, but no format number.
FORMAT = 1
# The entry `boost` of a run without gradient training.
BASELINE = "baseline"
# What a run costs, which has a checksum of its own: equal results have equal checksums, whatever they cost.
COSTS = ("seconds", "seconds_by_part", "memory_gb")
# The entries that differ between runs with equal results.
VARYING = (*COSTS, "costs_sha256")
# Other entries `boost` than R-LLM's variants -> the pretrained parts of the system.
_PARTS = {
    "pneumollm": ("vision", "llama"),
    "blip2": ("encoder", "qformer", "llama", "question"),
    "lavin": ("vision", "llama"),
    BASELINE: ("encoder",),
    **dict.fromkeys(prompted_clip.METHODS, ("encoder", "text")),
}

_Text = Annotated[str, Field(max_length=10_000)]
_Digest = Annotated[str, Field(max_length=64)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Step = Annotated[int, Field(ge=1, lt=2**31)]
_Layers = Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(max_length=1000)]
# In JSON, null stands for an undefined metric and for an infinite threshold.
_Figure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
_BinaryFigure = Annotated[float | None, BeforeValidator(lambda value: math.nan if value is None else value)]
_ThresholdValue = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameter counts of the model.

    Attributes:
      trainable, frozen: number of trainable and of frozen parameters.
      trainable_mib: size of the trainable parameters as float32, in MiB.
    """

    trainable: _Count
    frozen: _Count
    trainable_mib: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A pretrained part of the model, or its random control; see `systems.weights`.

    Attributes:
      source: source of the weights, or "random".
      dtype: dtype of the stored weights.
      layers: numbers of the LLM layers.
      arguments: arguments that the part is built with.
      trained: what of the encoder was trained: "all", "last_block" or "lora"; None: nothing, or not recorded.
      weights: "int8" if the matrices are quantized as they are loaded, see `llama.weights`; else None.
      control, control_seed: how the loaded weights were changed, see `systems.controls`; None: they were not.
      loaded_sha256: fingerprint of the weights before that.
      prompts: of a text encoder, class -> its prompts; in CoOp and CoCoOp the text behind the context; of a question,
        class -> its answer.
      question: the text of a question.
      sha256: fingerprint of the weights as they were used.
    """

    source: _Text
    layers: _Layers | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    arguments: dict[_Text, Scalar | list[int] | list[float]] | None = None
    trained: Literal["all", "last_block", "lora"] | None = None
    weights: Literal["int8"] | None = None
    control: Literal["shuffled", "matched"] | None = None
    control_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    loaded_sha256: _Digest | None = None
    prompts: dict[_Text, tuple[_Text, ...]] | None = None
    question: Annotated[str, Field(max_length=20_000)] | None = None
    sha256: _Digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The best epoch and the metric that picked it; of a baseline, the best hyper-parameters.

    Attributes:
      split: the split that picked.
      metric, value: the metric of `eval.metric`, and its value on that split.
      epoch, step: the best epoch and its last step; None for a baseline.
      chosen: name -> value of the hyper-parameters of a baseline's classifier, empty if it has none; None for a trained
        model.
      sha256: digest of the weights of the epoch, or of a baseline's file with the fitted classifier.
    """

    split: Literal["val", "test"]
    metric: _Text
    epoch: _Step | None = None
    step: _Step | None = None
    value: _Figure
    chosen: dict[_Text, int | float] | None = None
    sha256: _Digest = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """The metrics of a split, see `metrics.score`: NaN if one is undefined, None if the task does not have it.

    Attributes:
      n: number of examples.
      ci95: 95 % intervals of "acc" and "auc" and, in a binary task, of "sensitivity" and "specificity".
      ci_method: how each interval was computed, see `intervals.split_intervals`; None: by an earlier version, whose
        intervals of ACC and AUC are percentile bootstraps over the examples.
    """

    acc: _Figure
    auc: _Figure
    majority_acc: _Figure
    sensitivity: _BinaryFigure = None
    specificity: _BinaryFigure = None
    balanced_acc: _BinaryFigure = None
    avg: _BinaryFigure = None
    n: _Count
    ci95: dict[_Text, tuple[_Figure, _Figure]]
    ci_method: dict[_Text, _Text] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """An operating point and its metrics, see `thresholds.choose_threshold` and `thresholds.score_at`.

    Attributes:
      split: the split on which it was chosen.
      specificity: the smallest accepted specificity, from the config.
      value: the threshold; infinity if no positive prediction is specific enough.
      val, test: sensitivity, specificity and ACC of the split at this threshold.
    """

    split: Literal["val", "test"]
    specificity: float
    value: _ThresholdValue
    val: dict[_Text, _Figure] | None = None
    test: dict[_Text, _Figure]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of one run. JSON leaves out entries that are None and have the default None.

    Attributes:
      format: FORMAT of the version that wrote it.
      dataset, task, classes, splits: name of the data set, task (a key of `tasks.TASKS`), class names, and number of
        examples in each split.
      seed, protocol, config: settings of the run; `config` is the content of config.json.
      warning: a warning about comparing the metrics with others; None: no warning.
      model, boost: the backbone, and the boost variant, "pneumollm", "lavin", "blip2", one of `prompted_clip.METHODS`,
        or BASELINE; a baseline without an encoder has the name of its features as `model`.
      width: see `systems.System`; None also in results of earlier versions.
      parameters: parameter counts of the model.
      encoder, block: the pretrained parts of R-LLM; a baseline and CLIP have only the encoder.
      vision, llama: the pretrained parts of PneumoLLM.
      text: CLIP's text encoder; its entry is there only if it was used.
      question: the question to an LLM; as `text`.
      qformer: BLIP-2's Q-Former at the start of its training; as `text`.
      data_sha256, splits_sha256, columns_sha256: fingerprints of a user's own data set, see `datasets.fingerprint`.
      columns: how clinical columns become features, fitted to the training split; None without them.
      versions: of Python, the device and the packages that computed the result.
      selection: the best epoch; its weights were evaluated.
      val, test: metrics of the splits.
      baselines: test metrics of single scores, such as the volume of a nodule.
      threshold: the operating point; None if the config has no eval.specificity.
      steps: number of training steps; None also for a baseline.
      seconds: duration, summed over all starts of the run.
      seconds_by_part: the same by part, see `training.clock`; None also if a start by an earlier version is in it.
      memory_gb: see `memory.Peak`, of the start that finished the run; None also in results of earlier versions.
      costs_sha256: checksum of the entries COSTS; None also in results of earlier versions.
      sha256: checksum of the others, see `checksum`; None before the file is written.
    """

    format: int = FORMAT
    dataset: _Text
    task: TaskName
    classes: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=10_000)]
    splits: dict[_Text, _Count]
    seed: int
    protocol: Literal["validation", "reference"]
    warning: _Text | None
    model: _Text
    boost: _Text
    width: Annotated[int, Field(ge=1, le=2**16)] | None = None
    encoder: Part | None = None
    block: Part | None = None
    vision: Part | None = None
    llama: Part | None = None
    text: Part | None = None
    question: Part | None = None
    qformer: Part | None = None
    parameters: Parameters
    data_sha256: _Digest | None
    splits_sha256: _Digest | None = None
    columns_sha256: _Digest | None = None
    columns: Annotated[tuple[Column, ...], Field(max_length=1000)] | None = None
    config: ConfigJson
    versions: dict[_Text, _Text]
    selection: Selection
    val: Figures | None = None
    test: Figures
    baselines: dict[_Text, dict[_Text, _Figure]]
    threshold: Threshold | None
    steps: _Count | None = None
    seconds: Annotated[float, Field(ge=0)]
    seconds_by_part: Annotated[dict[_Text, Annotated[float, Field(ge=0)]], Field(max_length=100)] | None = None
    memory_gb: Annotated[float, Field(ge=0)] | None = None
    costs_sha256: _Digest | None = None
    sha256: _Digest | None = None

    @property
    def parts(self) -> dict[str, dict[str, Any] | None]:
        """Returns role -> JSON entry of the pretrained part; None if the model does not have the part."""
        parts = {role: getattr(self, role) for role in ROLES}
        return {role: None if part is None else _clean(part) for role, part in parts.items()}

    @property
    def digests(self) -> dict[str, str | None]:
        """The fingerprints of a user's own data, as `datasets.fingerprint` names them."""
        return {"data": self.data_sha256, "splits": self.splits_sha256, "columns": self.columns_sha256}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of result.json; its checksums only if it was read from a file."""
        content = _clean(self)
        # All parts of the run's system have an entry, even if it is null.
        for name in _PARTS.get(self.boost, ("encoder", "block")):
            content.setdefault(name, None)
        content.setdefault("splits_sha256", None)
        return json.loads(io.to_json(content))

    @classmethod
    def from_json(cls, content: Any) -> "RunResult":
        """Parses the content of a run's result.json; raises what the function `from_json` raises."""
        result = from_json(content)
        if not isinstance(result, cls):
            raise ValueError("it is the result of a whole cross-validation: read that of a fold")
        return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """The entries that are read from the result of a whole cross-validation, see `cross_validation.summarise`."""

    folds: list[dict[str, Any]]
    config: ConfigJson


def from_json(content: Any) -> RunResult | FoldsResult:
    """Parses the content of result.json, of a run or of a cross-validation.

    Raises:
      ValueError: the content is damaged or altered; the message says how.
      UserError: a later version of jaxboost wrote it.
    """
    _check_origin(content)
    kind = FoldsResult if "folds" in content else RunResult
    result = schema.validated(kind, content)
    if (
        isinstance(result, RunResult)
        and result.boost != BASELINE
        and None
        in (
            result.selection.epoch,
            result.selection.step,
        )
    ):
        raise ValueError("selection has no epoch or no step")
    return result


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the format number and the checksums to the content of result.json."""
    content = {"format": FORMAT, **json.loads(io.to_json(content))}
    return content | {"costs_sha256": costs_checksum(content), "sha256": checksum(content)}


def checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all entries except the checksums and what a run costs."""
    return io.json_sha256({name: value for name, value in content.items() if name not in ("sha256", *VARYING)})


def costs_checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a run costs, the entries COSTS."""
    return io.json_sha256({name: content[name] for name in COSTS if name in content})


def _check_origin(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    # Earlier versions wrote no checksum, or `sha256` alone.
    has, has_costs = "sha256" in content, "costs_sha256" in content
    try:
        altered = (has and content["sha256"] != checksum(content)) or (
            has_costs and (not has or content["costs_sha256"] != costs_checksum(content))
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if altered:
        raise ValueError("it was altered after it was written: its checksum does not match")
    version = content.get("format", FORMAT)
    if type(version) is int and version > FORMAT:
        raise UserError(
            f"the run's result has the format {version}, this jaxboost reads up to {FORMAT}: install the version that"
            " wrote it, or a later one"
        )


def _clean(value: Any) -> Any:
    """Converts a dataclass to a dict, without entries that are None and have the default None."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        return {name: _clean(found) for name, (found, default) in fields.items() if (found, default) != (None, None)}
    if isinstance(value, dict):
        return {name: _clean(found) for name, found in value.items()}
    return [_clean(found) for found in value] if isinstance(value, list | tuple) else value
