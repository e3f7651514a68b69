"""The production train and eval step: what they return, what they reuse, and the losses."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxboost.models import frozen
from jaxboost.runs import assembly
from jaxboost.tasks import TASKS
from jaxboost.training import mixing, step
from tests.scripts import devices, run_script
from tests.training.small_runs import assert_same, on_host, small_config, take_step

KEY = jax.random.key(0)
FROZEN_SHAPE = (1, 64, 96)  # gate and up of the one llama-tiny layer; nothing trained has it


@pytest.fixture(scope="module")
def untouched(few_lidc_root, tmp_path_factory):
    return assembly.assemble(small_config(few_lidc_root), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(untouched):
    """The run at its start; tests share what is compiled, and donate a copy of the state."""
    run = copy.copy(untouched)
    run.state = jax.tree.map(jnp.copy, untouched.state)
    return run


def _batch(run):
    return step.put(next(run.feed.iterator), run.program.by_batch)


def test_frozen_weights_are_not_outputs(run):
    assert FROZEN_SHAPE in {leaf.shape for leaf in jax.tree.leaves(run.frozen)}
    compiled = run.program.train_step.lower(run.state, run.frozen, _batch(run), KEY).compile()
    state, metrics = compiled.out_info
    assert jax.tree.structure(state) == jax.tree.structure(run.state)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(run.state)]
    assert {name: value.shape for name, value in metrics.items()} == {"loss": (), "grad_norm": ()}
    assert FROZEN_SHAPE not in {leaf.shape for leaf in jax.tree.leaves(state)}
    # XLA's own account: the outputs are the state and a few scalars, and reuse the state's memory.
    memory, held = compiled.memory_analysis(), sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    frozen_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(run.frozen))
    assert held <= memory.output_size_in_bytes < held + frozen_bytes / 2
    assert memory.alias_size_in_bytes >= held


def test_optimiser_keeps_nothing_for_frozen_weights(run):
    moments = [optax.tree_utils.tree_get(run.state.opt_state, name) for name in ("mu", "nu")]
    for moment in moments:
        assert jax.tree.map(jnp.shape, moment) == jax.tree.map(jnp.shape, run.state.params)
    in_moments = sum(frozen.count(moment) for moment in moments)
    scalars = frozen.count(run.state.opt_state) - in_moments
    assert in_moments == 2 * frozen.count(run.state.params)
    assert scalars == sum(leaf.ndim == 0 for leaf in jax.tree.leaves(run.state.opt_state)) <= 3


def test_step_donates_the_state_and_leaves_the_rest(run):
    before, frozen_before = on_host(run.state.params), on_host(run.frozen)
    frozen_leaves = jax.tree.leaves(run.frozen)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in frozen_leaves]
    old, batch = run.state, _batch(run)
    for number in (1, 2, 3):
        run.state, outputs = run.program.train_step(old, run.frozen, batch, KEY)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        assert np.isfinite(outputs["loss"])
        assert outputs["grad_norm"] > 0
        assert int(run.state.step) == number
        old = run.state
    assert not any(leaf.is_deleted() for leaf in (*frozen_leaves, *jax.tree.leaves(batch)))
    assert_same(on_host(run.frozen), frozen_before)
    assert pointers == [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(run.frozen)]
    after = on_host(run.state.params)
    assert not any(np.array_equal(after[path], before[path]) for path in before)


def test_eval_step_agrees_with_the_train_step(run):
    batch = _batch(run)
    losses, scores = run.program.bind_eval_step(run.state.params, run.frozen)(batch)
    assert losses.shape == (16,)
    assert scores.shape == (16, 2)
    np.testing.assert_allclose(np.sum(scores, -1), 1, rtol=1e-6)
    own = np.take_along_axis(np.asarray(scores), np.asarray(batch["label"]), axis=-1)[:, 0]
    np.testing.assert_allclose(losses, -np.log(own), rtol=1e-4, atol=1e-6)
    params = run.state.params
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    run.state, outputs = take_step(run, batch)
    assert float(outputs["loss"]) == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("task", ["binary-class", "multi-class", "ordinal-regression", "multi-label, binary-class"])
def test_losses_and_probabilities_are_torchs(task):
    import torch
    from torch.nn import functional

    rng, classes = np.random.default_rng(0), 2 if task == "binary-class" else 5
    logits = (3 * rng.standard_normal((7, classes))).astype(np.float32)
    theirs = torch.from_numpy(logits)
    if task == "multi-label, binary-class":
        labels = rng.integers(0, 2, (7, classes))
        loss = functional.binary_cross_entropy_with_logits(theirs, torch.from_numpy(labels).float(), reduction="none")
        loss, scores = loss.mean(-1), theirs.sigmoid()
    else:
        labels = rng.integers(0, classes, (7, 1))
        loss = functional.cross_entropy(theirs, torch.from_numpy(labels[:, 0]), reduction="none")
        scores = theirs.softmax(-1)
    targets = TASKS[task].targets(jnp.asarray(labels, jnp.int32), classes)
    our_loss, our_scores = TASKS[task].losses(logits, targets), TASKS[task].probabilities(logits)
    assert our_loss.shape == (7,)
    np.testing.assert_allclose(our_loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_scores, scores, rtol=1e-5, atol=1e-6)


def test_put_keeps_values_and_types():
    _, by_batch = step.make_mesh()
    batch = {
        "image": np.arange(4 * 2 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2, 2, 1),
        "label": np.arange(4, dtype=np.int32)[:, None],
    }
    placed = step.put(batch, by_batch)
    assert_same(placed, batch)
    assert all(array.sharding == by_batch for array in placed.values())


SHARES = """
import numpy as np
from jaxboost.training import step

_, by_batch = step.make_mesh()
placed = step.put({"label": np.arange(4, dtype=np.int32)[:, None]}, by_batch)["label"]
print([np.asarray(shard.data)[:, 0].tolist() for shard in placed.addressable_shards])
"""


def test_put_gives_each_device_its_share():
    process = run_script("-c", SHARES, env=devices(2))
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[[0, 1], [2, 3]]"


def _toy(ema=0.0, accumulate=1, **objective):
    """A step of a linear classifier on grey images of 2 x 2 pixels."""

    class Linear(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32))

        def __call__(self, images, *, key=None):
            return images.reshape(len(images), -1).astype(jnp.float32) / 255 @ self.kernel[...]

    graphdef, params, _, _ = frozen.split(Linear())
    tx = optax.sgd(0.5)
    if accumulate > 1:
        tx = optax.MultiSteps(tx, every_k_schedule=accumulate).gradient_transformation()
    replicated, _ = step.make_mesh()
    state = step.init_state(params, tx, replicated, ema=ema > 0)
    goal = step.Objective(task="multi-class", classes=3, **objective)
    return state, step.make_train_step(graphdef, tx, goal, replicated, ema=ema, accumulate=accumulate)


def _toy_batch(number):
    rng = np.random.default_rng(number)
    return {"image": rng.integers(0, 256, (4, 2, 2, 1), np.uint8), "label": rng.integers(0, 3, (4, 1)).astype(np.int32)}


def test_no_average_is_kept_unless_it_is_asked_for():
    state, _ = _toy()
    assert state.ema == {}
    assert state.evaluated(ema=True) == (state.params, {})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_of_the_weights_is_the_closed_form(accumulate):
    """ema_t = d^t w_0 + (1 - d) sum_i d^(t - i) w_i, over the changes of the weights."""
    state, train_step = _toy(ema=0.9, accumulate=accumulate)
    history = [np.array(state.params["kernel"])]
    for number in range(6):
        state, _ = train_step(state, {}, _toy_batch(number), KEY)
        if (number + 1) % accumulate == 0:
            history.append(np.array(state.params["kernel"]))
    t = len(history) - 1
    assert t == 6 // accumulate
    expected = 0.9**t * history[0] + 0.1 * sum(0.9 ** (t - i) * history[i] for i in range(1, t + 1))
    average, _ = state.evaluated(ema=True)
    assert state.evaluated(ema=False) == (state.params, {})
    np.testing.assert_allclose(average["kernel"], expected, rtol=1e-5)
    assert not np.allclose(average["kernel"], state.params["kernel"], atol=1e-3)


def test_a_step_trains_on_what_mixing_makes_of_its_batch():
    settings = mixing.Mixing(mixup=1.0, label_smoothing=0.2)
    state, train_step = _toy(mixing=settings)
    kernel, batch = np.array(state.params["kernel"]), _toy_batch(0)
    _, key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    targets = TASKS["multi-class"].targets(jnp.asarray(batch["label"]), 3, 0.2)
    images, targets = mixing.augment_batch(
        jnp.asarray(batch["image"]), targets, settings, mean=(0.0,), std=(1.0,), key=key
    )
    logits = np.asarray(images).reshape(4, -1) / 255 @ kernel
    expected = -(np.asarray(targets) * np.asarray(jax.nn.log_softmax(logits))).sum(-1).mean()
    _, outputs = train_step(state, {}, batch, KEY)
    assert float(outputs["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_lacks_samples_is_a_smaller_batch():
    state, train_step = _toy(class_weights=(1.0, 2.0, 3.0))
    other, _ = _toy()
    batch = _toy_batch(0)
    smaller = {name: values[:3] for name, values in batch.items()}
    batch["image"][3] = 255
    padded, metrics = train_step(state, {}, batch | {"mask": np.array([True, True, True, False])}, KEY)
    expected, wanted = train_step(other, {}, smaller, KEY)
    for name in ("loss", "grad_norm"):
        assert float(metrics[name]) == pytest.approx(float(wanted[name]), rel=1e-6)
    np.testing.assert_allclose(padded.params["kernel"], expected.params["kernel"], rtol=1e-6)


def test_a_step_weighs_the_classes():
    losses = {}
    for weights in ((), (2.0, 2.0, 2.0)):
        state, train_step = _toy(class_weights=weights)
        losses[weights] = float(train_step(state, {}, _toy_batch(0), KEY)[1]["loss"])
    assert losses[2.0, 2.0, 2.0] == pytest.approx(2 * losses[()], rel=1e-6)
