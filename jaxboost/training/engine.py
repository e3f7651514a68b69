"""Computes the steps and scores of a run, or of several runs that differ in seed, in one program."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxboost.evaluation import evaluate
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays
from jaxboost.training import several
from jaxboost.training.active_run import ActiveRun
from jaxboost.training.program import Program
from jaxboost.training.step import BoundEvalStep

Weights = tuple[Tree, Tree]  # trained weights, statistics


class Engine(Protocol):
    """What trains runs.

    Attributes:
      runs: the runs. They have the same data, steps and program, and are at the same step.
    """

    runs: Sequence[ActiveRun]

    def begin(self) -> None:
        """Takes over the states of the runs, after they were restored."""
        ...

    def take(self, count: int) -> Any:
        """The next `count` batches of each run, on the devices."""
        ...

    def count_flops(self, batch: Any) -> tuple[Any, ...]:
        """The step function and its arguments, for a count of its operations."""
        ...

    def step(self, batch: Any) -> list[dict[str, jax.Array]]:
        """Takes the steps of the batches; the "loss" and "grad_norm" of each run, () or (K,)."""
        ...

    def settle(self) -> None:
        """Brings the `state` of each run up to date: before that it may be of an earlier step."""
        ...

    def release(self) -> None:
        """The `state` of a run is not needed any more until the next `settle`; its shapes are."""
        ...

    def scores(self, weights: Sequence[Weights], split: str, most: int | None = None) -> list[tuple[float, np.ndarray]]:
        """Mean loss and probabilities (n, classes) of each run, of the first `most` samples or of all."""
        ...


class Alone:
    """One run."""

    def __init__(self, run: ActiveRun):
        self.runs, self._run = (run,), run
        self._key = arrays.put(jax.random.key(run.config.seed), run.program.replicated)

    def begin(self) -> None:
        """See `Engine`."""

    def take(self, count: int) -> Any:
        """See `Engine`."""
        return self._run.feed.take(count)

    def count_flops(self, batch: Any) -> tuple[Any, ...]:
        """See `Engine`."""
        run = self._run
        return run.program.train_step, run.state, run.frozen, batch, self._key

    def step(self, batch: Any) -> list[dict[str, jax.Array]]:
        """See `Engine`."""
        run = self._run
        run.state, outputs = run.program.train_step(run.state, run.frozen, batch, self._key)
        return [outputs]

    def settle(self) -> None:
        """See `Engine`."""

    def release(self) -> None:
        """See `Engine`."""

    def scores(self, weights: Sequence[Weights], split: str, most: int | None = None) -> list[tuple[float, np.ndarray]]:
        """See `Engine`."""
        ((params, stats),) = weights
        run = self._run
        losses, found = _scored(run.program.bind_eval_step(params, run.frozen, stats), run, split, most)
        return [(float(losses.mean()), found)]


class Together:
    """Several runs that differ in seed: one program trains all, and frozen weights that they share are there once.

    Args:
      runs: the runs; those after the first were assembled like the first.
      program: their step functions, for several seeds.
    """

    def __init__(self, runs: Sequence[ActiveRun], program: Program):
        self.runs, self._program = runs, program
        first, replicated = runs[0], program.replicated
        self._keys = jax.device_put(jax.vmap(jax.random.key)(np.array([run.config.seed for run in runs])), replicated)
        shared = [path for part in first.system.loaded_and_frozen for path in part.paths]
        held, _ = several.divided(first.frozen, shared)
        own = [several.divided(run.frozen, shared)[1] for run in runs]
        self._stack = jax.jit(lambda trees: several.stacked(trees), out_shardings=replicated)
        self._apart = jax.jit(functools.partial(several.taken_apart, count=len(runs)), out_shardings=replicated)
        self._frozen = {several.OWN: self._stack(own), several.SHARED: held}
        # The copies of the random frozen weights are enough.
        for run in runs:
            run.frozen = {}

    def begin(self) -> None:
        """See `Engine`."""
        self._states = self._stack([run.state for run in self.runs])

    def take(self, count: int) -> Any:
        """See `Engine`."""
        feeds = [run.feed for run in self.runs]
        return feeds[0].take_all(feeds[1:], count)

    def count_flops(self, batch: Any) -> tuple[Any, ...]:
        """See `Engine`."""
        return self._program.train_step, self._states, self._frozen, batch, self._keys

    def step(self, batch: Any) -> list[dict[str, jax.Array]]:
        """See `Engine`."""
        self._states, outputs = self._program.train_step(self._states, self._frozen, batch, self._keys)
        return [{name: array[..., index] for name, array in outputs.items()} for index in range(len(self.runs))]

    def settle(self) -> None:
        """See `Engine`."""
        for run, state in zip(self.runs, self._apart(self._states), strict=True):
            run.state = state

    def release(self) -> None:
        """See `Engine`."""
        # The states are in memory once, stacked.
        for run in self.runs:
            run.state = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), run.state
            )

    def scores(self, weights: Sequence[Weights], split: str, most: int | None = None) -> list[tuple[float, np.ndarray]]:
        """See `Engine`."""
        params, stats = (self._stack(list(trees)) for trees in zip(*weights, strict=True))
        losses, found = _scored(self._program.bind_eval_step(params, self._frozen, stats), self.runs[0], split, most)
        return [(float(losses[:, index].mean()), found[:, index]) for index in range(len(self.runs))]


def _scored(bound: BoundEvalStep, run: ActiveRun, split: str, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Losses and probabilities of the samples of a split."""
    return evaluate.run_batches(
        lambda batch: bound(run.feed.complete(split, batch)),
        run.feed.evaluation(split, most),
        run.program.by_batch,
    )
