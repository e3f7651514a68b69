"""Choices of a config that do not go together, or not with its data set."""

import logging

from ml_collections import ConfigDict

from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.systems.experiment import Experiment
from jaxboost.tasks import TASKS
from jaxboost.training.mixing import Mixing

logger = logging.getLogger(__name__)


def warn_of_slow_average(config: ConfigDict, steps: int) -> None:
    """Warns where the average of the weights, which is evaluated, is still mostly the weights at the start."""
    start = config.train.ema ** (steps // config.train.accumulate)
    if config.train.ema and config.eval.ema and start > 0.1:
        logger.warning(
            "train.ema=%s: after %d steps %.0f %% of the average that is evaluated are the weights at the start: lower"
            " it, or set eval.ema=False",
            config.train.ema,
            steps,
            100 * start,
        )


def check_partial_batches(experiment: Experiment, mixing: Mixing) -> None:
    """Raises UserError where a batch filled up with zeros would not compute the same as a smaller batch."""
    if experiment.stats or mixing.mixes:
        what = "batch norms" if experiment.stats else "mixup and cutmix"
        raise UserError(f'config field train.last_batch: {what} need whole batches: set it to "drop"')


def check_binary(config: ConfigDict, info: DatasetInfo) -> None:
    """Raises UserError where a choice of binary tasks is made for another."""
    if TASKS[info.task].binary:
        return
    for name, asked, fix in (
        ("metric", config.eval.metric == "avg", "auc"),
        ("specificity", config.eval.specificity, 0),
    ):
        if asked:
            raise UserError(
                f"config field eval.{name}: {config.eval[name]} is for binary tasks, and {info.name} is {info.task}:"
                f" set it to {fix}"
            )
