"""Collects finished runs to a record: those of a study, or any on the same samples. What does not fit is left out."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.runs import workdir
from jaxboost.studies import alike, data_check, definition, finished_run, record, subgroups, tuning
from jaxboost.studies.definition import ArmDefinition, Definition
from jaxboost.studies.finished_run import FinishedRun
from jaxboost.studies.plan import FAILURES, RATE, RUNS, rate_text
from jaxboost.studies.record import ArmRecord, ComparisonRecord, LeftOut, Record, RunRecord
from jaxboost.training.checkpoints import checkpoint_folder

_WAITING = "it has not run yet"
_SEED = re.compile(r"seed\d+")
# Folders of a run that hold no other run.
_INSIDE = (checkpoint_folder.FOLDER, "predictions", "tensorboard")
# Numbers of layers are filled in when a run starts, if a config leaves them open.
_LAYERS = ("boost.layers", "llama.layers")


@dataclasses.dataclass(kw_only=True)
class _Found:
    """What was found in a folder.

    Attributes:
      runs: arm -> its runs.
      rates: arm -> learning rate -> value on validation, if it was tuned.
      left_out: what was not taken, and why.
      reasons: arm -> why runs of it were not taken.
    """

    runs: dict[str, list[FinishedRun]] = dataclasses.field(default_factory=dict)
    rates: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)
    reasons: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def leave_out(self, what: str, why: str, arm: str = "") -> None:
        self.left_out.append(LeftOut(what=what, why=why))
        self.reasons.setdefault(arm, []).append(why)

    def why_missing(self, arm: str) -> str:
        """Why an arm has no run; that some have not run yet only if there is nothing else."""
        reasons = dict.fromkeys(self.reasons.get(arm, ()))
        return "; ".join([why for why in reasons if why != _WAITING] or reasons)


def collect(folder: pathlib.Path) -> Record:
    """Makes a record of a folder.

    Args:
      folder: of a study; of a record; of one run; or a folder with folders of runs, at any depth. Those runs become
        arms called after their folders, and each is compared with the first.

    Raises:
      UserError: there is no such folder, or nothing in it can be taken; or the record or study.json is damaged.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: there is no such folder: give a folder of runs or of a study")
    if study := definition.read(folder):
        return _of_study(folder, study)
    if os.path.exists(folder / record.RECORD):
        return record.read(folder)
    return _of_runs(folder)


def _of_study(folder: pathlib.Path, study: Definition) -> Record:
    found = _Found()
    for arm in study.arms:
        _take_arm(folder, study, arm, found)
    taken = _keep_alike(found, folder)
    fields: dict[str, Any] = {
        **{name: getattr(study, name) for name in ("name", "question", "expected", "quick", "comparisons")},
        "figures": study.data,
    }
    arms = [
        ArmRecord(
            **{name: getattr(arm, name) for name in ("name", "title", "group", "rung", "note")},
            changes=_changes(arm, study),
            learning_rates=found.rates.get(arm.name),
            missing="" if arm.name in taken else found.why_missing(arm.name),
        )
        for arm in study.arms
    ]
    return _record(taken, found, arms=arms, **fields)


def _take_arm(folder: pathlib.Path, study: Definition, arm: ArmDefinition, found: _Found) -> None:
    """Reads the runs of an arm of a study."""
    arm_folder = folder / RUNS / arm.name
    count = min(arm.seeds or study.seeds, study.seeds)
    seeds = {number: arm_folder / f"seed{number}" for number in range(count)}
    tuned, chosen = arm.tuned and len(study.lr_grid) > 1, None
    if tuned:
        chosen = _tuned(folder, study, arm, list(seeds.values())[1:], found)
        if chosen is None:
            del seeds[0]
        else:
            seeds[0] = arm_folder / rate_text(chosen)
    # Of the runs that an arm evaluates again, by seed.
    rates = {run.seed: continuing.flat(run.result["config"]).get(RATE) for run in found.runs.get(arm.after, ())}
    for seed, run_folder in seeds.items():
        what = f"{arm.name}, seed {seed}"
        try:
            run = finished_run.read(run_folder)
            differing = _differing(arm, run, seed, rate=rates.get(seed, chosen), any_rate=tuned or bool(arm.after))
            if differing:
                raise ValueError(f"it is a run of another config, which differs in {', '.join(differing)}")
            found.runs.setdefault(arm.name, []).append(run)
        except ValueError as error:
            why = _failure(folder, f"{arm.name}_seed{seed}") or _unfinished(run_folder, str(error))
            found.leave_out(what, why, arm.name)


def _tuned(
    folder: pathlib.Path, study: Definition, arm: ArmDefinition, others: Sequence[pathlib.Path], found: _Found
) -> float | None:
    """The learning rate of an arm; None if it is not known yet."""
    values, open_ones = {}, 0
    for rate in study.lr_grid:
        run_folder = folder / RUNS / arm.name / rate_text(rate)
        result = workdir.read_result(run_folder)
        if result is not None:
            values[rate] = tuning.value(result)
        elif why := _failure(folder, f"{arm.name}_{rate_text(rate)}"):
            found.leave_out(f"{arm.name}, learning rate {rate:g}", why, arm.name)
        else:
            open_ones += 1
    found.rates[arm.name] = tuning.as_json(values)
    if open_ones or not values:
        why = f"runs that tune its learning rate remain: {open_ones}" if open_ones else "no rate finished"
        found.leave_out(f"{arm.name}, seed 0", why, arm.name)
        return None
    return tuning.kept(values, others)


def _failure(folder: pathlib.Path, name: str) -> str:
    """The reason in the file of a run that failed; "" if there is none."""
    try:
        lines = (folder / FAILURES / f"{name}.txt").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    return f"it failed: {lines[1]}" if len(lines) > 1 else "it failed"


def _unfinished(folder: pathlib.Path, why: str) -> str:
    return why if os.path.exists(folder) else _WAITING


def _differing(arm: ArmDefinition, run: FinishedRun, seed: int, *, rate: float | None, any_rate: bool) -> list[str]:
    """How the config of a run differs from that of its arm, one text for each field.

    Args:
      arm: the arm.
      run: the run.
      seed: the seed that it should have.
      rate: the learning rate that it should have; None: that of the arm or, with `any_rate`, any.
      any_rate: whether the rate of the arm does not count.
    """
    given, own = continuing.flat(arm.config), run.result["config"]
    free = ["seed", *(name for name in _LAYERS if not given.get(name)), *([RATE] if any_rate else [])]
    found = definition.differing(arm.config, own, free)
    wanted = {"seed": seed} | ({} if rate is None else {RATE: rate})
    has = {**continuing.flat(own), "seed": run.seed}
    pairs = [(name, value, has.get(name)) for name, value in wanted.items()]
    return found + [f"{name} ({value!r} there, {now!r} now)" for name, value, now in pairs if value != now]


def _changes(arm: ArmDefinition, study: Definition) -> dict[str, Any]:
    # Of another system only few fields could be compared.
    alike = [each for each in study.arms if each.group == arm.group and {*each.config} == {*arm.config}]
    return definition.changes(alike[0].config, arm.config)


def _of_runs(folder: pathlib.Path) -> Record:
    """A record of the runs below a folder, without a study."""
    found, first = _Found(), {}
    for run_folder in _run_folders(folder):
        where = str(run_folder.relative_to(folder))
        try:
            run = finished_run.read(run_folder)
        except ValueError as error:
            found.leave_out(where, str(error))
            continue
        name = _arm_name(folder, run_folder)
        while name in first and definition.changes(first[name].result["config"], run.result["config"]):
            name = f"{name}_{run_folder.name}"
        first.setdefault(name, run)
        if run.seed in {other.seed for other in found.runs.get(name, [])}:
            found.leave_out(where, f"another run of {name} has the seed {run.seed} too")
            continue
        found.runs.setdefault(name, []).append(run)
    taken = _keep_alike(found, folder)
    names = list(taken)
    arms = [
        ArmRecord(
            name=name,
            title=name,
            changes=definition.changes(taken[names[0]][0].result["config"], runs[0].result["config"]),
        )
        for name, runs in taken.items()
    ]
    comparisons = [
        ComparisonRecord(arm=name, reference=names[0], claim=f"{name} is better than {names[0]}", main=len(names) == 2)
        for name in names[1:]
    ]
    fields: dict[str, Any] = {"name": "", "question": "", "expected": "", "quick": False}
    return _record(taken, found, arms=arms, comparisons=comparisons, figures=(), **fields)


def _run_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of runs, finished or not, in the order of their names; the folds of a cross-validation are one."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _INSIDE)
        if {workdir.CONFIG, workdir.RESULT} & {*files}:
            found.append(pathlib.Path(path))
            folders.clear()
    return found


def _arm_name(folder: pathlib.Path, run_folder: pathlib.Path) -> str:
    """The name of an arm: the path of the run's folder, without that of the seed. A record needs names without "/"."""
    parts = list(run_folder.relative_to(folder).parts)
    if parts and _SEED.fullmatch(parts[-1]):
        parts.pop()
    above = folder.absolute()
    return "_".join(parts) or (above.parent.name if _SEED.fullmatch(above.name) else above.name)


def _keep_alike(found: _Found, folder: pathlib.Path) -> dict[str, list[FinishedRun]]:
    """The runs on the same samples, by arm and seed; the others are left out, with the reason, see `alike.foreign`.

    Raises:
      UserError: there is no finished run.
    """
    runs = [(arm, run) for arm, own in found.runs.items() for run in sorted(own, key=lambda run: run.seed)]
    if not runs:
        reasons = "".join(f"; {each.what}: {each.why}" for each in found.left_out[:3])
        raise UserError(f"{folder} has no finished run{reasons}: give a folder of runs or of a study")
    taken: dict[str, list[FinishedRun]] = {}
    for (arm, run), why in zip(runs, alike.foreign([run for _, run in runs]), strict=True):
        if why:
            found.leave_out(str(run.folder.relative_to(folder)), why, arm)
        else:
            taken.setdefault(arm, []).append(run)
    return taken


def _record(
    taken: Mapping[str, Sequence[FinishedRun]],
    found: _Found,
    *,
    arms: Sequence[ArmRecord],
    comparisons: Sequence[ComparisonRecord],
    figures: Sequence[definition.DataDefinition],
    **fields: Any,
) -> Record:
    runs = [(arm.name, run) for arm in arms for run in taken.get(arm.name, ())]
    model = runs[0][1]
    for each in comparisons:
        if missing := [name for name in (each.arm, each.reference) if name not in taken]:
            found.leave_out(f"{each.arm} against {each.reference}", f"no run of {' and '.join(missing)}")
    items = dict(model.items)
    try:
        items["test"] = subgroups.with_columns(items["test"], model.result["config"])
    except ValueError as error:
        found.leave_out("subgroups", str(error))
    return Record(
        **fields,
        protocol=model.result["protocol"],
        task=model.result["task"],
        classes=tuple(model.result["classes"]),
        data=data_check.of_record(model, figures),
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        runs=tuple(RunRecord(arm=arm, seed=run.seed, result=run.result, curve=run.curve) for arm, run in runs),
        items=items,
        scores={(arm, run.seed, split): scores for arm, run in runs for split, scores in run.scores.items()},
        left_out=tuple(found.left_out),
    )
