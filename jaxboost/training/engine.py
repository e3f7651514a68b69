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
from jaxboost.training.loop import Loop
from jaxboost.training.program import Program
from jaxboost.training.step import BoundEvalStep

Weights = tuple[Tree, Tree]  # trained weights, statistics


class Engine(Protocol):
    """What trains runs.

    Attributes:
      loops: the runs. They have the same data, steps and program, and are at the same step.
    """

    loops: Sequence[Loop]

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

    def __init__(self, loop: Loop):
        self.loops, self._loop = (loop,), loop
        self._key = arrays.put(jax.random.key(loop.config.seed), loop.program.replicated)

    def begin(self) -> None:
        """See `Engine`."""

    def take(self, count: int) -> Any:
        """See `Engine`."""
        return self._loop.feed.take(count)

    def count_flops(self, batch: Any) -> tuple[Any, ...]:
        """See `Engine`."""
        loop = self._loop
        return loop.program.train_step, loop.state, loop.frozen, batch, self._key

    def step(self, batch: Any) -> list[dict[str, jax.Array]]:
        """See `Engine`."""
        loop = self._loop
        loop.state, outputs = loop.program.train_step(loop.state, loop.frozen, batch, self._key)
        return [outputs]

    def settle(self) -> None:
        """See `Engine`."""

    def release(self) -> None:
        """See `Engine`."""

    def scores(self, weights: Sequence[Weights], split: str, most: int | None = None) -> list[tuple[float, np.ndarray]]:
        """See `Engine`."""
        ((params, stats),) = weights
        loop = self._loop
        losses, found = _scored(loop.program.bind_eval_step(params, loop.frozen, stats), loop, split, most)
        return [(float(losses.mean()), found)]


class Together:
    """Several runs that differ in seed: one program trains all, and frozen weights that they share are there once.

    Args:
      loops: the runs; those after the first were assembled like the first.
      program: their step functions, for several seeds.
    """

    def __init__(self, loops: Sequence[Loop], program: Program):
        self.loops, self._program = loops, program
        first, replicated = loops[0], program.replicated
        self._keys = jax.device_put(
            jax.vmap(jax.random.key)(np.array([loop.config.seed for loop in loops])), replicated
        )
        shared = [path for part in first.system.loaded_and_frozen for path in part.paths]
        held, _ = several.divided(first.frozen, shared)
        own = [several.divided(loop.frozen, shared)[1] for loop in loops]
        self._stack = jax.jit(lambda trees: several.stacked(trees), out_shardings=replicated)
        self._apart = jax.jit(functools.partial(several.taken_apart, count=len(loops)), out_shardings=replicated)
        self._frozen = {several.OWN: self._stack(own), several.SHARED: held}
        # The copies of the random frozen weights are enough.
        for loop in loops:
            loop.frozen = {}

    def begin(self) -> None:
        """See `Engine`."""
        self._states = self._stack([loop.state for loop in self.loops])

    def take(self, count: int) -> Any:
        """See `Engine`."""
        feeds = [loop.feed for loop in self.loops]
        return feeds[0].take_all(feeds[1:], count)

    def count_flops(self, batch: Any) -> tuple[Any, ...]:
        """See `Engine`."""
        return self._program.train_step, self._states, self._frozen, batch, self._keys

    def step(self, batch: Any) -> list[dict[str, jax.Array]]:
        """See `Engine`."""
        self._states, outputs = self._program.train_step(self._states, self._frozen, batch, self._keys)
        return [{name: array[..., index] for name, array in outputs.items()} for index in range(len(self.loops))]

    def settle(self) -> None:
        """See `Engine`."""
        for loop, state in zip(self.loops, self._apart(self._states), strict=True):
            loop.state = state

    def release(self) -> None:
        """See `Engine`."""
        # The states are in memory once, stacked.
        for loop in self.loops:
            loop.state = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), loop.state
            )

    def scores(self, weights: Sequence[Weights], split: str, most: int | None = None) -> list[tuple[float, np.ndarray]]:
        """See `Engine`."""
        params, stats = (self._stack(list(trees)) for trees in zip(*weights, strict=True))
        losses, found = _scored(self._program.bind_eval_step(params, self._frozen, stats), self.loops[0], split, most)
        return [(float(losses[:, index].mean()), found[:, index]) for index in range(len(self.loops))]


def _scored(bound: BoundEvalStep, loop: Loop, split: str, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Losses and probabilities of the samples of a split."""
    return evaluate.run_batches(
        lambda batch: bound(loop.feed.complete(split, batch)),
        loop.feed.evaluation(split, most),
        loop.program.by_batch,
    )
