"""Estimates the memory of a training step from its compiled program, without weights or data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxboost import systems
from jaxboost.config.types import Config
from jaxboost.data.dataset import DatasetInfo
from jaxboost.systems.start import held_shapes
from jaxboost.training.program import batch_shapes, make_objective, make_program

# The schedule has a number of steps; the memory does not depend on it.
_STEPS_PER_EPOCH = 1000


def step_memory_gb(config: Config, info: DatasetInfo) -> dict[str, float]:
    """Estimates the memory of one training step of `train.batch_size` images on one device, in GB (1e9 bytes).

    The frozen weights count in the dtype `model.dtype` if they are not quantized (see `llama.weights`). Each device is
    taken to hold all of them, and the encoder to be part of the step. Evaluation, which may merge adapters into copies
    of projections, is left out.

    Args:
      config: of the run.
      info: its data set.

    Returns:
      weights: frozen and trained weights, optimiser state and batch. temporary: the rest at its peak, as planned by
      this machine's compiler; on CPU, which would widen all 16-bit products, as planned for the float32 step and scaled
      to the bytes of `model.dtype`. total: the sum of both.
    """
    dtype = jnp.dtype(config.model.dtype)
    config = config.copy_and_resolve_references()
    if jax.default_backend() == "cpu":
        config.model.dtype = "float32"
    system = systems.prepare(config, info, with_weights=False)
    program = make_program(config, system.graphdef, make_objective(config, info), steps_per_epoch=_STEPS_PER_EPOCH)
    state, batch = program.state_shapes(system.params, system.stats), batch_shapes(config, info)
    computed = jnp.dtype(config.model.dtype)
    lowered = program.train_step.lower(state, held_shapes(system, computed), batch)
    analysis: Any = lowered.compile().memory_analysis()
    held = jax.tree.leaves((state, held_shapes(system, dtype), batch))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in held)
    temporary = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary *= dtype.itemsize / computed.itemsize
    return {
        "weights": round(weights / 1e9, 3),
        "temporary": round(temporary / 1e9, 3),
        "total": round((weights + temporary) / 1e9, 3),
    }
