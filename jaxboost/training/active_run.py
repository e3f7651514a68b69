"""A run between its start and its result."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence

from jaxboost import processes, stopping
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset
from jaxboost.models.frozen import Tree
from jaxboost.systems import System
from jaxboost.training.checkpoints.checkpointer import Checkpointer, Progress
from jaxboost.training.clock import Clock
from jaxboost.training.feed import Feed
from jaxboost.training.log import METRICS
from jaxboost.training.program import Program
from jaxboost.training.step import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class ActiveRun:
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

    def resume(self, checkpointer: Checkpointer, most: int | None = None) -> None:
        """Restores the latest checkpoint, if there is one, up to step `most`; `say_resumed` follows."""
        if processes.first("checkpoint", checkpointer.latest_step) is not None:
            config = self.progress.config
            self.state, found = checkpointer.restore_latest(
                self.state, self.feed.iterator, self.progress.fingerprints, config, most=most
            )
            # A checkpoint of an earlier version does not have the config.
            self.progress = dataclasses.replace(found, config=config)

    def say_resumed(self) -> None:
        """Adds the time of earlier starts, and logs from where the run goes on."""
        if int(self.state.step):
            self.clock.add_earlier(self.progress.seconds, self.progress.parts)
            logger.info("resumed from step %d", int(self.state.step))
            stopping.say(f" before step {int(self.state.step) + 1}: run the same command again")
        elif (self.folder / METRICS).exists():
            logger.warning("%s has records but no checkpoint: it starts again from the first step", self.folder)

    def evaluated(self) -> tuple[Tree, Tree]:
        """The weights and statistics to evaluate."""
        return self.state.evaluated(ema=self.config.eval.ema)

    def seconds(self) -> float:
        """Time spent on the run, over all its starts."""
        return self.clock.seconds()

    def call_length(self, number: int) -> int:
        """How many steps the call after step `number` takes: up to `train.steps_per_call`, and to the next save."""
        config = self.config.train
        wanted = config.steps_per_call or self.steps_per_epoch
        every = config.checkpoint_every or self.last_step
        ends = [(number // interval + 1) * interval for interval in (self.steps_per_epoch, every)]
        return min(wanted, *(end - number for end in (*ends, self.last_step)))


@contextlib.contextmanager
def timed(runs: Sequence[ActiveRun], part: str) -> Iterator[None]:
    """The time inside the `with` block belongs to a part of each run's time, see `Clock.of`."""
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.clock.of(part))
        yield
