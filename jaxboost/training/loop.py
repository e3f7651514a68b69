"""The training loop: steps, validation after each epoch, checkpoints, and resuming a run that was stopped."""

import contextlib
import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxboost import processes, stopping
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset
from jaxboost.evaluation import evaluate, metrics, patients
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays
from jaxboost.systems import System
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer, Progress
from jaxboost.training.clock import Clock
from jaxboost.training.feed import Feed
from jaxboost.training.log import METRICS, MetricsLog, ProgressBar
from jaxboost.training.mfu import Utilisation
from jaxboost.training.monitor import PendingLosses, RateMeter, StepFigures
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
      feed: its batches.
      selection_split: the split that picks the best epoch.
      steps_per_epoch, last_step: numbers of steps.
      state: what a step changes.
      frozen: the frozen weights.
      progress: the best epoch so far, and what must be the same when the run is resumed.
      clock: where its time goes.
      check_lock: called before each write that would damage the run of another process; raises UserError then.
    """

    config: Config
    folder: pathlib.Path
    system: System
    program: Program
    dataset: Dataset
    feed: Feed
    selection_split: str
    steps_per_epoch: int
    last_step: int
    state: TrainState
    frozen: Tree
    progress: Progress
    clock: Clock
    check_lock: Callable[[], None]

    def resume(self, checkpointer: Checkpointer) -> None:
        """Restores the latest checkpoint, if there is one."""
        if processes.first("checkpoint", checkpointer.latest_step) is not None:
            config = self.progress.config
            with self.clock.of("checkpoints"):
                self.state, found = checkpointer.restore_latest(
                    self.state, self.feed.iterator, self.progress.fingerprints, config
                )
            self.clock.add_earlier(found.seconds, found.parts)
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
        usage = Utilisation(self.config.model.dtype, self.program.by_batch.mesh.size)
        key = arrays.put(jax.random.key(self.config.seed), self.program.replicated)
        with (
            MetricsLog(
                self.folder, resume_step=first, validated=self.progress.validated, kept=checkpointer.kept
            ) as log,
            ProgressBar(first, self.last_step) as bar,
            contextlib.ExitStack() as stack,
        ):
            self._note_lost(first, log)
            self._catch_up(first, log, losses, checkpointer)
            self.clock.begin("step")
            number = first
            while number < self.last_step:
                count = self._count(number)
                with self.clock.of("data"):
                    batch = self.feed.take(count)
                if number == first:
                    usage.count(self.program.train_step, self.state, self.frozen, batch, key, images=config.batch_size)
                with self.clock.of("compile" if number == first else "step"):
                    self.state, outputs = self.program.train_step(self.state, self.frozen, batch, key)
                if number == first:
                    # The step is compiled now, and later calls are short: a signal waits for their end.
                    stack.enter_context(stopping.deferred())
                losses.add(number + 1, count, outputs["loss"], outputs["grad_norm"])
                begun, number = number, number + count
                bar.advance(count)
                at_end = number % self.steps_per_epoch == 0 or number == self.last_step
                if begun // config.log_every < number // config.log_every or at_end:
                    self._write_steps(losses.fetch(), number, rate, usage, log, bar)
                validated = not at_end or self._validate_unless_stopped(number, log, losses, checkpointer)
                if at_end:
                    rate.restart(number)
                if at_end or number % save_every == 0 or stopping.received():
                    losses.fetch()
                    self._save(checkpointer, validated=validated)
                if stopping.received():
                    break
            # The last state must be on the disk before a signal may end the process at once.
            with self.clock.of("checkpoints"):
                checkpointer.wait()
        if not stopping.received():
            return True
        logger.info(
            "stopped by %s after step %d, saved: run the same command to go on",
            stopping.received(),
            int(self.state.step),
        )
        return False

    def _count(self, number: int) -> int:
        """How many steps the call after step `number` takes: up to `train.steps_per_call`, and to the next save."""
        config = self.config.train
        wanted = config.steps_per_call or self.steps_per_epoch
        every = config.checkpoint_every or self.last_step
        ends = [(number // interval + 1) * interval for interval in (self.steps_per_epoch, every)]
        return min(wanted, *(end - number for end in (*ends, self.last_step)))

    def _write_steps(
        self,
        found: Sequence[StepFigures],
        number: int,
        rate: RateMeter,
        usage: Utilisation,
        log: MetricsLog,
        bar: ProgressBar,
    ) -> None:
        """Writes the records of those of the steps up to `number` that have one, and shows the last."""
        images_per_second = rate.measure(number)
        for each in found:
            if each.number % self.config.train.log_every == 0 or each.number == number:
                values = {
                    "train_loss": each.loss,
                    "grad_norm": each.grad_norm,
                    "learning_rate": float(self.program.learning_rate(each.number - 1)),
                    "images_per_second": images_per_second,
                    **usage.record(images_per_second),
                }
                log.write(each.number, values | self.clock.record())
        bar.report(number, loss=found[-1].loss, images_per_second=images_per_second)

    def scores(self, params: Tree, stats: Tree, split: str) -> tuple[float, np.ndarray]:
        """Mean loss, and probabilities (n, classes), of a split."""
        with self.clock.of("evaluation"):
            return self._predict(params, stats, split)

    def seconds(self) -> float:
        """Time spent on the run, over all its starts."""
        return self.clock.seconds()

    def _predict(self, params: Tree, stats: Tree, split: str, most: int | None = None) -> tuple[float, np.ndarray]:
        bound = self.program.bind_eval_step(params, self.frozen, stats)
        losses, scores = evaluate.run_batches(
            lambda batch: bound(self.feed.complete(split, batch)),
            self.feed.evaluation(split, most),
            self.program.by_batch,
        )
        return float(losses.mean()), scores

    def _evaluated(self) -> tuple[Tree, Tree]:
        return self.state.evaluated(ema=self.config.eval.ema)

    def _note_lost(self, first: int, log: MetricsLog) -> None:
        """Counts what an interrupted start did after its checkpoint, and records it, as this one may be too."""
        lost = log.seconds - self.progress.seconds
        if lost > 0:
            self.clock.lose(lost)
            log.write(first, self.clock.record())

    def _catch_up(self, first: int, log: MetricsLog, losses: PendingLosses, checkpointer: Checkpointer) -> None:
        """Validates if a signal prevented it. Else compiles the validation, so that no later signal waits for that."""
        if not self.progress.validated:
            self._validate(first, log, losses, checkpointer)
        elif first < self.last_step:
            with self.clock.of("compile"):
                self._predict(*self._evaluated(), self.selection_split, most=1)

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
        values = {f"{split}_loss": loss, **{f"{split}_{name}": result[name] for name in names}}
        log.write(number, values | self.clock.record())
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
            with self.clock.of("checkpoints"):
                sha256 = checkpointer.save_best(number, *self._evaluated())
            best = Best(epoch=epoch, step=number, value=result[metric], sha256=sha256)
            self.progress = dataclasses.replace(self.progress, best=best)

    def _save(self, checkpointer: Checkpointer, *, validated: bool) -> None:
        self.check_lock()
        with self.clock.of("checkpoints"):
            progress = dataclasses.replace(
                self.progress, seconds=self.seconds(), parts=self.clock.parts(), validated=validated
            )
            checkpointer.save_latest(self.state, self.feed.iterator, progress)
