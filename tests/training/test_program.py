"""The step functions that a config becomes: what is trained, and what `describe` estimates, are the same."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxboost import systems
from jaxboost.data.dataset import DatasetInfo
from jaxboost.models import frozen
from jaxboost.training import program
from tests.training.small_runs import small_config

INFO = DatasetInfo("x", "multi-class", ("a", "b", "c"), 1, 3, 28, {}, "")
CHANGES = {"train.accumulate": 2, "train.ema": 0.9, "train.class_weights": "balanced", "optim.clip_norm": 1.0}


def made(config, labels=None):
    system = systems.prepare(config, INFO)
    objective = program.make_objective(config, INFO, labels)
    return system, objective, program.make_program(config, system.graphdef, objective, steps_per_epoch=10)


def test_shapes_are_those_of_the_state(tmp_path):
    system, _, step_functions = made(small_config(tmp_path, CHANGES))
    params, _, stats = jax.jit(lambda: frozen.split(system.build(nnx.Rngs(0)))[1:])()
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
    after, outputs = jax.eval_shape(step_functions.train_step, state, system.frozen, program.batch_shapes(config, INFO))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    assert outputs.keys() == {"loss", "grad_norm"}


def test_class_weights_follow_from_the_labels(tmp_path):
    _, objective, _ = made(small_config(tmp_path, CHANGES), np.array([[0], [0], [1], [2]]))
    assert objective.class_weights == pytest.approx((4 / 6, 4 / 3, 4 / 3))
