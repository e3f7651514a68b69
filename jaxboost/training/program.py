"""Makes the step functions of a run from its config. This is the only place where they are assembled."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxboost.config.types import Config
from jaxboost.data.dataset import DatasetInfo
from jaxboost.data.pipeline.augment import Augment
from jaxboost.models.frozen import Tree
from jaxboost.training import imbalance, optim, step
from jaxboost.training.mixing import Mixing
from jaxboost.training.on_device.reading import Reading
from jaxboost.training.on_device.rows import Rows
from jaxboost.training.several import Over
from jaxboost.training.step import BoundEvalStep, Objective, TrainState, TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The step functions of a run.

    Attributes:
      tx: the optimiser.
      learning_rate: schedule of its learning rate.
      train_step: see `step.make_train_step`.
      reading: how steps read data on the devices; None: the host sends batches.
      complete: with `reading`: `Reading.eval_batch`, compiled.
      bind_eval_step: see `step.make_eval_step`.
      encode: see `step.make_encode`; only for models whose images can be encoded once.
      replicated, by_batch: see `step.make_mesh`.
      ema: whether the state has an average of the weights.
      shards: whether the state is split over the devices, see `fsdp`.
    """

    tx: optax.GradientTransformation
    learning_rate: optim.Schedule
    train_step: TrainStep
    reading: Reading | None
    complete: Callable[[Rows, step.Batch], step.Batch] | None
    bind_eval_step: Callable[..., BoundEvalStep]
    encode: Callable[[Tree, Tree, Tree, step.Batch], jax.Array]
    replicated: jax.NamedSharding
    by_batch: jax.NamedSharding
    ema: bool
    shards: bool = False

    def init_state(self, params: Tree, stats: Tree) -> TrainState:
        """The state before the first step, from the trainable weights and the statistics."""
        return step.init_state(params, self.tx, self.replicated, stats=stats, ema=self.ema, shards=self.shards)

    def state_shapes(self, params: Tree, stats: Tree) -> TrainState:
        """The shapes of `init_state`, from those of the weights and the statistics; nothing is computed."""
        number: Any = jax.ShapeDtypeStruct((), jnp.int32)
        return TrainState(
            step=number,
            params=params,
            opt_state=jax.eval_shape(self.tx.init, params),
            stats=stats,
            ema=step.averaged_weights(params, stats) if self.ema else {},
        )


def make_objective(config: Config, info: DatasetInfo, labels: np.ndarray | None = None) -> Objective:
    """The training objective of a config.

    Args:
      config: of the run.
      info: its data set.
      labels: of the training split, (n, L); "balanced" class weights are computed from them. None: not known. All
        class weights are 1 then, which is enough to trace shapes.

    Raises:
      UserError: class weights that do not fit the data set.
    """
    mixing = Mixing(**config.mix)
    weights: tuple[float, ...] = ()
    if labels is not None:
        weights = imbalance.class_weights(config.train.class_weights, labels, info)
    elif config.train.class_weights:
        weights = (1.0,) * len(info.classes)
    return Objective(
        task=info.task,
        classes=len(info.classes),
        loss=config.train.loss,
        class_weights=weights,
        mixing=mixing,
        mean=tuple(config.model.mean),
        std=tuple(config.model.std),
    )


def make_program(
    config: Config,
    graphdef: nnx.GraphDef,
    objective: Objective,
    *,
    steps_per_epoch: int,
    on_device: bool = False,
    several: bool = False,
) -> Program:
    """The step functions of a config. Configs that give the same ones, such as those of other seeds, share them.

    So the runs of a study in one process trace and compile them once.

    Args:
      config: of the run.
      graphdef: of its model, see `frozen.split`.
      objective: the result of `make_objective` for the config.
      steps_per_epoch: of the training split, which the learning rate's schedule follows.
      on_device: whether steps read their data in the devices' memory.
      several: whether the step functions are those of several seeds at once, see `step.make_train_step`.

    Raises:
      UserError: the schedule does not fit the number of steps.
    """
    train = config.train
    optimiser = {**config.optim, "steps_per_epoch": steps_per_epoch, "epochs": train.epochs}
    reads = (Augment(**config.augment), config.model.image_size) if on_device else None
    fields = (train.ema, train.accumulate, train.fsdp, reads, several)
    return _program(graphdef, objective, (*optimiser.items(),), *fields, (*jax.devices(),))


# An arm of a study has a program for each learning rate that it tries, and then one for all of its seeds. In a
# cross-validation each fold may have one, as its number of steps and its class weights may differ. A run whose data are
# on the devices has another one before they are there.
@functools.lru_cache(maxsize=16)
def _program(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimiser: tuple[tuple[str, Any], ...],
    ema: float,
    accumulate: int,
    shards: bool,
    reads: tuple[Augment, int] | None,
    several: bool,
    devices: tuple[Any, ...],
) -> Program:
    del devices  # those of the mesh
    tx, learning_rate = optim.make_optimizer(**dict(optimiser), accumulate=accumulate)
    replicated, by_batch = step.make_mesh()
    # An accelerator takes less time for all images, or all seeds, at once than for a loop over them.
    one_by_one = jax.default_backend() == "cpu"
    over = Over(one_by_one) if several else None
    reading = None
    if reads is not None:
        reading = Reading(augment=reads[0], image_size=reads[1], one_by_one=one_by_one, by_batch=by_batch)
    return Program(
        tx=tx,
        learning_rate=learning_rate,
        train_step=step.make_train_step(
            graphdef,
            tx,
            objective,
            replicated,
            ema=ema,
            accumulate=accumulate,
            shards=shards,
            reading=reading,
            over=over,
        ),
        reading=reading,
        complete=jax.jit(reading.eval_batch) if reading else None,
        bind_eval_step=step.make_eval_step(graphdef, objective, replicated, shards=shards, over=over),
        encode=step.make_encode(graphdef, by_batch),
        replicated=replicated,
        by_batch=by_batch,
        ema=ema > 0,
        shards=shards,
    )


def forget() -> None:
    """Makes step functions anew from here on: for tests that change what they consist of."""
    _program.cache_clear()


def batch_shapes(config: Config, info: DatasetInfo) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch of a config."""
    size, B = config.model.image_size, config.train.batch_size
    return {
        "image": jax.ShapeDtypeStruct((B, *[size] * info.ndim, info.channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((B, info.labels_per_sample), jnp.int32),
    }
