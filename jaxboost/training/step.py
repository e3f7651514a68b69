"""One training step and one evaluation step, pure and jitted over a mesh of all local devices."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxboost.data.source import MULTI_LABEL
from jaxboost.errors import UserError
from jaxboost.models.frozen import Tree, merge

Batch = Mapping[str, jax.Array]
LOSSES = ("auto", "columns")


@flax.struct.dataclass
class TrainState:
    """What a step changes. Frozen weights are not part of it: they would be copied at every step."""

    step: jax.Array
    params: Tree
    opt_state: optax.OptState


def make_mesh() -> tuple[jax.NamedSharding, jax.NamedSharding]:
    """Two shardings over all local devices: `replicated`, and `by_batch` (first axis split)."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    return jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P("data"))


def check_batch_size(batch_size: int, field: str) -> None:
    """Raises UserError where a batch cannot be split evenly over the devices."""
    devices = len(jax.local_devices())
    if batch_size <= 0:
        raise UserError(f"config field {field}: {batch_size} should be above 0")
    if batch_size % devices:
        raise UserError(f"config field {field}: {batch_size} is no multiple of the {devices} local devices")


def put(batch: Mapping[str, np.ndarray], by_batch: jax.NamedSharding) -> Batch:
    """Copies a host batch to the devices, each its share."""
    return {name: jax.make_array_from_process_local_data(by_batch, array) for name, array in batch.items()}


def init_state(params: Tree, tx: optax.GradientTransformation, replicated: jax.NamedSharding) -> TrainState:
    """The state before the first step."""
    opt_state = jax.jit(tx.init, out_shardings=replicated)(params)
    return TrainState(step=jax.device_put(jnp.int32(0), replicated), params=params, opt_state=opt_state)


def loss_and_scores(logits: jax.Array, labels: jax.Array, task: str, loss: str) -> tuple[jax.Array, jax.Array]:
    """Loss of each example (B,) and probabilities (B, classes).

    Args:
      logits: (B, classes).
      labels: (B, 1) class numbers; (B, classes) zeros and ones for the multi-label task.
      task: MedMNIST's name. Ordinal regression is trained as classification, as MedMNIST scores it.
      loss: "auto", the task's own: softmax cross-entropy (for two classes the binary one of the logits' difference), or
        for several labels the mean of binary ones; "columns": the mean of binary ones for all tasks, as PneumoLLM's
        code has it.
    """
    multi_label = task == MULTI_LABEL
    scores = jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits)
    if multi_label or loss == "columns":
        columns = labels if multi_label else jax.nn.one_hot(labels[:, 0], logits.shape[-1])
        return optax.sigmoid_binary_cross_entropy(logits, columns).mean(-1), scores
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, 0]), scores


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    task: str,
    replicated: jax.NamedSharding,
    *,
    loss: str,
    seed: int,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns step(state, frozen, batch) -> (state, {"loss", "grad_norm"}); the old state's buffers are reused.

    Args:
      task, loss: see `loss_and_scores`.
      seed: what the model draws in a step follows from it and the step's number.
    """

    @partial(jax.jit, donate_argnames="state", out_shardings=replicated)
    def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params: Tree) -> jax.Array:
            logits = merge(graphdef, params, frozen)(batch["image"], key=key)
            return loss_and_scores(logits, batch["label"], task, loss)[0].mean()

        value, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def make_eval_step(
    graphdef: nnx.GraphDef, task: str, replicated: jax.NamedSharding, *, loss: str
) -> Callable[[Tree, Tree], Callable[[Batch], tuple[jax.Array, jax.Array]]]:
    """Returns bind(params, frozen) -> step(batch) -> (loss of each example (B,), probabilities (B, classes)).

    What follows from the weights alone is formed once, by `bind`.
    """
    # Where the weights are spread over the devices, so is what follows from them.
    form_maps = jax.jit(lambda params, frozen: merge(graphdef, params, frozen).form_maps())

    @partial(jax.jit, out_shardings=replicated)
    def eval_step(params: Tree, frozen: Tree, maps: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = merge(graphdef, params, frozen)(batch["image"], maps)
        return loss_and_scores(logits, batch["label"], task, loss)

    def bind(params: Tree, frozen: Tree) -> Callable[[Batch], tuple[jax.Array, jax.Array]]:
        return partial(eval_step, params, frozen, form_maps(params, frozen))

    return bind


def make_encode(graphdef: nnx.GraphDef, by_batch: jax.NamedSharding) -> Callable[[Tree, Tree, Batch], jax.Array]:
    """Returns encode(params, frozen, batch) -> the model's source tokens (B, d, W)."""
    return jax.jit(
        lambda params, frozen, batch: merge(graphdef, params, frozen).encode(batch["image"]), out_shardings=by_batch
    )
