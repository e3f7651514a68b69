"""Checks and measurements of the training loop: losses must stay finite, and images are counted per second."""

import math
import pathlib
import time

import jax
import numpy as np

from jaxboost.errors import UserError
from jaxboost.training.checkpoints.checkpointer import Checkpointer


class PendingLosses:
    """Losses and gradient norms that are still on the device; fetched together, so that no step waits for them."""

    def __init__(self, checkpointer: Checkpointer, folder: pathlib.Path):
        self._checkpointer, self._folder = checkpointer, folder
        self._pending: list[tuple[int, jax.Array, jax.Array]] = []
        self._last = math.nan

    def add(self, number: int, loss: jax.Array, grad_norm: jax.Array) -> None:
        """Adds the loss of a step and the norm of its gradient."""
        self._pending.append((number, loss, grad_norm))

    def fetch(self) -> float:
        """Fetches all losses and returns the last one. Raises UserError for the first that is not finite."""
        for number, loss, grad_norm in jax.device_get(self._pending):
            self.stop_unless_finite(number, "loss", loss)
            self.stop_unless_finite(number, "gradient's norm", grad_norm)
            self._last = float(loss)
        self._pending.clear()
        return self._last

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
