"""Estimates the memory of a training step from its compiled program, without weights or data."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxboost.data.dataset import DatasetInfo
from jaxboost.systems.experiment import held_shapes
from jaxboost.systems.systems import prepare
from jaxboost.training import optim, step
from jaxboost.training.mixing import Mixing


def step_memory_gb(config: ConfigDict, info: DatasetInfo) -> dict[str, float]:
    """What one training step of `train.batch_size` images is estimated to hold on one device, in GB (1e9 bytes).

    The frozen weights are taken as stored in `model.dtype` where they are not packed (see `llama.weights`), each device
    as holding all of them, and the encoder as part of the step; evaluation, which may merge adapters into copies of
    projections, is not looked at.

    Returns:
      weights: frozen and trained ones, optimiser state and batch. temporary: the rest at its peak, as this machine's
      compiler plans it; on CPU, which would widen all 16-bit products, as it plans the float32 step, scaled to the
      bytes of `model.dtype`. total: both.
    """
    dtype = jnp.dtype(config.model.dtype)
    config = config.copy_and_resolve_references()
    if jax.default_backend() == "cpu":
        config.model.dtype = "float32"
    experiment = prepare(config, info, with_weights=False)
    tx, _ = optim.make_optimizer(
        **config.optim, steps_per_epoch=1000, epochs=config.train.epochs, accumulate=config.train.accumulate
    )
    replicated, _ = step.make_mesh()
    objective = step.Objective(
        task=info.task, classes=len(info.classes), loss=config.train.loss, mixing=Mixing(**config.mix)
    )
    train_step = step.make_train_step(
        experiment.graphdef, tx, objective, replicated, seed=config.seed, ema=config.train.ema
    )
    params = experiment.params
    state = step.TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=jax.eval_shape(tx.init, params),
        stats=experiment.stats,
        ema=step.averaged_weights(params, experiment.stats) if config.train.ema else {},
    )
    size, B = config.model.image_size, config.train.batch_size
    images = jax.ShapeDtypeStruct((B, *[size] * info.ndim, info.channels), jnp.uint8)
    labels = jax.ShapeDtypeStruct((B, info.labels_per_sample), jnp.int32)
    computed = jnp.dtype(config.model.dtype)
    batch = {"image": images, "label": labels}
    analysis = train_step.lower(state, held_shapes(experiment, computed), batch).compile().memory_analysis()
    held = jax.tree.leaves((state, held_shapes(experiment, dtype), batch))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in held)
    temporary = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary *= dtype.itemsize / computed.itemsize
    return {
        "weights": round(weights / 1e9, 3),
        "temporary": round(temporary / 1e9, 3),
        "total": round((weights + temporary) / 1e9, 3),
    }
