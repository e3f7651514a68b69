"""The step functions that a config becomes: what is trained, and what `describe` estimates, are the same."""

import jax
import numpy as np
import pytest

from jaxboost import systems
from jaxboost.data.dataset import DatasetInfo
from jaxboost.models import frozen
from jaxboost.models.rngs import make_rngs
from jaxboost.runs import assembly
from jaxboost.training import program
from tests.training.small_runs import small_config, take_steps

INFO = DatasetInfo("x", "multi-class", ("a", "b", "c"), 1, 3, 28, {}, "")
CHANGES = {"train.accumulate": 2, "train.ema": 0.9, "train.class_weights": "balanced", "optim.clip_norm": 1.0}


def made(config, labels=None):
    system = systems.prepare(config, INFO)
    objective = program.make_objective(config, INFO, labels)
    return system, objective, program.make_program(config, system.graphdef, objective, steps_per_epoch=10)


def test_shapes_are_those_of_the_state(tmp_path):
    system, _, step_functions = made(small_config(tmp_path, CHANGES))
    params, _, stats = jax.jit(lambda: frozen.split(system.build(make_rngs(0)))[1:])()
    state = step_functions.init_state(params, stats)
    shapes = step_functions.state_shapes(system.params, system.stats)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == described


def test_a_step_without_data_has_all_that_the_config_asks_for(tmp_path):
    config = small_config(tmp_path, {**CHANGES, "model.mean": (0.5,), "model.std": (0.25,), "mix.mixup": 0.2})
    system, objective, step_functions = made(config)
    assert objective.class_weights == (1.0, 1.0, 1.0)
    assert (objective.mean, objective.std, objective.mixing.mixup) == ((0.5,), (0.25,), 0.2)
    state = step_functions.state_shapes(system.params, system.stats)
    batch = program.batch_shapes(config, INFO)
    after, outputs = jax.eval_shape(step_functions.train_step, state, system.frozen, batch, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    assert outputs.keys() == {"loss", "grad_norm"}


def test_class_weights_follow_from_the_labels(tmp_path):
    _, objective, _ = made(small_config(tmp_path, CHANGES), np.array([[0], [0], [1], [2]]))
    assert objective.class_weights == pytest.approx((4 / 6, 4 / 3, 4 / 3))


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"seed": 3, "train.log_every": 7, "train.batch_size": 8}, True),
        ({"optim.lr": 0.1}, False),
        ({"optim.clip_norm": 0.0}, False),
        ({"train.epochs": 9}, False),
        ({"train.ema": 0.5}, False),
        ({"train.accumulate": 1}, False),
        ({"train.loss": "bce"}, False),
        ({"mix.mixup": 0.5}, False),
        ({"boost.rope": True}, False),
        ({"model.mean": (0.4,)}, False),
    ],
    ids=str,
)
def test_runs_share_step_functions_unless_a_config_changes_them(changes, shared, tmp_path):
    program.forget()
    first = made(small_config(tmp_path, CHANGES))[2]
    assert (made(small_config(tmp_path, {**CHANGES, **changes}))[2] is first) == shared
    assert made(small_config(tmp_path, CHANGES))[2] is first
    program.forget()
    assert made(small_config(tmp_path, CHANGES))[2] is not first


def test_a_shared_program_has_no_seed_of_its_own(few_lidc_root, tmp_path):
    """Drop path and mixing draw from the seed in each step: a run after one of another seed is as a run alone."""

    def losses(seed):
        config = small_config(few_lidc_root, {"seed": seed, "model.drop_path": 0.3, "mix.mixup": 0.5})
        run = assembly.assemble(config, tmp_path / f"seed{seed}")
        return take_steps(run, 2), run.program

    program.forget()
    alone, _ = losses(7)
    program.forget()
    other, shared = losses(0)
    again, taken = losses(7)
    assert taken is shared
    assert again == alone
    assert other != alone
