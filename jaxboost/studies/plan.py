"""A study becomes a list of runs: which config, which folder, and what is done already."""

import ast
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from jaxboost import io
from jaxboost.config import load_config, validation
from jaxboost.config.continuing import flat
from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config
from jaxboost.data import dataset_names
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError, check_choice, nearest
from jaxboost.runs import datasets, lock, workdir
from jaxboost.studies.study import Arm, Study

RUNS, FAILURES, CACHE, REPORT = "runs", "failures", "cache", "report"
State = Literal["finished", "interrupted", "failed", "waiting", "running"]
RATE = "optim.lr"
# Sections in which an arm that evaluates finished runs again may differ from the arm that trained them.
_AFTER = ("boost", "eval", "llama")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a study.

    Attributes:
      arm: its arm.
      seed: its random seed.
      config: its config. The learning rate of a run with `follows` is known only after the tuning.
      folder: its folder.
      failure: the file that is written if it fails.
      rate: the learning rate that it tries, if it is a tuning run.
      follows: whether its learning rate is chosen by tuning runs of its arm.
      state: what is there: a result; a run that was stopped; a failure; nothing; or a run of another process.
      seconds: how long it took, or is estimated to take; None: not known.
    """

    arm: Arm
    seed: int
    config: Config
    folder: pathlib.Path
    failure: pathlib.Path
    rate: float | None = None
    follows: bool = False
    state: State = "waiting"
    seconds: float | None = None

    @property
    def key(self) -> str:
        """The run's name in commands: ARM:SEED, or ARM:lr=RATE for a tuning run."""
        return f"{self.arm.name}:{self.seed if self.rate is None else rate_text(self.rate)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a study.

    Attributes:
      study: the study, with the number of seeds and the learning rates that are in effect.
      folder: of the study.
      configs: arm -> its config, with the first seed.
      runs: in the order in which they run.
    """

    study: Study
    folder: pathlib.Path
    configs: Mapping[str, Config]
    runs: tuple[PlannedRun, ...]

    def run(self, key: str) -> PlannedRun:
        """The run of a key, see `PlannedRun.key`; raises UserError if there is none."""
        by_key = {run.key: run for run in self.runs}
        return by_key[check_choice(key, by_key, "--only")]

    def of(self, arm: str) -> list[PlannedRun]:
        """The runs of an arm."""
        return [run for run in self.runs if run.arm.name == arm]

    def refreshed(self) -> "Plan":
        """The plan with the states that the runs' folders have now."""
        runs = [dataclasses.replace(run, state=state_of(run)) for run in self.runs]
        return dataclasses.replace(self, runs=tuple(dataclasses.replace(run, seconds=_spent(run)) for run in runs))


def make(
    study: Study,
    folder: pathlib.Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    seeds: int = 0,
    arms: Sequence[str] = (),
) -> Plan:
    """Plans a study, and checks the configs of all its arms.

    Args:
      study: see `loading.load_study`.
      folder: of the study; it may be missing.
      overrides: dotted field -> value, for all arms that have the field. For a user's folder of images without
        `data.size` that is the most pixels that an arm takes.
      seeds: number of seeds; 0: the study's.
      arms: names of the arms to run; (): all. The others stay in the definition of the study.

    Raises:
      UserError: an override has an unknown field or a wrong type; or configs have problems: one message has those of
        all arms.
    """
    overrides = dict(overrides or {})
    if seeds < 0:
        raise UserError(f"--seeds={seeds}: give 1 or more")
    for name in arms:
        check_choice(name, [arm.name for arm in study.arms], "--arms")
    if overrides.get("data.source") == SOURCE and "data.name" not in overrides:
        overrides["data.name"] = own_name(overrides.get("data.root", ""))
    if RATE in overrides:
        # All arms get the given rate.
        study = dataclasses.replace(study, lr_grid=())
    study = dataclasses.replace(study, seeds=seeds or study.seeds, lr_grid=tuple(sorted(set(study.lr_grid))))
    configs = _configs(study, overrides)
    if overrides.get("data.source") == SOURCE and "data.size" not in overrides and (side := _side(configs)):
        overrides["data.size"] = side
        configs = _configs(study, overrides)
    _check(study, configs, overrides)
    wanted = {*(arms or (arm.name for arm in study.arms))}
    runs = [run for arm in study.arms if arm.name in wanted for run in _runs(study, arm, configs[arm.name], folder)]
    return Plan(study=study, folder=folder, configs=configs, runs=tuple(runs)).refreshed()


def _side(configs: Mapping[str, Config]) -> int:
    """The most pixels that an arm takes of a user's 2D images, so that they lose no detail; 0 for volumes."""
    read = [each for each in configs.values() if "baseline" not in each or each.baseline.features == "encoder"]
    return max((each.model.image_size for each in read if datasets.ndim(each) == 2), default=0)


def own_name(root: str) -> str:
    """A name for the data set in a user's folder, after the folder."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", pathlib.Path(root).name).strip("_.-")
    return name if name and name not in dataset_names() else "own_images"


def state_of(run: PlannedRun) -> State:
    """What is in the folder of a run."""
    if workdir.read_result(run.folder) is not None:
        return "finished"
    # A fold has a lock of its own, and the cross-validation has none.
    folders = [run.folder, *(run.folder / f"fold{number}" for number in range(run.config.data.folds))]
    if any(os.path.isdir(folder) and lock.in_use(folder) for folder in folders):
        return "running"
    if os.path.exists(run.failure):
        return "failed"
    return "interrupted" if os.path.exists(run.folder / workdir.CONFIG) else "waiting"


def rate_text(rate: float) -> str:
    """A learning rate in names of folders and runs, such as lr=0.0005."""
    return f"lr={rate:g}"


def parse_overrides(study: Study, arguments: Sequence[str]) -> dict[str, Any]:
    """Parses overrides of the command line.

    Args:
      study: the study, whose arms' configs give the fields and their types.
      arguments: `--config.section.field=value`; of a field that is True or False also `--noconfig.section.field`.

    Returns:
      Dotted field -> value.

    Raises:
      UserError: no arm has such a field, or a value has the wrong type.
    """
    if not arguments:
        return {}
    fields = {name: value for config in _configs(study, {}).values() for name, value in flat(config).items()}
    found = {}
    for name, text in texts(arguments).items():
        _check_fields([name], fields)
        found[name] = _parsed(name, text, fields[name])
    return found


def texts(arguments: Sequence[str]) -> dict[str, str]:
    """Dotted field -> text of its value, of arguments as in `parse_overrides`.

    Raises:
      UserError: `--noconfig.` has a value.
    """
    found = {}
    for argument in arguments:
        word, equals, text = argument.lstrip("-").partition("=")
        negative = word.startswith("no")
        if negative and equals:
            raise UserError(f"{argument}: --noconfig. means False and takes no value")
        found[word.removeprefix("no").removeprefix("config.")] = text if equals else str(not negative)
    return found


# Type of a field -> what its text is parsed by, and its name in a message.
_PARSERS: Mapping[type, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()], "True or False"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    tuple: (lambda text: _entries(text), "a tuple, such as 1,2"),
}


def _parsed(name: str, text: str, example: Any) -> Any:
    parse, words = _PARSERS[type(example)]
    try:
        return parse(text)
    except (ValueError, KeyError):
        raise UserError(f"config field {name}: {text!r} should be {words}") from None


def _entries(text: str) -> tuple[Any, ...]:
    """The entries of a tuple: Python's values such as (1, 2), or words such as normal,sick."""
    try:
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    except (ValueError, SyntaxError):
        return tuple(word.strip() for word in text.strip("()[] ").split(",") if word.strip())


def _check_fields(names: Sequence[str], fields: Mapping[str, Any]) -> None:
    for name in names:
        if name not in fields:
            raise UserError(
                f"unknown config field --config.{name}: no arm of the study has it, {nearest(name, fields)}"
            )


def _configs(study: Study, overrides: Mapping[str, Any]) -> dict[str, Config]:
    """Arm -> config. A trial's fields and overrides are stronger than what an arm changes."""
    configs = {}
    for arm in study.arms:
        try:
            config = load_config(arm.config)
            config = with_overrides(config, _known(study.shared, config))
            config = with_overrides(config, arm.overrides)
            if arm.tuned and len(study.lr_grid) == 1:
                config = with_overrides(config, {RATE: float(study.lr_grid[0])})
            config = with_overrides(config, _known(study.trial if study.quick else {}, config))
            config = with_overrides(config, _known(overrides, config))
        except UserError as error:
            raise UserError(f"study {study.name}, arm {arm.name}: {error}") from None
        config.seed = 0
        configs[arm.name] = config
    return configs


def _known(changes: Mapping[str, Any], config: Config) -> dict[str, Any]:
    fields = flat(config)
    return {name: value for name, value in changes.items() if name in fields}


def _check(study: Study, configs: Mapping[str, Config], overrides: Mapping[str, Any]) -> None:
    """Raises UserError with the problems of all arms."""
    _check_fields([*overrides], {name: None for config in configs.values() for name in flat(config)})
    if "seed" in overrides:
        raise UserError("--config.seed: a study runs the seeds 0, 1, ...: give their number with --seeds")
    if "train.seeds" in overrides:
        raise UserError("--config.train.seeds: give the number of seeds with --seeds, and --seeds_at_once=true")
    by_text: dict[str, list[str]] = {}
    for arm in study.arms:
        for text in (*validation.problems(configs[arm.name]), *_of_arm(arm, study, configs)):
            by_text.setdefault(text, []).append(arm.name)
    found = [f"{_of_arms(names, study)}: {text}" for text, names in by_text.items()]
    for one, other in itertools.combinations(study.arms, 2):
        same = one.after == other.after and flat(configs[one.name]) == flat(configs[other.name])
        if same and (one.tuned and study.lr_grid) == (other.tuned and study.lr_grid):
            found.append(f"arms {one.name} and {other.name} have the same config: what tells them apart is overridden")
    if len({config.eval.protocol for config in configs.values()}) > 1:
        found.append("config field eval.protocol is reference in some arms only: such results are never mixed")
    if found:
        raise UserError(f"study {study.name}: {'; '.join(found)}")


def _of_arms(names: Sequence[str], study: Study) -> str:
    """Whose problem it is: a mistake in an override is that of many arms, and is said once."""
    if len(names) == 1:
        return f"arm {names[0]}"
    return "all arms" if len(names) == len(study.arms) else f"arms {', '.join(names)}"


def _of_arm(arm: Arm, study: Study, configs: Mapping[str, Config]) -> Iterator[str]:
    config = configs[arm.name]
    if config.data.folds and config.data.fold != -1:
        yield f"config field data.fold: a study runs all folds, set it to -1 (it is {config.data.fold})"
    if "train" in config and config.train.deterministic:
        yield (
            "config field train.deterministic: a study starts jax before its runs, too early for its setting: leave it"
            " out, or train such runs with `jaxboost train`; a CPU gives the same bits without it"
        )
    if arm.tuned and study.lr_grid and RATE not in flat(config):
        yield f"no {RATE} to tune"
    if is_tuned(study, arm) and config.eval.protocol == "reference":
        yield "with eval.protocol=reference the learning rate would be chosen on the test split: give one in optim.lr"
    if arm.after:
        if "baseline" in config:
            yield "baselines are not evaluated again: they have no layer of an LLM"
        if config.data.folds:
            yield "the runs of a cross-validation are not evaluated again: set data.folds=0"
        ours, theirs = flat(config), flat(configs[arm.after])
        for name in sorted({*ours, *theirs}):
            # The rate is that of the finished run.
            if ours.get(name) != theirs.get(name) and name != RATE and name.partition(".")[0] not in _AFTER:
                yield f"config field {name}: runs of {arm.after} are evaluated again, so it has to be the same there"


def _runs(study: Study, arm: Arm, config: Config, folder: pathlib.Path) -> Iterator[PlannedRun]:
    """The runs of an arm: first those that tune its learning rate, with the first seed."""
    arm_folder = folder / RUNS / arm.name
    tunes = is_tuned(study, arm)
    if tunes:
        for rate in study.lr_grid:
            yield PlannedRun(
                arm=arm,
                seed=0,
                config=with_overrides(config, {RATE: float(rate)}),
                folder=arm_folder / rate_text(rate),
                failure=folder / FAILURES / f"{arm.name}_{rate_text(rate)}.txt",
                rate=rate,
            )
    for seed in range(1 if tunes else 0, seeds_of(study, arm)):
        yield PlannedRun(
            arm=arm,
            seed=seed,
            config=with_overrides(config, {"seed": seed}),
            folder=arm_folder / f"seed{seed}",
            failure=folder / FAILURES / f"{arm.name}_seed{seed}.txt",
            follows=tunes,
        )


def is_tuned(study: Study, arm: Arm) -> bool:
    """Whether the learning rate of an arm is chosen on validation."""
    return arm.tuned and len(study.lr_grid) > 1


def seeds_of(study: Study, arm: Arm) -> int:
    """The number of seeds of an arm."""
    own = arm.seeds or (study.arm(arm.after).seeds if arm.after else None) or study.seeds
    return min(own, study.seeds)


def _spent(run: PlannedRun) -> float | None:
    """Seconds that a finished run took; else None."""
    return io.read_json(run.folder / workdir.RESULT).get("seconds") if run.state == "finished" else None
