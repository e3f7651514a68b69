"""Checks and measurements of the training loop: losses must stay finite, and images are counted per second."""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from jaxboost.errors import UserError
from jaxboost.training.checkpoints.checkpointer import Checkpointer


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFigures:
    """The loss of a step and the norm of its gradient."""

    number: int
    loss: float
    grad_norm: float


class PendingLosses:
    """Losses and gradient norms that are still on the device; fetched together, so that no step waits for them."""

    def __init__(self, checkpointer: Checkpointer, folder: pathlib.Path):
        self._checkpointer, self._folder = checkpointer, folder
        self._pending: list[tuple[int, int, jax.Array, jax.Array]] = []

    def add(self, first: int, count: int, losses: jax.Array, grad_norms: jax.Array) -> None:
        """Adds the losses and the gradients' norms of `count` steps from step `first` on, () or the first of (K,)."""
        self._pending.append((first, count, losses, grad_norms))

    def fetch(self) -> list[StepFigures]:
        """Fetches the figures of all steps since the last call. Raises UserError for the first that is not finite."""
        found = [
            StepFigures(number=first + offset, loss=float(loss), grad_norm=float(grad_norm))
            for first, count, losses, grad_norms in jax.device_get(self._pending)
            for offset, loss, grad_norm in zip(range(count), np.ravel(losses), np.ravel(grad_norms), strict=False)
        ]
        for each in found:
            self.stop_unless_finite(each.number, "loss", each.loss)
            self.stop_unless_finite(each.number, "gradient's norm", each.grad_norm)
        self._pending.clear()
        return found

    def stop_unless_finite(self, number: int, what: str, value: float) -> None:
        """Raises UserError if `value` is not finite; it names the step and the last checkpoint."""
        if not np.isfinite(value):
            saved = self._checkpointer.latest_step()
            good = "there is no checkpoint yet" if saved is None else f"last good checkpoint: step {saved}"
            raise UserError(
                f"the {what} is {value} at step {number}: start again in another --workdir with a lower optim.lr, or"
                f" with optim.clip_norm; {good} in {self._folder}"
            )


class RateMeter:
    """Images per second since the last measurement."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._step: int | None = None
        self._time = 0.0

    def restart(self, number: int) -> None:
        """Starts a new measurement at a step."""
        self._step, self._time = number, time.monotonic()

    def measure(self, number: int) -> float | None:
        """Images per second since the last measurement; None the first time, which includes the compilation."""
        since, now = self._time, time.monotonic()
        steps = None if self._step is None else number - self._step
        self._step, self._time = number, now
        return self._batch_size * steps / (now - since) if steps else None
