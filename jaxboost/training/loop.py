"""The training loop: steps, validation after each epoch, checkpoints, and resuming a run that was stopped."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Callable

import grain
import jax
import numpy as np

from jaxboost import processes, stopping
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset, Split
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.evaluation import evaluate, metrics, patients
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays
from jaxboost.systems import System
from jaxboost.training import step
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer, Progress
from jaxboost.training.log import METRICS, MetricsLog, ProgressBar
from jaxboost.training.monitor import PendingLosses, RateMeter
from jaxboost.training.program import Program
from jaxboost.training.step import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Loop:
    """A run between its start and its result: its parts and its progress.

    Attributes:
      config, folder: of the run.
      system: its model.
      program: its step functions.
      dataset: with the splits "train" and "test", and "val" unless the test split picks the epoch.
      augment: random changes of training images.
      image_size: side of the model's input in pixels; None if the data set has source tokens instead of images.
      iterator: of training batches; its position is part of a checkpoint.
      selection_split: the split that picks the best epoch.
      steps_per_epoch, last_step: numbers of steps.
      state: what a step changes.
      frozen: the frozen weights.
      progress: the best epoch so far, and what must be the same when the run is resumed.
      started: time of this start of the run, on the monotonic clock.
      check_lock: called before each write that would damage the run of another process; raises UserError then.
    """

    config: Config
    folder: pathlib.Path
    system: System
    program: Program
    dataset: Dataset
    augment: Augment
    image_size: int | None
    iterator: grain.DatasetIterator
    selection_split: str
    steps_per_epoch: int
    last_step: int
    state: TrainState
    frozen: Tree
    progress: Progress
    started: float
    check_lock: Callable[[], None]

    def resume(self, checkpointer: Checkpointer) -> None:
        """Restores the latest checkpoint, if there is one."""
        if processes.first("checkpoint", checkpointer.latest_step) is not None:
            config = self.progress.config
            self.state, found = checkpointer.restore_latest(
                self.state, self.iterator, self.progress.fingerprints, config
            )
            # A checkpoint of an earlier version does not have the config.
            self.progress = dataclasses.replace(found, config=config)
            logger.info("resumed from step %d", int(self.state.step))
            stopping.say(f" before step {int(self.state.step) + 1}: run the same command again")
        elif (self.folder / METRICS).exists():
            logger.warning("%s has records but no checkpoint: it starts again from the first step", self.folder)

    def train(self, checkpointer: Checkpointer) -> bool:
        """Trains up to the last step, with validation and checkpoints. Returns False if a signal stopped it."""
        first, config = int(self.state.step), self.config.train
        losses = PendingLosses(checkpointer, self.folder)
        save_every = config.checkpoint_every or self.last_step
        rate = RateMeter(config.batch_size)
        key = arrays.put(jax.random.key(self.config.seed), self.program.replicated)
        with (
            MetricsLog(
                self.folder, resume_step=first, validated=self.progress.validated, kept=checkpointer.kept
            ) as log,
            ProgressBar(first, self.last_step) as bar,
            contextlib.ExitStack() as stack,
        ):
            self._catch_up(first, log, losses, checkpointer)
            for number in range(first + 1, self.last_step + 1):
                batch = step.put(next(self.iterator), self.program.by_batch)
                self.state, outputs = self.program.train_step(self.state, self.frozen, batch, key)
                if number == first + 1:
                    # The step is compiled now, and later steps are short: a signal waits for their end.
                    stack.enter_context(stopping.deferred())
                losses.add(number, outputs["loss"], outputs["grad_norm"])
                bar.advance()
                at_end = number % self.steps_per_epoch == 0 or number == self.last_step
                if number % config.log_every == 0 or at_end:
                    values = {
                        "train_loss": losses.fetch(),
                        "grad_norm": float(outputs["grad_norm"]),
                        "learning_rate": float(self.program.learning_rate(number - 1)),
                        "images_per_second": rate.measure(number),
                    }
                    log.write(number, values)
                    bar.report(number, loss=values["train_loss"], images_per_second=values["images_per_second"])
                validated = not at_end or self._validate_unless_stopped(number, log, losses, checkpointer)
                if at_end:
                    rate.restart(number)
                if at_end or number % save_every == 0 or stopping.received():
                    losses.fetch()
                    self._save(checkpointer, validated=validated)
                if stopping.received():
                    break
            # The last state must be on the disk before a signal may end the process at once.
            checkpointer.wait()
        if not stopping.received():
            return True
        logger.info(
            "stopped by %s after step %d, saved: run the same command to go on",
            stopping.received(),
            int(self.state.step),
        )
        return False

    def scores(self, params: Tree, stats: Tree, split: str) -> tuple[float, np.ndarray]:
        """Mean loss, and probabilities (n, classes), of a split."""
        return self._predict(params, stats, self.dataset.splits[split])

    def seconds(self) -> float:
        """Time spent on the run, over all its starts."""
        return self.progress.seconds + time.monotonic() - self.started

    def _predict(self, params: Tree, stats: Tree, split: Split) -> tuple[float, np.ndarray]:
        evaluated = batches.eval_batches(
            split,
            batch_size=self.config.eval.batch_size,
            image_size=self.image_size,
            augment=self.augment,
            **arrays.share(),
        )
        bound = self.program.bind_eval_step(params, self.frozen, stats)
        losses, scores = evaluate.run_batches(bound, evaluated, self.program.by_batch)
        return float(losses.mean()), scores

    def _evaluated(self) -> tuple[Tree, Tree]:
        return self.state.evaluated(ema=self.config.eval.ema)

    def _catch_up(self, first: int, log: MetricsLog, losses: PendingLosses, checkpointer: Checkpointer) -> None:
        """Validates if a signal prevented it. Else compiles the validation, so that no later signal waits for that."""
        if not self.progress.validated:
            self._validate(first, log, losses, checkpointer)
        elif first < self.last_step:
            split = self.dataset.splits[self.selection_split]
            self._predict(*self._evaluated(), split.take(np.arange(1)))

    def _validate_unless_stopped(
        self, number: int, log: MetricsLog, losses: PendingLosses, checkpointer: Checkpointer
    ) -> bool:
        """Validates. Returns False, and writes nothing, if a signal came before the end."""
        try:
            stopping.poll()
            self._validate(number, log, losses, checkpointer)
        except stopping.Stopped:
            return False
        return True

    def _validate(self, number: int, log: MetricsLog, losses: PendingLosses, checkpointer: Checkpointer) -> None:
        split, metric = self.selection_split, self.config.eval.metric
        loss, scores = self.scores(*self._evaluated(), split)
        losses.stop_unless_finite(number, f"{split} loss", loss)
        task = self.dataset.info.task
        counted = patients.counted(self.dataset.splits[split], scores, task, unit=self.config.eval.unit)
        result = metrics.score(counted.labels, counted.probabilities, task)
        names = [name for name in metrics.SELECTION if name in result]
        log.write(number, {f"{split}_loss": loss, **{f"{split}_{name}": result[name] for name in names}})
        epoch, best = math.ceil(number / self.steps_per_epoch), self.progress.best
        better = best is None or metrics.is_better(result[metric], best.value, ties=self.config.eval.ties)
        logger.info(
            "epoch %d/%d: %s loss %.4f, ACC %.4f, AUC %.4f%s",
            epoch,
            self.config.train.epochs,
            split,
            loss,
            result["acc"],
            result["auc"],
            ", best so far" if better else "",
        )
        if better:
            self.check_lock()
            sha256 = checkpointer.save_best(number, *self._evaluated())
            best = Best(epoch=epoch, step=number, value=result[metric], sha256=sha256)
            self.progress = dataclasses.replace(self.progress, best=best)

    def _save(self, checkpointer: Checkpointer, *, validated: bool) -> None:
        self.check_lock()
        progress = dataclasses.replace(self.progress, seconds=self.seconds(), validated=validated)
        checkpointer.save_latest(self.state, self.iterator, progress)


def train_iterator(config: Config, split: Split, *, augment: Augment, image_size: int | None) -> grain.DatasetIterator:
    """The training batches of a config, without an end, from the training split; see `batches.train_iterator`."""
    return batches.train_iterator(
        split,
        batch_size=config.train.batch_size,
        seed=config.seed,
        image_size=image_size,
        augment=augment,
        sampling=config.train.sampling,
        last_batch=config.train.last_batch,
        multiple=config.train.epoch_multiple,
        **arrays.share(),
    )
