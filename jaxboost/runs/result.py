"""result.json: what a finished run found. docs/runs.md explains it field by field."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jaxboost import io, schema
from jaxboost.errors import UserError
from jaxboost.runs.saved_config import ConfigJson, Scalar
from jaxboost.systems.weights import ROLES
from jaxboost.tasks import TaskName

# Results of earlier versions have no format number, and otherwise the entries of format 1.
FORMAT = 1

_Text = Annotated[str, Field(max_length=10_000)]
_Digest = Annotated[str, Field(max_length=64)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Step = Annotated[int, Field(ge=1, lt=2**31)]
_Layers = Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(max_length=1000)]
# JSON has null where a figure is undefined, and where a threshold is infinite.
_Figure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
_BinaryFigure = Annotated[float | None, BeforeValidator(lambda value: math.nan if value is None else value)]
_ThresholdValue = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers the model has.

    Attributes:
      trainable, frozen: their counts.
      trainable_mib: size of the trainable ones in float32, in MiB.
    """

    trainable: _Count
    frozen: _Count
    trainable_mib: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A pretrained part of the model, or its random control; see `systems.weights.Pretrained.about`.

    Attributes:
      source: where the weights come from, or "random".
      dtype: of the stored weights.
      layers: numbers of LLaMA's layers.
      arguments: what the part is built with.
      weights: "int8" if the matrices were quantized.
      sha256: fingerprint of the weights.
    """

    source: _Text
    layers: _Layers | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    arguments: dict[_Text, Scalar | list[float]] | None = None
    weights: Literal["int8"] | None = None
    sha256: _Digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The best epoch and the metric that picked it, see `progress.Best`."""

    split: Literal["val", "test"]
    metric: _Text
    epoch: _Step
    step: _Step
    value: _Figure
    sha256: _Digest = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """The scores of a split, see `metrics.score`; NaN where one is undefined, None where the task has no such score.

    Attributes:
      n: number of examples.
      ci95: 95 % intervals of "acc" and "auc".
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """An operating point and its figures, see `thresholds.choose_threshold` and `thresholds.score_at`.

    Attributes:
      split: on which it was chosen.
      specificity: at least this much was asked for.
      value: infinity where no positive prediction is specific enough.
      val, test: sensitivity, specificity and ACC there.
    """

    split: Literal["val", "test"]
    specificity: float
    value: _ThresholdValue
    val: dict[_Text, _Figure] | None = None
    test: dict[_Text, _Figure]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of one run. In JSON an entry whose default is None is left out where it is None.

    Attributes:
      format: FORMAT of the version that wrote it.
      dataset, task, classes, splits: the data set: its name, its kind of label (see `tasks`), its class names, and the
        number of examples in each split.
      seed, protocol, config: what was asked for; `config` as config.json has it.
      warning: what to know before the figures are compared with others.
      model, boost: the backbone, and the boost variant or "pneumollm".
      parameters: how many numbers the model has.
      encoder, block: the pretrained parts of R-LLM.
      vision, llama: those of PneumoLLM.
      data_sha256, splits_sha256: fingerprints of a user's own data set.
      versions: of Python, the device and the packages that computed the result.
      selection: the epoch whose weights the figures are of.
      val, test: figures of the splits.
      baselines: figures of a single given score, such as the volume of a nodule, on the test split.
      threshold: the operating point, where the config asked for one.
      steps: number of training steps.
      seconds: time spent, over all starts of the run.
      sha256: checksum, see `checksum`; None until it is written.
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
    encoder: Part | None = None
    block: Part | None = None
    vision: Part | None = None
    llama: Part | None = None
    parameters: Parameters
    data_sha256: _Digest | None
    splits_sha256: _Digest | None = None
    config: ConfigJson
    versions: dict[_Text, _Text]
    selection: Selection
    val: Figures | None = None
    test: Figures
    baselines: dict[_Text, dict[_Text, _Figure]]
    threshold: Threshold | None
    steps: _Count | None = None
    seconds: Annotated[float, Field(ge=0)]
    sha256: _Digest | None = None

    @property
    def parts(self) -> dict[str, dict[str, Any] | None]:
        """Role -> what JSON says of the pretrained part, None where the model has none."""
        parts = {role: getattr(self, role) for role in ROLES}
        return {role: None if part is None else _clean(part) for role, part in parts.items()}

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""
        content = _clean(self)
        # Both parts of the run's system are named.
        for name in ("vision", "llama") if self.boost == "pneumollm" else ("encoder", "block"):
            content.setdefault(name, None)
        content.setdefault("splits_sha256", None)
        return json.loads(io.to_json(content))

    @classmethod
    def from_json(cls, content: Any) -> "RunResult":
        """The result of which `content` is the JSON.

        Raises:
          ValueError: it is not what a run wrote; the message is for people.
          UserError: a later version of jaxboost wrote it.
        """
        _check_origin(content)
        return schema.check(cls, content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """What is read of the result of a whole cross-validation, see `cross_validation.summarise`."""

    folds: list[dict[str, Any]]
    config: ConfigJson

    @classmethod
    def from_json(cls, content: Any) -> "FoldsResult":
        """As `RunResult.from_json`."""
        _check_origin(content)
        return schema.check(cls, content)


def from_json(content: Any) -> RunResult | FoldsResult:
    """The result of a run or of a cross-validation; raises as `RunResult.from_json`."""
    kind = FoldsResult if isinstance(content, dict) and "folds" in content else RunResult
    return kind.from_json(content)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result.json with its format and its checksum, as the file has it."""
    content = {"format": FORMAT, **json.loads(io.to_json(content))}
    return content | {"sha256": checksum(content)}


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of all entries except itself and `seconds`: equal results have equal checksums."""
    return io.json_sha256({name: value for name, value in content.items() if name not in ("sha256", "seconds")})


def _check_origin(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    # Earlier versions wrote no checksum.
    try:
        altered = "sha256" in content and content["sha256"] != checksum(content)
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
    """A dataclass as a dict without entries that are None by default."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        return {name: _clean(found) for name, (found, default) in fields.items() if (found, default) != (None, None)}
    if isinstance(value, dict):
        return {name: _clean(found) for name, found in value.items()}
    return [_clean(found) for found in value] if isinstance(value, list | tuple) else value
