"""The training loop: steps, validation after each epoch, and checkpoints, of one run or of several seeds at once."""

import contextlib
import logging
from collections.abc import Sequence

from jaxboost import processes, stopping
from jaxboost.training.active_run import timed
from jaxboost.training.checkpoints.checkpointer import Checkpointer
from jaxboost.training.engine import Engine
from jaxboost.training.log import ProgressBar
from jaxboost.training.mfu import Utilisation
from jaxboost.training.monitor import RateMeter
from jaxboost.training.recording import Recording

logger = logging.getLogger(__name__)


def train(engine: Engine, checkpointers: Sequence[Checkpointer]) -> bool:
    """Trains runs up to their last step, with validation and checkpoints. Returns False if a signal stopped it.

    Args:
      engine: what computes.
      checkpointers: of its runs.
    """
    runs, run = engine.runs, engine.runs[0]
    first, config = int(run.state.step), run.config.train
    save_every = config.checkpoint_every or run.last_step
    rate = RateMeter(config.batch_size)
    usage = Utilisation(run.config.model.dtype, run.program.by_batch.mesh.size)
    with contextlib.ExitStack() as stack:
        records = [
            stack.enter_context(Recording(each, checkpointer, runs))
            for each, checkpointer in zip(runs, checkpointers, strict=True)
        ]
        bar = stack.enter_context(ProgressBar(first, run.last_step))
        _catch_up(engine, records, first)
        engine.release()
        for each in runs:
            each.clock.begin("step")
        number = first
        while number < run.last_step:
            count = run.call_length(number)
            with timed(runs, "data"):
                batch = engine.take(count)
            if number == first:
                with timed(runs, "compile"):
                    usage.count(*engine.count_flops(batch), images=config.batch_size * len(runs))
            with timed(runs, "compile" if number == first else "step"):
                outputs = engine.step(batch)
            if number == first:
                # The step is compiled now, and later calls are short: a signal waits for their end.
                stack.enter_context(stopping.deferred())
            for record, output in zip(records, outputs, strict=True):
                record.losses.add(number + 1, count, output["loss"], output["grad_norm"])
            begun, number = number, number + count
            bar.advance(count)
            at_end = number % run.steps_per_epoch == 0 or number == run.last_step
            if begun // config.log_every < number // config.log_every or at_end:
                _write(records, number, rate, usage, bar)
            if at_end:
                engine.settle()
            validated = not at_end or _validate_unless_stopped(engine, records, number)
            if at_end:
                rate.restart(number)
            # Asked once: a signal that comes after this is for the next step, whose state is then saved.
            stops = stopping.received()
            if at_end or number % save_every == 0 or stops:
                if not at_end:
                    engine.settle()
                with timed(runs, "checkpoints"):
                    for record in records:
                        record.losses.fetch()
                        record.save(validated=validated)
                engine.release()
            if stops:
                break
        # The last state must be on the disk before a signal may end the process at once.
        with timed(runs, "checkpoints"):
            for checkpointer in checkpointers:
                checkpointer.wait()
        # Of several processes, one may have received a signal since it last asked.
        if not processes.all_stop():
            return True
        signal = stopping.received()
    logger.info("stopped by %s after step %d, saved: run the same command to go on", signal, number)
    return False


def _write(records: Sequence[Recording], number: int, rate: RateMeter, usage: Utilisation, bar: ProgressBar) -> None:
    """Writes the records of steps up to `number`, and shows the mean loss of the last."""
    found = [record.losses.fetch() for record in records]
    # Only now have the steps ended: before, the device may still have been busy with them.
    images_per_second = rate.measure(number)
    # The rate is that of each run; all of them share the device.
    together = None if images_per_second is None else images_per_second * len(records)
    for record, figures in zip(records, found, strict=True):
        record.write_steps(figures, number, images_per_second, usage.record(together))
    loss = sum(figures[-1].loss for figures in found) / len(found)
    bar.report(number, loss=loss, images_per_second=together)


def _catch_up(engine: Engine, records: Sequence[Recording], first: int) -> None:
    """Validates if a signal prevented it. Else compiles the validation, so that no later signal waits for that."""
    split = engine.runs[0].selection_split
    weights = [run.evaluated() for run in engine.runs]
    left_out = [record for record in records if not record.run.progress.validated]
    if left_out:
        with timed(engine.runs, "evaluation"):
            for record, (loss, scores) in zip(records, engine.scores(weights, split), strict=True):
                if record in left_out:
                    record.validate(first, loss, scores)
    elif first < engine.runs[0].last_step:
        with timed(engine.runs, "compile"):
            engine.scores(weights, split, most=1)


def _validate_unless_stopped(engine: Engine, records: Sequence[Recording], number: int) -> bool:
    """Validates. Returns False, and writes nothing, if a signal came before the end."""
    try:
        stopping.poll()
        with timed(engine.runs, "evaluation"):
            found = engine.scores([run.evaluated() for run in engine.runs], engine.runs[0].selection_split)
            for record, (loss, scores) in zip(records, found, strict=True):
                record.validate(number, loss, scores)
    except stopping.Stopped:
        return False
    return True
