"""One training step and one evaluation step, pure and jitted over a mesh of the devices of all processes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxboost.errors import UserError
from jaxboost.evaluation.evaluate import Batch
from jaxboost.evaluation.evaluate import put as put
from jaxboost.models.frozen import Tree, merge, statistics
from jaxboost.processes import arrays
from jaxboost.tasks import TASKS
from jaxboost.training import fsdp
from jaxboost.training.mixing import Mixing, augment_batch
from jaxboost.training.on_device.reading import Reading
from jaxboost.training.several import OWN, SHARED, Over, joined

# In a batch of row numbers: the split that the devices hold, and the number of steps.
ROWS, COUNT = "rows", "count"


@flax.struct.dataclass
class TrainState:
    """The state that a step changes. Frozen weights are not part of it: they would be copied at every step.

    Attributes:
      step: number of steps so far.
      params: trainable weights.
      opt_state: state of the optimiser.
      stats: the model's statistics (see `frozen.split`); {} for a model without them.
      ema: moving average of `params` and `stats`, under these names; {} if there is none.
    """

    step: jax.Array
    params: Tree
    opt_state: optax.OptState
    stats: Tree
    ema: Tree

    def evaluated(self, *, ema: bool) -> tuple[Tree, Tree]:
        """The weights and statistics to evaluate: with `ema` their moving average, if the state has one."""
        if ema and self.ema:
            return self.ema["params"], self.ema.get("stats", {})
        return self.params, self.stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The training objective.

    Attributes:
      task: a key of `tasks.TASKS`.
      classes: number of classes.
      loss, class_weights: see `tasks.Task.losses`.
      mixing: random changes of training batches.
      mean, std: of the normalisation of pixels.
    """

    task: str
    classes: int
    loss: str = "auto"
    class_weights: tuple[float, ...] = ()
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)


def make_mesh() -> tuple[jax.NamedSharding, jax.NamedSharding]:
    """Two shardings over all devices: `replicated`, a copy on each, and `by_batch`, the first axis split."""
    mesh = arrays.mesh()
    return jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P("data"))


def check_batch_size(batch_size: int, field: str) -> None:
    """Raises UserError if a batch cannot be split evenly over the devices."""
    devices = jax.device_count()
    if batch_size <= 0:
        raise UserError(f"config field {field}: {batch_size} should be above 0")
    if batch_size % devices:
        several = jax.process_count() > 1
        what = f"devices of all {jax.process_count()} processes" if several else "local devices"
        raise UserError(f"config field {field}: {batch_size} is no multiple of the {devices} {what}")


# Compiled: (state, frozen weights, batch, random key) -> (state, {"loss", "grad_norm"})
TrainStep = jax.stages.Wrapped
# batch -> (loss of each example (B,), probabilities (B, classes))
BoundEvalStep = Callable[[Batch], tuple[jax.Array, jax.Array]]


def init_state(
    params: Tree,
    tx: optax.GradientTransformation,
    replicated: jax.NamedSharding,
    *,
    stats: Tree | None = None,
    ema: bool = False,
    shards: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      params: trainable weights.
      tx: the optimiser.
      replicated: see `make_mesh`.
      stats: the model's statistics, as in `frozen.merge`.
      ema: whether the state has a moving average of weights and statistics.
      shards: whether the state is split over the devices, see `fsdp`.
    """
    if shards:
        return _sharded_state(params, tx, replicated, stats=stats or {}, ema=ema)
    opt_state = jax.jit(tx.init, out_shardings=replicated)(params)
    average = {}
    if ema:
        # A copy, because a step reuses the buffers of the whole state.
        copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=replicated)
        average = copied(averaged_weights(params, stats or {}))
    number = arrays.put(jnp.int32(0), replicated)
    return TrainState(step=number, params=params, opt_state=opt_state, stats=stats or {}, ema=average)


def _sharded_state(
    params: Tree, tx: optax.GradientTransformation, replicated: jax.NamedSharding, *, stats: Tree, ema: bool
) -> TrainState:
    @jax.jit
    def make(params: Tree, stats: Tree) -> tuple[Tree, optax.OptState, Tree]:
        average = jax.tree.map(jnp.copy, averaged_weights(params, stats)) if ema else {}
        return fsdp.split((params, tx.init(params), average), replicated)

    params, opt_state, average = make(params, stats)
    number = arrays.put(jnp.int32(0), replicated)
    return TrainState(step=number, params=params, opt_state=opt_state, stats=stats, ema=average)


def averaged_weights(params: Tree, stats: Tree) -> Tree:
    """The weights and statistics whose moving average is computed, see `TrainState.ema`."""
    return {"params": params} | ({"stats": stats} if stats else {})


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    objective: Objective,
    replicated: jax.NamedSharding,
    *,
    ema: float = 0.0,
    accumulate: int = 1,
    shards: bool = False,
    reading: Reading | None = None,
    over: Over | None = None,
) -> TrainStep:
    """Returns step(state, frozen, batch, key) -> (state, {"loss", "grad_norm"}); the old state's buffers are reused.

    `key` is that of the run's seed; with the number of the step it determines the random numbers. It is an argument, so
    that runs with other seeds share the compiled program. Only in training the model gets a random key; batch norms
    then use the batch's statistics and update the running ones.

    Args:
      graphdef: of the model.
      tx: the optimiser.
      objective: see `Objective`.
      replicated: see `make_mesh`; the sharding of the results.
      ema: decay of the moving average of the weights, if the state has one.
      accumulate: micro-batches per optimiser update, see `optim.make_optimizer`; averages change only at updates.
      shards: whether the state is split over the devices, see `fsdp`.
      reading: makes batches of rows that the devices hold, and the function takes several steps then. Its argument
        `batch` is {ROWS: a split, "row": int32 (K, B)[, "mask": bool (K, B)], COUNT: int32 ()}: the first COUNT of K
        batches. "loss" and "grad_norm" are (K,), and 0 after the first COUNT. COUNT is not known when the program is
        compiled, so one program serves all counts, and the results do not depend on how steps are divided into calls.
      over: maps the step over several seeds. The arrays of the state, of the batch ("row" (K, S, B)), the key and the
        outputs have an axis for them then, and frozen weights are {OWN: those with that axis, SHARED: the others}.
    """

    def one_step(
        state: TrainState, frozen: Tree, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        model_key, batch_key = jax.random.split(jax.random.fold_in(key, state.step))
        mixing, task = objective.mixing, TASKS[objective.task]
        targets = task.targets(batch["label"], objective.classes, mixing.label_smoothing)
        images, targets = augment_batch(
            batch["image"], targets, mixing, mean=objective.mean, std=objective.std, key=batch_key
        )

        def loss_fn(params: Tree) -> tuple[jax.Array, Tree]:
            whole = fsdp.gather(params, replicated) if shards else params
            model = merge(graphdef, whole, frozen, state.stats)
            logits = model(images, key=model_key)
            each = task.losses(logits, targets, loss=objective.loss, class_weights=objective.class_weights)
            # A batch has a mask only if it may be padded.
            mask = batch.get("mask")
            mean = each.mean() if mask is None else (each * mask).sum() / mask.sum()
            return mean, statistics(model)

        (value, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        if shards:
            grads = fsdp.split(grads, replicated)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        step = state.step + 1
        average = _averaged(state.ema, averaged_weights(params, stats), jnp.where(step % accumulate == 0, ema, 1.0))
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        new = TrainState(step=step, params=params, opt_state=opt_state, stats=stats, ema=average)
        return fsdp.split(new, replicated) if shards else new, metrics

    def train_step(
        state: TrainState, frozen: Tree, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if over is None:
            return one_step(state, frozen, batch, key)

        def one(each: Any, shared: Tree) -> Any:
            own_state, own, own_batch, own_key = each
            return one_step(own_state, joined(shared, own), own_batch, own_key)

        return over(one)((state, frozen[OWN], batch, key), frozen[SHARED])

    def read_key(key: jax.Array, number: jax.Array) -> jax.Array:
        # A step makes two keys of `fold_in(key, number)` by `split`, which are those that `fold_in` gives for 0 and 1.
        return jax.random.fold_in(jax.random.fold_in(key, number), 2)

    def train_steps(
        state: TrainState, frozen: Tree, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        assert reading is not None
        read = reading.train_batches if over else reading.train_batch
        each = {name: array for name, array in batch.items() if name not in (ROWS, COUNT)}

        def body(index: jax.Array, carried: tuple[TrainState, dict[str, jax.Array]]) -> Any:
            state, found = carried
            rows = {name: array[index] for name, array in each.items()}
            keys = (jax.vmap(read_key) if over else read_key)(key, state.step)
            state, metrics = train_step(state, frozen, read(batch[ROWS], rows, keys), key)
            # `.at[index].set` would be a scatter, which XLA replaces by another program under `train.deterministic`.
            put = jax.lax.dynamic_update_index_in_dim
            return state, {name: put(array, metrics[name], index, axis=0) for name, array in found.items()}

        nothing = jnp.zeros((len(batch["row"]), *key.shape), jnp.float32)
        return jax.lax.fori_loop(0, batch[COUNT], body, (state, {"loss": nothing, "grad_norm": nothing}))

    return jax.jit(
        train_steps if reading else train_step,
        donate_argnames="state",
        out_shardings=(None, replicated) if shards else replicated,
    )


def _averaged(average: Tree, weights: Tree, decay: jax.Array) -> Tree:
    if not average:
        return average
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, weights)


def make_eval_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    replicated: jax.NamedSharding,
    *,
    shards: bool = False,
    over: Over | None = None,
) -> Callable[..., BoundEvalStep]:
    """Returns bind(params, frozen, stats) -> step(batch) -> (loss of each example (B,), probabilities (B, classes)).

    `bind` precomputes what depends only on the weights; `stats` is optional as in `frozen.merge`. There is no label
    smoothing and no class weight.

    Args:
      graphdef: of the model.
      objective: see `Objective`.
      replicated: see `make_mesh`; the sharding of the results.
      shards: whether the weights are split over the devices, see `fsdp`.
      over: maps the step over the weights of S seeds, which are given as for `make_train_step`. All evaluate the same
        batch; the results are (B, S) and (B, S, classes).
    """

    def precompute(params: Tree, frozen: Tree, stats: Tree | None) -> Any:
        return merge(graphdef, fsdp.gather(params, replicated) if shards else params, frozen, stats).precompute()

    def precompute_all(params: Tree, frozen: Tree, stats: Tree | None) -> Any:
        if over is None:
            return precompute(params, frozen, stats)
        one = over(lambda each, shared: precompute(each[0], joined(shared, each[1]), each[2]))
        return one((params, frozen[OWN], stats), frozen[SHARED])

    def one_eval_step(
        params: Tree, frozen: Tree, stats: Tree | None, precomputed: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        if shards:
            params = fsdp.gather(params, replicated)
        logits = merge(graphdef, params, frozen, stats)(batch["image"], precomputed)
        task = TASKS[objective.task]
        targets = task.targets(batch["label"], objective.classes)
        return task.losses(logits, targets, loss=objective.loss), task.probabilities(logits)

    @partial(jax.jit, out_shardings=replicated)
    def eval_step(
        params: Tree, frozen: Tree, stats: Tree | None, precomputed: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        if over is None:
            return one_eval_step(params, frozen, stats, precomputed, batch)

        def one(each: Any, both: Any) -> Any:
            (own_params, own, own_stats, own_precomputed), (shared, batch) = each, both
            return one_eval_step(own_params, joined(shared, own), own_stats, own_precomputed, batch)

        found = over(one)((params, frozen[OWN], stats, precomputed), (frozen[SHARED], batch))
        return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), found)

    # No sharding is given: if weights are split over the devices, the precomputed arrays are split too.
    compiled = jax.jit(precompute_all)

    def bind(params: Tree, frozen: Tree, stats: Tree | None = None) -> BoundEvalStep:
        return partial(eval_step, params, frozen, stats, compiled(params, frozen, stats))

    return bind


def make_encode(graphdef: nnx.GraphDef, by_batch: jax.NamedSharding) -> Callable[[Tree, Tree, Tree, Batch], jax.Array]:
    """Returns encode(params, frozen, stats, batch) -> the model's source tokens (B, d, W)."""
    return jax.jit(
        lambda params, frozen, stats, batch: merge(graphdef, params, frozen, stats).encode(batch["image"]),
        out_shardings=by_batch,
    )
