"""The optimiser and the schedule of its learning rate."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxboost.errors import UserError
from jaxboost.models.frozen import Tree
from jaxboost.training.layer_decay import scale_by_layer

# Endings of the names of weights without weight decay.
_SPARED = (
    *("bias", "biases", "scale", "norm", "positions", "cls", "registers", "prompts", "probe", "queries", "modality"),
)

# step, from 0 -> learning rate. Not `optax.Schedule`: a type checker allows no arithmetic with its types.
Schedule = Callable[[Any], Any]


def make_optimizer(
    *,
    name: str,
    lr: float,
    schedule: str,
    warmup_epochs: float,
    warmup_from: float,
    final_lr: float,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    layer_decay: float = 1.0,
    schedule_epochs: float = 0.0,
    schedule_from: float = 0.0,
    by_epoch: bool = False,
    steps_per_epoch: int,
    epochs: int,
    accumulate: int = 1,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimiser from the fields of the config's section `optim`, which config/training_fields.py explains.

    Args:
      steps_per_epoch, epochs: of the run.
      accumulate: micro-batches per optimiser update: every `accumulate`-th step changes the weights, by the mean of the
        gradients since the last update.

    Returns:
      The transformation, and the schedule of its learning rate.

    Raises:
      UserError: the warm-up does not fit into the steps.
    """
    updates = steps_per_epoch / accumulate
    whole = make_schedule(
        schedule,
        lr=lr,
        final_lr=final_lr,
        warmup_from=warmup_from,
        warmup_steps=round(warmup_epochs * updates),
        # Not 0 by rounding: `validation.check_steps` has seen that there is an update.
        total_steps=max(1, math.floor((schedule_epochs or epochs) * updates)),
    )
    start = round(schedule_from * updates)
    rate = whole if not start else lambda step: whole(step + start)
    if by_epoch:
        rate = _by_epoch(rate, updates, warmup_from)
    adam = (
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
        if name == "adamw"
        else optax.adam(rate, b1=b1, b2=b2, eps=eps)
    )
    tx = optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm > 0 else adam
    if layer_decay != 1:
        tx = optax.chain(tx, scale_by_layer(layer_decay))
    if accumulate == 1:
        return tx, rate
    tx = optax.MultiSteps(tx, every_k_schedule=accumulate).gradient_transformation()
    return tx, lambda step: rate(step // accumulate)


def _by_epoch(rate: Schedule, updates: float, first: float) -> Schedule:
    """A constant rate in each epoch: `rate` at the start of the previous epoch, and `first` in the first epoch.

    R-LLM's 2D code does this: after each epoch it asks timm's scheduler for the rate of that epoch's number, which
    counts from 0.

    Args:
      rate: the schedule, a function of the number of updates.
      updates: number of optimiser updates in an epoch.
      first: rate of the first epoch.
    """

    def constant(step: jax.Array) -> jax.Array:
        epoch = step // updates
        return jnp.where(epoch > 0, rate((epoch - 1) * updates), first)

    return constant


def make_schedule(
    kind: str, *, lr: float, final_lr: float, warmup_from: float, warmup_steps: int, total_steps: int
) -> Schedule:
    """A linear warm-up from `warmup_from` to `lr` in `warmup_steps`, then a cosine, a constant, or steps.

    "cosine" ends with `final_lr` at `total_steps`. "steps" multiplies the rate by 0.1 after half and after three
    quarters of `total_steps`, as MedMNIST trains its baselines (Yang et al. 2023).

    Raises:
      UserError: the warm-up does not fit into the steps.
    """
    if warmup_steps >= total_steps:
        raise UserError(
            f"config field optim.warmup_epochs: {warmup_steps} warm-up steps do not fit in {total_steps} steps"
        )
    if kind == "cosine":
        main = optax.cosine_decay_schedule(lr, total_steps - warmup_steps, alpha=final_lr / lr)
    elif kind == "steps":
        ends = (total_steps // 2 - warmup_steps, 3 * total_steps // 4 - warmup_steps)
        main = optax.piecewise_constant_schedule(lr, dict.fromkeys(ends, 0.1))
    else:
        main = optax.constant_schedule(lr)
    if not warmup_steps:
        return main
    return optax.join_schedules([optax.linear_schedule(warmup_from, lr, warmup_steps), main], [warmup_steps])


def decay_mask(params: Tree) -> Tree:
    """True for weights with weight decay: all except biases, norms, positions and learned tokens, by their names."""

    def decays(path: tuple[Any, ...], _: jax.Array) -> bool:
        return not path[-1].key.endswith(_SPARED)

    return jax.tree_util.tree_map_with_path(decays, params)
