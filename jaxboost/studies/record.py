"""The record of a study: figures and scores of all its runs, everything that a report needs, in two small files."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from jaxboost import io, schema
from jaxboost.errors import UserError

FORMAT = 1
RECORD, SCORES = "record.json", "scores.npz"

_Text = Annotated[str, Field(max_length=10_000)]
_Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmRecord:
    """An arm as it was run; fields as in `study.Arm`.

    Attributes:
      changes: dotted field -> value: how its configs differ from those of the first arm of its group and system.
      learning_rates: learning rate -> value of the selection metric on validation, if the rate was tuned.
      missing: why it has no run; "" if it has one.
    """

    name: _Text
    title: _Text
    group: _Text = "ladder"
    rung: int | None = None
    note: _Text = ""
    changes: _Json = dataclasses.field(default_factory=dict)
    learning_rates: dict[_Text, float] | None = None
    missing: _Text = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run.

    Attributes:
      arm, seed: which it is.
      result: the content of its result.json.
      curve: the records of metrics.jsonl that have validation metrics, or every tenth if there are many.
    """

    arm: _Text
    seed: int
    result: _Json
    curve: list[_Json] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """A comparison; fields as in `study.Comparison`."""

    arm: _Text
    reference: _Text
    claim: _Text = ""
    main: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something that is not in the record: a run that failed or is unfinished, or a foreign one; and the reason."""

    what: _Text
    why: _Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
    """The samples of a split, in the order of the scores.

    Attributes:
      names: str (n,), files or `test/0`.
      patients: str (n,); equal to `names` where patients are unknown.
      labels: int64 (n, L).
      columns: name -> str (n,): further columns of labels.csv, for subgroups.
    """

    names: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A study's runs, or any runs on the same splits.

    Attributes:
      name, question, expected, quick: as in `study.Study`; for runs without a study `name` is "".
      protocol: "validation" or "reference"; runs of both are never in one record.
      task, classes: of the data set.
      data: entries about the data set for reports: "name", "ndim", "size", "license", "source", "splits" (split ->
        number of samples), "patients" (split -> number), "prevalence" (split -> class -> fraction), "duplicates",
        "excluded" (reason -> number), "sha256"; "unit" is "patient" where the images of a patient were pooled, so that
        items and scores are those of patients.
      arms: in the order of reports; also those without a run, see `ArmRecord.missing`.
      comparisons: one family for Holm's correction; also those of arms without a run.
      runs: all finished runs.
      items: "val" and "test" -> their samples. With the protocol "reference" there is no "val".
      scores: (arm, seed, split) -> probabilities float32 (n, C).
      left_out: what is missing, and why.
    """

    name: str
    question: str
    expected: str
    quick: bool
    protocol: Literal["validation", "reference"]
    task: str
    classes: tuple[str, ...]
    data: Mapping[str, Any]
    arms: tuple[ArmRecord, ...]
    comparisons: tuple[ComparisonRecord, ...]
    runs: tuple[RunRecord, ...]
    items: Mapping[str, Items]
    scores: Mapping[tuple[str, int, str], np.ndarray]
    left_out: tuple[LeftOut, ...] = ()

    def runs_of(self, arm: str) -> list[RunRecord]:
        """The finished runs of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def scores_of(self, arm: str, split: str) -> np.ndarray:
        """The probabilities of an arm's runs, by seed: float32 (seeds, n, C)."""
        return np.stack([self.scores[arm, run.seed, split] for run in self.runs_of(arm)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """The content of record.json: the fields of `Record` without arrays."""

    format: int
    name: _Text
    question: _Text
    expected: _Text
    quick: bool
    protocol: Literal["validation", "reference"]
    task: _Text
    classes: tuple[_Text, ...]
    data: _Json
    arms: tuple[ArmRecord, ...]
    comparisons: tuple[ComparisonRecord, ...]
    runs: tuple[RunRecord, ...]
    left_out: tuple[LeftOut, ...]


def write(record: Record, folder: pathlib.Path) -> None:
    """Writes record.json and scores.npz to a folder; the first names the second's digest, so they belong together.

    Raises:
      OSError: the folder cannot be written.
    """
    arrays = {}
    for split, items in record.items.items():
        arrays |= {f"items/{split}/{name}": getattr(items, name) for name in ("names", "patients", "labels")}
        arrays |= {f"items/{split}/columns/{name}": values for name, values in items.columns.items()}
    for (arm, seed, split), scores in record.scores.items():
        arrays[f"scores/{arm}/{seed}/{split}"] = np.asarray(scores, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with io.replacing(folder / SCORES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    stored = {
        field.name: [dataclasses.asdict(each) for each in value] if field.name in _LISTS else value
        for field in dataclasses.fields(_Stored)
        if field.name != "format"
        for value in [getattr(record, field.name)]
    }
    content = {"format": FORMAT, "scores_sha256": io.digest_of(folder / SCORES), **stored}
    # Without indentation: a study has hundreds of curves, a number on each line.
    io.write_text(folder / RECORD, io.to_json(content) + "\n")


_LISTS = ("arms", "comparisons", "runs", "left_out")


def read(folder: pathlib.Path) -> Record:
    """Reads the record in a folder.

    Raises:
      UserError: it is missing, damaged, or of a later version.
    """
    try:
        content = io.read_json(folder / RECORD)
        digest = io.digest_of(folder / SCORES)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no record of a study ({error}): give a folder of runs or of a study") from None
    if not isinstance(content, dict) or content.get("scores_sha256") != digest:
        raise UserError(f"{folder}: {RECORD} and {SCORES} do not belong together: make both again")
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise UserError(f"{folder} was written by a later version: install that version of jaxboost")
    stored = schema.parse(_Stored, content, where=str(folder / RECORD), fix="make it again with `jaxboost report`")
    items: dict[str, dict[str, Any]] = {}
    scores = {}
    with np.load(folder / SCORES, allow_pickle=False) as arrays:
        for key in arrays.files:
            kind, first, *rest = key.split("/")
            if kind == "scores":
                scores[first, int(rest[0]), rest[1]] = arrays[key]
            elif rest[0] == "columns":
                items.setdefault(first, {}).setdefault("columns", {})["/".join(rest[1:])] = arrays[key]
            else:
                items.setdefault(first, {})[rest[0]] = arrays[key]
    fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(_Stored)}
    del fields["format"]
    return Record(**fields, items={split: Items(**found) for split, found in items.items()}, scores=scores)
