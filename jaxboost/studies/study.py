"""The declaration of a study: which arms run with which seeds, and which pairs of arms are compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Groups of arms, in the order in which reports show them.
LADDER, CONTROL, SWEEP = "ladder", "control", "sweep"
# A trial of a study that does not say what its trial is.
SHORT = {"train.epochs": 2, "optim.warmup_epochs": 0.0, "eval.bootstrap": 200}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a study: a config and what is changed in it.

    Attributes:
      name: short and unique, such as "rllm" or "random_block_1"; it names the arm's folder.
      title: as tables show it, such as "R-LLM, frozen random block (draw 1)".
      config: name or path of its config, with an argument after a colon, as --config takes it.
      overrides: dotted field -> value, on top of the config.
      group: LADDER, CONTROL or SWEEP.
      rung: for the ladder: its place, from 0, the simplest. The verdict names the lowest rung that nothing beats.
      seeds: number of seeds, at most the study's; None: those of the study. An arm without random numbers needs one.
      tuned: whether the learning rate is chosen on validation, from the study's `lr_grid`.
      after: name of an arm whose finished runs this one evaluates again instead of training; "" for none.
      note: what the arm tells a reader, one sentence.
    """

    name: str
    title: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = LADDER
    rung: int | None = None
    seeds: int | None = None
    tuned: bool = False
    after: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms that are compared: the difference is `arm` minus `reference`.

    Attributes:
      arm, reference: names of arms.
      claim: what a positive difference would show, as a sentence without a full stop.
      main: whether the verdict is about it; a study has one such comparison.
    """

    arm: str
    reference: str
    claim: str
    main: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study.

    Attributes:
      name: of its file, such as "ladder".
      question: the question that it answers, one sentence.
      expected: what the authors expect, one or two sentences, written before it was run.
      arms: in the order in which they run and are shown.
      comparisons: pairs of arms; all of them together are one family for Holm's correction.
      seeds: number of seeds of each arm.
      lr_grid: learning rates that a tuned arm tries with its first seed; () for no tuning.
      shared: dotted field -> value, for all arms that have the field.
      trial: dotted field -> value, likewise, for a trial: what --quick changes besides one seed and no tuning.
      quick: whether this is a trial with few epochs and one seed, which shows nothing but that all works.
    """

    name: str
    question: str
    expected: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    seeds: int = 5
    lr_grid: tuple[float, ...] = ()
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trial: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(SHORT))
    quick: bool = False

    def arm(self, name: str) -> Arm:
        """The arm of this name; KeyError if there is none."""
        return {arm.name: arm for arm in self.arms}[name]

    def as_trial(self) -> "Study":
        """A trial of the study: one seed, no tuning, and the fields of `trial`."""
        return dataclasses.replace(
            self,
            quick=True,
            seeds=1,
            lr_grid=(),
            shared={**self.shared, **self.trial},
            arms=tuple(dataclasses.replace(arm, seeds=None) for arm in self.arms),
        )
