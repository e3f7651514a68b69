"""How far a study is: one bar over all runs on a terminal, else log lines."""

import contextlib
import logging
import sys
from collections.abc import Sequence

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from jaxboost.studies import estimate, plan
from jaxboost.studies.plan import Plan, PlannedRun

logger = logging.getLogger(__name__)


class Bar:
    """On a terminal one bar over all runs, with the time left; else a log line after each run.

    A worker is silent: its terminal has the bar of the process that started it.
    """

    def __init__(self, given: Plan, runs: Sequence[PlannedRun], jobs: int = 1, *, silent: bool = False):
        """Creates the bar of the study's `runs`, which `jobs` processes share."""
        self._jobs = jobs
        self._given, self._keys = given, {each.key for each in runs}
        self._terminal = sys.stderr.isatty() and not silent
        todo = sum(plan.state_of(each) != "finished" for each in runs)
        before = len(runs) - todo
        layout = "{desc}{n_fmt}/{total_fmt} runs |{bar}| {elapsed}{postfix}"
        self._bar = tqdm.tqdm(total=len(runs), initial=before, bar_format=layout, disable=not self._terminal)
        self._shown = ("", before)
        self._left = ""

    def __enter__(self) -> "Bar":
        self._stack = contextlib.ExitStack()
        if self._terminal:
            self._stack.enter_context(logging_redirect_tqdm([logging.getLogger("jaxboost")]))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._bar.close()

    def show(self, runs: Sequence[PlannedRun]) -> None:
        """Shows how many runs are done, and the time that the others are estimated to take.

        Args:
          runs: those that this process has not seen done. Other processes may have finished some of them.
        """
        runs = [each for each in runs if plan.state_of(each) != "finished"]
        done, total = len(self._keys) - len(runs), len(self._keys)
        if done <= self._shown[1]:
            return
        self._shown, left = ("", done), self._time_left(runs, self._jobs)
        if self._terminal:
            self._bar.n = done
            self._bar.set_postfix_str(left)
        elif runs:
            logger.info("%d of %d runs are done, %s", done, total, left)

    def show_state(self, runs: Sequence[PlannedRun], state: str, jobs: int) -> None:
        """As `show`, for runs that other processes do; nothing is logged if nothing has changed.

        Args:
          runs: the runs that remain.
          state: what the other processes do, in words.
          jobs: number of processes that work now.
        """
        done = len(self._keys) - len(runs)
        if (state, done) == self._shown:
            return
        if done != self._shown[1] or not self._left:
            self._left = self._time_left(runs, max(1, jobs))
        self._shown = state, done
        if self._terminal:
            self._bar.n = done
            self._bar.set_postfix_str(f"{state}, {self._left}")
        else:
            logger.info("%s; %d of %d runs are done, %s", state, done, len(self._keys), self._left)

    def _time_left(self, runs: Sequence[PlannedRun], jobs: int) -> str:
        keys = {each.key for each in runs}
        now = estimate.with_seconds(self._given.refreshed())
        seconds, unknown = estimate.remaining([each for each in now.runs if each.key in keys])
        return "time left not known yet" if unknown else f"about {estimate.in_words(seconds / jobs)} left"
