"""Training from the first step, or from where it was cut off, to the result."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from jaxboost import io, stopping
from jaxboost.config import continuing, validate
from jaxboost.config.validation import check_steps
from jaxboost.data.dataset import Split
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.evaluation import evaluate, metrics, thresholds
from jaxboost.models.frozen import Tree
from jaxboost.runs import datasets, places, report, workdir
from jaxboost.runs.lock import RunLock, held
from jaxboost.systems import choices, experiment, systems
from jaxboost.training import features, layer_decay, optim, step
from jaxboost.training.cache import keep_compiled_programs
from jaxboost.training.checkpoints import checkpoint_folder
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer, Progress
from jaxboost.training.log import METRICS, MetricsLog, ProgressBar
from jaxboost.training.mixing import Mixing
from jaxboost.training.monitor import PendingLosses, RateMeter

logger = logging.getLogger(__name__)

PROTOCOLS = {"validation": "val", "reference": "test"}  # protocol -> split that picks the epoch


def train_and_evaluate(
    config: ConfigDict, folder: pathlib.Path, splits: datasets.Splits | None = None
) -> dict[str, Any] | None:
    """Runs a config to its end, resuming what `folder` holds of it.

    Every mistake of the user is found before anything is written to `folder`, but for its lock, which goes again.

    Args:
      splits: of the fold of a cross-validation that the run is, None for the data set's own splits.

    Returns:
      The content of result.json; None where SIGTERM or SIGHUP, or after a step Ctrl-C, stopped the run before its end.

    Raises:
      UserError: a mistake, a folder that cannot be written, or that another process works on.
      Stopped: Ctrl-C, where nothing had to be saved.
    """
    validate(config)
    places.check(folder, config)
    if (finished := workdir.check(folder, config)) and workdir.has_config(folder):
        return _finished(config, finished, folder, splits)
    with stopping.watch(resumable=True) as stop:
        stopping.say(" before the first step: run the same command again")
        try:
            with held(folder) as lock:
                # Another process may have come to the end while this one waited.
                if finished := workdir.check(folder, config):
                    _finished(config, finished, folder, splits)
                    if not workdir.has_config(folder):
                        # A prediction reads it.
                        with io.writing(folder):
                            workdir.create(folder, config)
                    return finished
                return Run(config, folder, splits).complete(lock)
        except stopping.Stopped:
            if stop.exit_code:
                raise
            logger.info(stop.line)
            return None


def _finished(
    config: ConfigDict, result: dict[str, Any], folder: pathlib.Path, splits: datasets.Splits | None
) -> dict[str, Any]:
    """Says what a finished run found, and returns it."""
    systems.check_same_weights(config, result, folder)
    datasets.check_same_data(config, result, folder, splits)
    checkpoint_folder.tidy(folder / checkpoint_folder.FOLDER, result["selection"]["step"])
    logger.info("%s is finished:", folder)
    report.log_result(result)
    return result


class Run:
    """One start of a run: everything that is built once, and the three phases that use it."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path, splits: datasets.Splits | None = None):
        self.config, self.folder, self.started = config, folder, time.monotonic()
        step.check_batch_size(config.train.batch_size, "train.batch_size")
        step.check_batch_size(config.eval.batch_size, "eval.batch_size")
        keep_compiled_programs(config.train.compilation_cache)
        info = datasets.describe(config)
        choices.check_binary(config, info)
        self.experiment = systems.prepare(config, info)
        if config.optim.layer_decay != 1:
            layer_decay.check(self.experiment.params)
        self.augment = Augment(**config.augment)
        self.augment.check(info.ndim)
        splits = splits or datasets.own_splits(config, folder)
        self.dataset = splits.load()
        self.selection_split = PROTOCOLS[config.eval.protocol]
        if config.eval.specificity:
            thresholds.check_both_classes(self.dataset, self.selection_split)
        objective = self._objective()
        self.image_size: int | None = config.model.image_size
        self.iterator = self._train_iterator()
        self.steps_per_epoch = batches.steps_per_epoch(
            self.dataset.splits["train"],
            config.train.batch_size,
            last_batch=config.train.last_batch,
            multiple=config.train.epoch_multiple,
        )
        if config.train.last_batch == "keep":
            choices.check_partial_batches(self.experiment, objective.mixing)
        check_steps(config, self.steps_per_epoch)
        tx, self.learning_rate = optim.make_optimizer(
            **config.optim,
            steps_per_epoch=self.steps_per_epoch,
            epochs=config.train.epochs,
            accumulate=config.train.accumulate,
        )
        self.last_step = config.train.epochs * self.steps_per_epoch
        if config.train.max_steps:
            self.last_step = min(self.last_step, config.train.max_steps)
        choices.warn_of_slow_average(config, self.last_step)

        replicated, self.by_batch = step.make_mesh()
        params, self.frozen, stats, self.fingerprints = experiment.initialise(
            self.experiment, seed=config.seed, replicated=replicated
        )
        # Another answer for the same images is another data set.
        self.fingerprints |= datasets.fingerprint(self.dataset, config)
        with io.writing(splits.folder):
            splits.prepare()
        # Images that are other ones each time are encoded each time.
        if self.experiment.encoder_key is not None and not (
            self.augment.random_fields or objective.mixing.changes_images
        ):
            self._encode(params, splits.folder)
        self.state = step.init_state(params, tx, replicated, stats=stats, ema=config.train.ema > 0)
        graphdef = self.experiment.graphdef
        self.train_step = step.make_train_step(
            graphdef,
            tx,
            objective,
            replicated,
            seed=config.seed,
            ema=config.train.ema,
            accumulate=config.train.accumulate,
        )
        self.bind_eval_step = step.make_eval_step(graphdef, objective, replicated)
        self.progress = Progress(
            fingerprints=self.fingerprints, best=None, seconds=0.0, config=continuing.held(continuing.to_dict(config))
        )

    def complete(self, lock: RunLock) -> dict[str, Any] | None:
        """Restores, trains, and evaluates; see `train_and_evaluate`.

        Args:
          lock: of the folder, which is looked at before each write that another process could damage.
        """
        self.lock = lock
        report.log_start(self.experiment, self.dataset, self.config)
        with contextlib.ExitStack() as stack:
            with io.writing(self.folder):
                checkpointer = stack.enter_context(Checkpointer(self.folder / checkpoint_folder.FOLDER))
            if checkpointer.latest_step() is not None:
                config = self.progress.config
                self.state, found = checkpointer.restore_latest(self.state, self.iterator, self.fingerprints, config)
                # Those of an earlier version do not say it.
                self.progress = dataclasses.replace(found, config=config)
                logger.info("resumed from step %d", int(self.state.step))
                stopping.say(f" before step {int(self.state.step) + 1}: run the same command again")
            elif (self.folder / METRICS).exists():
                logger.warning("%s has records but no checkpoint: it starts again from the first step", self.folder)
            with io.writing(self.folder, checkpointer.kept):
                workdir.create(self.folder, self.config)
            if not self._train(checkpointer):
                return None
            stopping.say(" after the last step: run the same command again for the result")
            # From here on everything can be done again.
            stopping.poll()
            return self._finish(checkpointer)

    def scores(self, params: Tree, stats: Tree, split: str) -> tuple[float, np.ndarray]:
        """Mean loss and probabilities of a split."""
        return self._predict(params, stats, self.dataset.splits[split])

    def _predict(self, params: Tree, stats: Tree, split: Split) -> tuple[float, np.ndarray]:
        return evaluate.predict(
            self.bind_eval_step(params, self.frozen, stats),
            split,
            batch_size=self.config.eval.batch_size,
            image_size=self.image_size,
            augment=self.augment,
            by_batch=self.by_batch,
        )

    def _evaluated(self) -> tuple[Tree, Tree]:
        return self.state.evaluated(ema=self.config.eval.ema)

    def _objective(self) -> step.Objective:
        config, info = self.config, self.dataset.info
        mixing = Mixing(**config.mix)
        mixing.check(info.ndim)
        return step.Objective(
            task=info.task,
            classes=len(info.classes),
            loss=config.train.loss,
            class_weights=thresholds.class_weights(
                config.train.class_weights, self.dataset.splits["train"].labels, info
            ),
            mixing=mixing,
            mean=tuple(config.model.mean),
            std=tuple(config.model.std),
        )

    def _train_iterator(self) -> grain.DatasetIterator:
        return batches.train_iterator(
            self.dataset.splits["train"],
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            image_size=self.image_size,
            augment=self.augment,
            sampling=self.config.train.sampling,
            last_batch=self.config.train.last_batch,
            multiple=self.config.train.epoch_multiple,
        )

    def _encode(self, params: Tree, folder: pathlib.Path) -> None:
        """Puts what the frozen encoder makes of the images in their place; it is kept in `folder`."""
        encode = step.make_encode(self.experiment.graphdef, self.by_batch)
        self.dataset = features.encode(
            self.dataset,
            lambda batch: encode(params, self.frozen, step.put(batch, self.by_batch)),
            batch_size=self.config.eval.batch_size,
            image_size=self.config.model.image_size,
            augment=self.augment,
            folder=folder,
            key=f"{self.fingerprints['vision']} {self.experiment.encoder_key} {self.augment.resize}",
        )
        self.image_size = None
        self.iterator = self._train_iterator()

    def seconds(self) -> float:
        """Spent on the run, over all its starts."""
        return self.progress.seconds + time.monotonic() - self.started

    def _train(self, checkpointer: Checkpointer) -> bool:
        """Steps up to the last one, with validation and checkpoints between; False where a signal cut it off."""
        first = int(self.state.step)
        losses = PendingLosses(checkpointer, self.folder)
        save_every = self.config.train.checkpoint_every or self.last_step
        rate = RateMeter(self.config.train.batch_size)
        with (
            MetricsLog(
                self.folder, resume_step=first, validated=self.progress.validated, kept=checkpointer.kept
            ) as log,
            ProgressBar(first, self.last_step) as bar,
            contextlib.ExitStack() as stack,
        ):
            self._catch_up(first, log, losses, checkpointer)
            for number in range(first + 1, self.last_step + 1):
                batch = step.put(next(self.iterator), self.by_batch)
                self.state, outputs = self.train_step(self.state, self.frozen, batch)
                if number == first + 1:
                    # Compiled: from here on a stop would lose work, and comes soon enough after a step.
                    stack.enter_context(stopping.deferred())
                losses.add(number, outputs["loss"], outputs["grad_norm"])
                bar.advance()
                at_end = number % self.steps_per_epoch == 0 or number == self.last_step
                if number % self.config.train.log_every == 0 or at_end:
                    loss = losses.check()
                    images_per_second = rate.measure(number)
                    log.write(
                        number,
                        {
                            "train_loss": loss,
                            "grad_norm": float(outputs["grad_norm"]),
                            "learning_rate": float(self.learning_rate(number - 1)),
                            "images_per_second": images_per_second,
                        },
                    )
                    bar.report(number, loss=loss, images_per_second=images_per_second)
                validated = not at_end or self._validate_unless_stopped(number, log, losses, checkpointer)
                if at_end:
                    rate.restart(number)
                if at_end or number % save_every == 0 or stopping.received():
                    losses.check()
                    self._save(checkpointer, validated=validated)
                if stopping.received():
                    break
            # The last state too is to be on the disk before a signal may end the process at once.
            checkpointer.wait()
        if not stopping.received():
            return True
        logger.info(
            "stopped by %s after step %d, saved: run the same command to go on",
            stopping.received(),
            int(self.state.step),
        )
        return False

    def _catch_up(self, first: int, log: MetricsLog, losses: PendingLosses, checkpointer: Checkpointer) -> None:
        """Does the validation that a signal left out, and compiles it where it comes later: then a stop has to wait."""
        if not self.progress.validated:
            self._validate(first, log, losses, checkpointer)
        elif first < self.last_step:
            split = self.dataset.splits[self.selection_split]
            self._predict(*self._evaluated(), split.take(np.arange(1)))

    def _validate_unless_stopped(
        self, number: int, log: MetricsLog, losses: PendingLosses, checkpointer: Checkpointer
    ) -> bool:
        """Validates; False where a signal came before the end of it, which leaves nothing behind."""
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
        labels = self.dataset.splits[split].labels
        result = metrics.score(labels, scores, self.dataset.info.task)
        log.write(
            number,
            {
                f"{split}_loss": loss,
                **{f"{split}_{name}": result[name] for name in metrics.SELECTION if name in result},
            },
        )
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
            self.lock.check()
            sha256 = checkpointer.save_best(number, *self._evaluated())
            best = Best(epoch=epoch, step=number, value=result[metric], sha256=sha256)
            self.progress = dataclasses.replace(self.progress, best=best)

    def _save(self, checkpointer: Checkpointer, *, validated: bool) -> None:
        self.lock.check()
        progress = dataclasses.replace(self.progress, seconds=self.seconds(), validated=validated)
        checkpointer.save_latest(self.state, self.iterator, progress)

    def _finish(self, checkpointer: Checkpointer) -> dict[str, Any]:
        """The only place that touches the test split, unless the protocol is `reference`."""
        best = self.progress.best
        weights = checkpointer.restore_best(best.step, self.state.params, self.state.stats, best.sha256)
        scores = {name: self.scores(*weights, name)[1] for name in self.dataset.splits if name != "train"}
        self.lock.check()
        with io.writing(self.folder, checkpointer.kept):
            report.write_predictions(self.folder, scores, self.dataset, self.config)
        result = {
            **report.describe_run(self.experiment, self.dataset, self.config, self.fingerprints),
            "selection": {"split": self.selection_split, "metric": self.config.eval.metric, **dataclasses.asdict(best)},
            **report.score_splits(scores, self.dataset, resamples=self.config.eval.bootstrap),
            "threshold": report.score_threshold(
                scores, self.dataset, self.selection_split, self.config.eval.specificity
            ),
            "steps": self.last_step,
            "seconds": round(self.seconds(), 1),
        }
        # The result marks the run as finished: nothing may be half done then.
        checkpointer.wait()
        self.lock.check()
        with io.writing(self.folder, checkpointer.kept):
            result = workdir.write_result(self.folder, result)
        report.log_result(result)
        return result
