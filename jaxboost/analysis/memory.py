"""Estimates the memory of a training step from its compiled program, without weights or data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxboost import systems
from jaxboost.config.types import Config
from jaxboost.data.dataset import DatasetInfo
from jaxboost.systems.start import shapes_in_memory
from jaxboost.training.program import batch_shapes, make_objective, make_program

# The learning rate schedule needs a number of steps, but the memory does not depend on it.
_STEPS_PER_EPOCH = 1000


def step_memory_gb(config: Config, info: DatasetInfo) -> dict[str, float]:
    """Estimates the memory of one training step of `train.batch_size` images on one device, in GB (1e9 bytes).

    Frozen weights that are not quantized (see `llama.weights`) count in `model.dtype`. The estimate assumes
    that each device holds all of them, and that the encoder is part of the step. The evaluation, which may merge
    adapters into copies of projections, is left out.

    Args:
      config: config of the run.
      info: description of its data set.

    Returns:
      A dict. weights: frozen and trained weights, optimiser state and batch. temporary: the peak of all other buffers,
      as this machine's compiler plans them. A CPU compiler would widen 16-bit products, so there the float32 step is
      planned and its size is scaled to `model.dtype`. total: the sum of both.
    """
    config = systems.with_dtype(config).copy_and_resolve_references()
    dtype = jnp.dtype(config.model.dtype)
    if jax.default_backend() == "cpu":
        config.model.dtype = "float32"
    system = systems.prepare(config, info, with_weights=False)
    program = make_program(config, system.graphdef, make_objective(config, info), steps_per_epoch=_STEPS_PER_EPOCH)
    state, batch = program.state_shapes(system.params, system.stats), batch_shapes(config, info)
    computed = jnp.dtype(config.model.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = program.train_step.lower(state, shapes_in_memory(system, computed), batch, key)
    analysis: Any = lowered.compile().memory_analysis()
    held = jax.tree.leaves((state, shapes_in_memory(system, dtype), batch))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in held)
    temporary = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary *= dtype.itemsize / computed.itemsize
    return {
        "weights": round(weights / 1e9, 3),
        "temporary": round(temporary / 1e9, 3),
        "total": round((weights + temporary) / 1e9, 3),
    }
