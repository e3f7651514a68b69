"""What a run writes while it trains: records of steps and validations, the best weights, and the latest state."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxboost.evaluation import metrics, patients
from jaxboost.training.active_run import ActiveRun, timed
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer
from jaxboost.training.log import MetricsLog
from jaxboost.training.monitor import PendingLosses, StepFigures

logger = logging.getLogger(__name__)


class Recording:
    """The files of a run that trains; a context manager.

    Args:
      run: the run.
      checkpointer: its checkpoints.
      runs: all runs that train together.
    """

    def __init__(self, run: ActiveRun, checkpointer: Checkpointer, runs: Sequence[ActiveRun]):
        self.run, self.checkpointer, self._runs = run, checkpointer, runs
        self._name = f"seed {run.config.seed}, " if len(runs) > 1 else ""
        self.losses = PendingLosses(checkpointer, run.folder)
        self._files = contextlib.ExitStack()

    def __enter__(self) -> "Recording":
        run, first = self.run, int(self.run.state.step)
        self._log = self._files.enter_context(
            MetricsLog(run.folder, resume_step=first, validated=run.progress.validated, kept=self.checkpointer.kept)
        )
        # What an interrupted start did after its checkpoint is done again; it is recorded, as this start may be
        # interrupted too.
        lost = self._log.seconds - run.progress.seconds
        if lost > 0:
            run.clock.lose(lost)
            self._log.write(first, run.clock.record())
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def write_steps(
        self, found: Sequence[StepFigures], number: int, images_per_second: float | None, usage: dict[str, float]
    ) -> None:
        """Writes the records of those of the steps up to `number` that have one."""
        run = self.run
        for each in found:
            if each.number % run.config.train.log_every == 0 or each.number == number:
                values = {
                    "train_loss": each.loss,
                    "grad_norm": each.grad_norm,
                    "learning_rate": float(run.program.learning_rate(each.number - 1)),
                    "images_per_second": images_per_second,
                    **usage,
                }
                self._log.write(each.number, values | run.clock.record())

    def validate(self, number: int, loss: float, scores: np.ndarray) -> None:
        """Records the validation after a step, and saves the weights if they are the best so far.

        Args:
          number: of the step.
          loss: mean loss of the split that picks the epoch.
          scores: its probabilities, (n, classes).
        """
        run = self.run
        split, metric = run.selection_split, run.config.eval.metric
        self.losses.stop_unless_finite(number, f"{split} loss", loss)
        task = run.dataset.info.task
        counted = patients.counted(run.dataset.splits[split], scores, task, unit=run.config.eval.unit)
        result = metrics.score(counted.labels, counted.probabilities, task)
        names = [name for name in metrics.SELECTION if name in result]
        values = {f"{split}_loss": loss, **{f"{split}_{name}": result[name] for name in names}}
        self._log.write(number, values | run.clock.record())
        epoch, best = math.ceil(number / run.steps_per_epoch), run.progress.best
        better = best is None or metrics.is_better(result[metric], best.value, ties=run.config.eval.ties)
        logger.info(
            "%sepoch %d/%d: %s loss %.4f, ACC %.4f, AUC %.4f%s",
            self._name,
            epoch,
            run.config.train.epochs,
            split,
            loss,
            result["acc"],
            result["auc"],
            ", best so far" if better else "",
        )
        if better:
            run.check_lock()
            with timed(self._runs, "checkpoints"):
                sha256 = self.checkpointer.save_best(number, *run.evaluated())
            best = Best(epoch=epoch, step=number, value=result[metric], sha256=sha256)
            run.progress = dataclasses.replace(run.progress, best=best)

    def save(self, *, validated: bool) -> None:
        """Saves the state; `validated` is False if a signal prevented the validation after its step."""
        run = self.run
        run.check_lock()
        progress = dataclasses.replace(
            run.progress, seconds=run.seconds(), parts=run.clock.parts(), validated=validated
        )
        self.checkpointer.save_latest(run.state, run.feed.iterator, progress)
