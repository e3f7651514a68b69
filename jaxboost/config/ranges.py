"""The ranges of a config's numbers: of the one that a user gives, and of the one that a run's folder has."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxboost import tasks
from jaxboost.errors import UserError, check_choice
from jaxboost.training import step


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers; None: no such bound."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def wanted(self, value: float) -> str:
        """What `value` should be, in words; empty where it is in the range."""
        # The model computes with float32: what is 0 there is not above 0.
        if self.above is not None and not np.float32(value) > self.above:
            return f"above {self.above}"
        if self.least is not None and value < self.least:
            return f"{self.least} or more"
        if self.below is not None and value >= self.below:
            return f"below {self.below}"
        if self.most is not None and value > self.most:
            return f"at most {self.most}"
        return ""


# Far more than anybody uses, but such that no number overflows and no memory is asked for that no machine has.
_SIDE = 8192
_BATCH = Range(above=0, most=2**16)
_STEPS = 2**31 - 1  # the state counts them in int32
_EPOCHS = 10**6

RANGES = {
    "seed": Range(least=0, below=2**32),
    "data.size": Range(above=0, most=_SIDE),
    "data.spacing": Range(least=0, most=1000),
    "data.folds": Range(least=0, most=1000),
    "data.max_pixels": Range(above=0, most=2**40),
    "data.max_voxels": Range(above=0, most=2**40),
    "model.image_size": Range(most=_SIDE),
    "augment.resize": Range(least=0, most=_SIDE),
    "augment.repeats": Range(most=10**6),
    "mix.mixup": Range(most=1e6),
    "mix.cutmix": Range(most=1e6),
    "optim.lr": Range(above=0),
    "optim.warmup_epochs": Range(least=0, most=_EPOCHS),
    "optim.warmup_from": Range(least=0),
    "optim.final_lr": Range(least=0),
    "optim.schedule_epochs": Range(least=0, most=_EPOCHS),
    "optim.schedule_from": Range(least=0, most=_EPOCHS),
    "optim.layer_decay": Range(above=0, most=1),
    "optim.weight_decay": Range(least=0),
    "optim.b1": Range(least=0, below=1),
    "optim.b2": Range(least=0, below=1),
    "optim.eps": Range(above=0),
    "optim.clip_norm": Range(least=0),
    "train.epochs": Range(above=0, most=_EPOCHS),
    "train.batch_size": _BATCH,
    "train.epoch_multiple": Range(least=0, most=_STEPS),
    "train.accumulate": Range(above=0, most=10**6),
    "train.ema": Range(least=0, below=1),
    "train.max_steps": Range(least=0, most=_STEPS),
    "train.log_every": Range(above=0, most=_STEPS),
    "train.checkpoint_every": Range(least=0, most=_STEPS),
    "eval.specificity": Range(least=0, below=1),
    "eval.batch_size": _BATCH,
    "eval.bootstrap": Range(above=0, most=10**6),
    "pneumollm.every": Range(most=1000),
    "pneumollm.count": Range(most=4096),
}
_GREATEST = int(np.finfo(np.float32).max)
_LONGEST = 10_000  # entries of a tuple, such as classes


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for a number of the config that is not finite, or out of the range of its field."""
    for name, value in _numbers(config):
        # Not the other way round: every comparison with NaN is false.
        if not abs(value) <= _GREATEST:
            shown = value if isinstance(value, float) else "a number of so many digits"
            raise UserError(f"config field {name}: {shown} is not finite in float32, give a usual number")
        if name in RANGES and (wanted := RANGES[name].wanted(value)):
            raise UserError(f"config field {name}: {value} should be {wanted}")


def check(config: ConfigDict) -> None:
    """Raises UserError for numbers that mean nothing; other choices are checked where they are used."""
    check_choice(config.train.loss, tasks.LOSSES, "config field train.loss")
    check_numbers(config)
    if config.train.max_steps and config.train.max_steps < config.train.accumulate:
        raise UserError(
            f"config field train.max_steps: {config.train.max_steps} is less than train.accumulate,"
            f" {config.train.accumulate}: nothing would be trained"
        )
    if config.optim.schedule_from + config.train.epochs > (config.optim.schedule_epochs or config.train.epochs):
        raise UserError(
            "config field optim.schedule_epochs: the schedule ends before the run, after"
            f" {config.optim.schedule_epochs} epochs: set it to optim.schedule_from + train.epochs or more"
        )
    step.check_batch_size(config.train.batch_size, "train.batch_size")
    step.check_batch_size(config.eval.batch_size, "eval.batch_size")


def check_steps(config: ConfigDict, steps_per_epoch: int) -> None:
    """Raises UserError where there are more steps than can be counted."""
    epochs = max(config.train.epochs, config.optim.schedule_epochs)
    if epochs * steps_per_epoch > _STEPS:
        raise UserError(
            f"config field train.epochs: {epochs} epochs of {steps_per_epoch} steps are more than {_STEPS} steps: give"
            " fewer"
        )


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Dotted name and value of each number, in tuples too."""
    if isinstance(config, ConfigDict):
        for key in config:
            yield from _numbers(config[key], f"{name}.{key}" if name else key)
    elif isinstance(config, list | tuple):
        if len(config) > _LONGEST:
            raise UserError(f"config field {name}: {len(config)} entries should be at most {_LONGEST}")
        for entry in config:
            yield from _numbers(entry, name)
    elif isinstance(config, int | float) and not isinstance(config, bool):
        yield name, config
