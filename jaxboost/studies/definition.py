"""study.json: what a study's folder holds runs of, so that two studies or two data sets never share one folder."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from ml_collections import ConfigDict
from pydantic import Field

from jaxboost import io, schema, systems
from jaxboost.config import continuing
from jaxboost.config.table import ALL_FIELDS
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.runs import workdir
from jaxboost.runs.saved_config import ConfigJson
from jaxboost.studies.plan import Plan
from jaxboost.studies.record import ComparisonRecord
from jaxboost.systems.weights import RANDOM

FILE, FORMAT = "study.json", 1
_NAMED = 5  # most differences that a message names

_TEXTS = ("name", "title", "group", "rung", "note", "tuned", "after")
_Text = Annotated[str, Field(max_length=10_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmDefinition:
    """An arm; fields as in `study.Arm`, and `config` with all its fields."""

    name: _Text
    title: _Text
    group: _Text
    rung: int | None = None
    note: _Text = ""
    seeds: int | None = None
    tuned: bool = False
    after: _Text = ""
    config: ConfigJson


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataDefinition:
    """A data set of the study, as it was when its first run started.

    Attributes:
      about: which data set, from `config.data`.
      fingerprint: digests, see `data_check.fingerprint`.
      figures: entries for reports, see `record.Record.data`.
    """

    about: _Text
    fingerprint: dict[_Text, _Text]
    figures: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition:
    """The content of study.json; fields as in `study.Study`. `seeds` is the largest number that was asked for."""

    format: int = FORMAT
    name: _Text
    question: _Text
    expected: _Text
    quick: bool
    seeds: int
    lr_grid: tuple[float, ...]
    arms: tuple[ArmDefinition, ...]
    comparisons: tuple[ComparisonRecord, ...]
    data: tuple[DataDefinition, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms."""
        return tuple(arm.name for arm in self.arms)


def of(plan: Plan) -> Definition:
    """The definition of a plan's study."""
    study = plan.study
    arms = tuple(
        ArmDefinition(
            **{name: getattr(arm, name) for name in _TEXTS},
            seeds=arm.seeds or (study.arm(arm.after).seeds if arm.after else None),
            config=continuing.to_dict(plan.configs[arm.name]),
        )
        for arm in study.arms
    )
    return Definition(
        **{name: getattr(study, name) for name in ("name", "question", "expected", "quick", "seeds")},
        lr_grid=tuple(float(rate) for rate in study.lr_grid),
        arms=arms,
        comparisons=tuple(ComparisonRecord(**dataclasses.asdict(each)) for each in study.comparisons),
    )


def read(folder: pathlib.Path) -> Definition | None:
    """Reads the definition in a folder; None if there is none.

    Raises:
      UserError: it is damaged, or of a later version.
    """
    try:
        content = io.read_json(folder / FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / FILE} cannot be read ({error}): bring it back from a backup, or remove it"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise UserError(f"{folder / FILE} was written by a later version: install that version of jaxboost")
    return schema.parse(Definition, content, where=str(folder / FILE), fix="bring it back from a backup, or remove it")


def with_dtype(plan: Plan) -> Plan:
    """The plan in which all arms with `model.dtype=auto` have one dtype: that of study.json, else the device's.

    So all runs of a study compute alike, also those that another machine starts.

    Raises:
      UserError: study.json cannot be read.
    """
    theirs = read(plan.folder)
    known = {} if theirs is None else {arm.name: continuing.flat(arm.config).get("model.dtype") for arm in theirs.arms}
    # The arms that are "auto" now were so when the study began: an arm that names its dtype does not count.
    open_arms = [name for name, config in plan.configs.items() if config.model.dtype == continuing.AUTO]
    found = next((dtype for name in open_arms if (dtype := known.get(name))), continuing.AUTO)

    def named(config: Config) -> Config:
        return systems.with_dtype(config, lambda: {"model.dtype": found})

    runs = tuple(dataclasses.replace(each, config=named(each.config)) for each in plan.runs)
    return dataclasses.replace(plan, configs={name: named(config) for name, config in plan.configs.items()}, runs=runs)


def check(plan: Plan) -> Definition:
    """The definition to be written for a plan: more seeds and other texts are fine.

    Raises:
      UserError: the folder holds another study; the message names what differs.
    """
    ours, theirs = of(plan), read(plan.folder)
    if theirs is None:
        return ours
    if found := differences(theirs, ours):
        more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UserError(
            f"{plan.folder} holds another study, which differs in {', '.join(found[:_NAMED])}{more}: give another --out"
        )
    return dataclasses.replace(ours, seeds=max(ours.seeds, theirs.seeds), data=theirs.data)


def write(folder: pathlib.Path, definition: Definition) -> None:
    """Writes study.json.

    Raises:
      UserError: it cannot be written.
    """
    with io.writing(folder / FILE):
        io.write_text(folder / FILE, io.to_json(dataclasses.asdict(definition), indent=1) + "\n")


def differences(theirs: Definition, ours: Definition) -> list[str]:
    """How two studies differ, one text each; texts, seeds and paths do not count."""
    found = [
        f"{name} ({getattr(theirs, name)!r} there, {getattr(ours, name)!r} now)"
        for name in ("name", "quick", "lr_grid", "names")
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if theirs.names != ours.names:
        return found
    for before, now in zip(theirs.arms, ours.arms, strict=True):
        for name in ("group", "rung", "seeds", "tuned", "after"):
            if getattr(before, name) != getattr(now, name):
                found.append(f"{name} of arm {now.name} ({getattr(before, name)!r} there, {getattr(now, name)!r} now)")
        found += [f"{text} of arm {now.name}" for text in differing(before.config, now.config)]
    pairs = [
        {(each.arm, each.reference, each.main) for each in definition.comparisons} for definition in (theirs, ours)
    ]
    if pairs[0] != pairs[1]:
        found.append(f"the comparisons ({len(pairs[0])} there, {len(pairs[1])} now)")
    return found


def changes(first: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted field -> JSON value of a config where it differs from the first, of the fields that both have.

    Seeds, and fields that do not matter for a run, such as where the data are, do not count.
    """
    before, now = continuing.flat(first), continuing.flat(config)
    folders = workdir.CONVERTED_FOLDERS
    free = [name for name, field in ALL_FIELDS.items() if field.resume != "same" and name not in folders]
    names = [name for name in now if name in before and before[name] != now[name]]
    return {name: now[name] for name in sorted(names) if name not in ("seed", *free)}


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], leave_out: Sequence[str] = ()) -> list[str]:
    """How two configs differ in what makes their runs what they are, one text for each field."""
    before, now = fixed(theirs), fixed(ours)
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name) and name not in leave_out]
    return [f"{name} ({before.get(name)!r} there, {now.get(name)!r} now)" for name in names]


def fixed(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Dotted field -> JSON value of the fields of a config that make its runs what they are.

    Of a folder of weights only counts whether there is one, or "random" in its place: folders may move.
    """
    fields = continuing.flat(continuing.to_dict(config) if isinstance(config, ConfigDict) else config)
    found = {}
    for name, value in {**continuing.ADDED, **fields}.items():
        if name not in ALL_FIELDS or ALL_FIELDS[name].resume == "same":
            found[name] = value
        elif name in workdir.CONVERTED_FOLDERS:
            found[name] = value if value in ("", RANDOM) else "a folder"
    return found
