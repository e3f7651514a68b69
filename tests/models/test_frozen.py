"""Frozen weights: kept apart from trainable ones everywhere, under both of Flax NNX's modes."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.models.classifier import BoostSpec, Classifier, build
from jaxboost.models.frozen import Frozen, count, freeze, merge, mib, split, statistics
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.rngs import make_rngs

CONFIG = LlamaConfig(width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=48, eps=1e-6, rope_base=10000.0)
TREE_MODE = {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false"}


class Mixed(nnx.Module):
    """Every way in which a weight can hang below a module."""

    def __init__(self):
        rngs = make_rngs(0)
        self.direct = nnx.Param(jnp.arange(3.0))
        self.child = nnx.Linear(2, 4, rngs=rngs)
        self.listed = nnx.List([nnx.Linear(4, 4, use_bias=False, rngs=rngs), nnx.Param(jnp.ones(5))])
        self.absent = None


class WithStatistics(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones(2))
        self.mean = nnx.BatchStat(jnp.zeros(2))


def small_classifier(trainable: bool = False) -> Classifier:
    return build(
        "vit3d_tiny",
        boost=BoostSpec(kind="rllm", config=CONFIG, trainable=trainable),
        classes=3,
        image_size=14,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        dtype=jnp.float32,
        rngs=make_rngs(0),
    )


def random_weights(shapes: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def batch() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (6, 14, 14, 14, 1), np.uint8)
    return images, np.array([0, 1, 2, 0, 1, 2])


def test_nnx_runs_in_the_mode_of_the_environment() -> None:
    assert flax.config.nnx_graph_mode == (os.environ.get("NNX_GRAPH_MODE", "true") == "true")
    assert flax.config.nnx_graph_updates == (os.environ.get("NNX_GRAPH_UPDATES", "true") == "true")


def test_freeze_retypes_every_param_and_keeps_its_value() -> None:
    module = Mixed()
    before = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert count(before) == 3 + (2 * 4 + 4) + 4 * 4 + 5
    assert freeze(module) is module
    _, params, frozen, _ = split(module)
    assert params == {}
    assert isinstance(module.child.kernel, Frozen)
    assert jax.tree.structure(frozen) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    output = module.child(jnp.ones((1, 2)))
    np.testing.assert_allclose(output, np.asarray(before["child"]["kernel"]).sum(0, keepdims=True), rtol=1e-6)


def test_freeze_leaves_other_variables_alone() -> None:
    module = freeze(WithStatistics())
    assert type(module.weight) is Frozen
    assert type(module.mean) is nnx.BatchStat


def test_freeze_works_on_shapes_without_values() -> None:
    _, params, frozen, _ = split(
        nnx.eval_shape(lambda: freeze(LlamaBlock(CONFIG, depth=2, dtype=jnp.float32, rngs=make_rngs(0))))
    )
    assert params == {}
    assert frozen["layers"]["q"].shape == (2, 32, 32)


def test_frozen_is_invisible_to_a_filter_for_params() -> None:
    assert not issubclass(Frozen, nnx.Param)
    module = nnx.eval_shape(small_classifier)
    trainable = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert "block" not in trainable["boost"]
    assert set(nnx.to_pure_dict(nnx.state(module, Frozen))) == {"boost"}
    assert count(trainable) + count(nnx.to_pure_dict(nnx.state(module, Frozen))) == count(
        nnx.to_pure_dict(nnx.state(module))
    )


def test_split_tells_statistics_apart() -> None:
    graphdef, params, frozen, stats = split(WithStatistics())
    assert (set(params), frozen, set(stats)) == ({"weight"}, {}, {"mean"})
    merged = merge(graphdef, params, frozen, {"mean": jnp.full(2, 3.0)})
    assert type(merged.weight) is nnx.Param
    assert type(merged.mean) is nnx.BatchStat
    np.testing.assert_array_equal(statistics(merged)["mean"], [3, 3])


def test_merge_refuses_a_model_without_its_statistics() -> None:
    graphdef, params, frozen, _ = split(WithStatistics())
    with pytest.raises(ValueError, match="expected 2 leaves, but got 1"):
        merge(graphdef, params, frozen)


def test_split_refuses_a_fourth_kind_of_variable() -> None:
    module = WithStatistics()
    module.cache = nnx.Cache(jnp.zeros(2))
    with pytest.raises(ValueError, match="Cache"):
        split(module)


def test_statistics_leave_a_gradient_as_changed() -> None:
    """The way of the training step, for which tree mode has to hold too."""
    graphdef, params, frozen, stats = split(WithStatistics())

    @jax.jit
    def run(params: Any, stats: Any) -> Any:
        def loss(params: Any) -> Any:
            model = merge(graphdef, params, frozen, stats)
            model.mean[...] = model.mean[...] + 2 * model.weight[...]
            return model.weight[...].sum(), statistics(model)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, changed), gradients = run(params, stats)
    assert value == 2
    np.testing.assert_array_equal(changed["mean"], [2, 2])
    np.testing.assert_array_equal(gradients["weight"], [1, 1])
    np.testing.assert_array_equal(stats["mean"], [0, 0])


def test_merge_is_the_inverse_of_split() -> None:
    module = Mixed()
    freeze(module.child)
    graphdef, params, frozen, _ = split(module)
    assert set(params) == {"direct", "listed"}
    assert set(frozen) == {"child"}
    merged = merge(graphdef, params, frozen)
    assert type(merged) is Mixed
    assert type(merged.direct) is nnx.Param
    assert type(merged.child.kernel) is Frozen
    again, params_again, frozen_again, _ = split(merged)
    assert again == graphdef
    jax.tree.map(np.testing.assert_array_equal, (params_again, frozen_again), (params, frozen))
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(merged.child(x), module.child(x))


def test_merge_without_anything_frozen() -> None:
    graphdef, params, frozen, _ = split(Mixed())
    assert frozen == {}
    jax.tree.map(np.testing.assert_array_equal, split(merge(graphdef, params, frozen))[1], params)


def test_count_and_mib() -> None:
    tree = {"a": jnp.ones((2, 3)), "b": {"c": jax.ShapeDtypeStruct((5,), jnp.bfloat16)}}
    assert count(tree) == 11
    assert mib(tree) == (6 * 4 + 5 * 2) / 2**20
    assert count({}) == mib({}) == 0


def make_step(graphdef: nnx.GraphDef) -> Any:
    @jax.jit
    def step(params: Any, frozen: Any, images: Any, labels: Any) -> tuple[Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits = merge(graphdef, params, frozen)(images)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients), value

    return step


def test_gradient_step_trains_the_rest_and_returns_nothing_frozen() -> None:
    graphdef, *shapes = split(nnx.eval_shape(small_classifier))
    params, frozen, stats = random_weights(shapes)
    assert stats == {}
    before = jax.tree.map(np.array, (params, frozen))
    images, labels = batch()
    step = make_step(graphdef)
    lowered = step.lower(params, frozen, images, labels)
    assert lowered.out_info[0].keys() == params.keys()
    assert count(lowered.out_info[0]) == count(params)
    compiled = lowered.compile()
    returned = compiled.memory_analysis().output_size_in_bytes
    expected = 4 * (count(params) + 1)
    # The runtime's table of output buffers comes on top; the frozen weights would weigh far more.
    assert expected <= returned < expected + 4096 < expected + 4 * count(frozen)

    losses = []
    for _ in range(4):
        params, loss = compiled(params, frozen, images, labels)
        losses.append(float(loss))
    assert losses[3] < losses[2] < losses[1] < losses[0]
    # Everything trainable moved, from the pixels' embedding through both adapters to the head.
    assert all((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (params, before[0])), strict=True))
    jax.tree.map(np.testing.assert_array_equal, frozen, before[1])


def test_trainable_block_gets_gradients() -> None:
    graphdef, params, frozen, _ = split(nnx.eval_shape(lambda: small_classifier(trainable=True)))
    updated, _ = jax.eval_shape(make_step(graphdef), params, frozen, *batch())
    assert frozen == {}
    assert updated["boost"]["block"]["layers"]["q"].shape == (1, 32, 32)


@pytest.mark.skipif("NNX_GRAPH_MODE" in os.environ, reason="is itself the run that this test starts")
def test_everything_above_passes_in_tree_mode() -> None:
    """FLIP 5310 makes tree mode Flax's default. A process of its own: the flags are read at import."""
    root = pathlib.Path(__file__).parents[2]
    options = ["--noconftest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(pathlib.Path(__file__))]
    result = subprocess.run(
        command, cwd=root, env=os.environ | TREE_MODE, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 skipped" in result.stdout
