"""The initial weights of a run."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxboost import systems
from jaxboost.runs import datasets
from jaxboost.systems import start
from jaxboost.training import step
from tests.training.small_runs import small_config

# Seed -> the first weights of the trained head and of the frozen block.
DRAWN = {
    0: ([-0.05845207, -0.03139576, 0.04122699], [0.01847266, 0.03031605, -0.00552999]),
    3: ([-0.07151829, -0.0749227, -0.0169801], [0.01762221, 0.00280491, -0.00960022]),
}


def test_draws_are_those_of_earlier_runs(few_lidc_root):
    """Runs record a fingerprint of their random block: other draws would refuse every earlier run with one."""
    config = small_config(few_lidc_root)
    system, built = systems.prepare(config, datasets.describe(config)), []
    counted = dataclasses.replace(
        system, build=lambda rngs: built.append(1) or system.build(rngs), origin="of this test"
    )
    shared, replicated = start.Shared(), step.make_mesh()[0]
    traces = []
    for seed, expected in DRAWN.items():
        params, held, _, _ = start.initialise(counted, seed=seed, replicated=replicated, shared=shared)
        for weights, values in zip(
            (params["head"]["kernel"], held["boost"]["block"]["layers"]["q"]), expected, strict=True
        ):
            np.testing.assert_allclose(np.asarray(weights).ravel()[:3], values, rtol=1e-5)
        traces.append(len(built))
    # Another seed finds the compiled function.
    assert traces[0] == traces[1] > 0


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"seed": 7, "optim.lr": 1e-3, "train.epochs": 2, "eval.batch_size": 8}, True),
        ({"boost.trainable": True}, False),
        ({"boost.init": "normal"}, False),
        ({"data.name": "breastmnist", "data.size": 28, "data.root": "elsewhere", "model.backbone": "vit_tiny"}, False),
    ],
)
def test_runs_of_the_same_model_share_the_compiled_draw(few_lidc_root, changes, shares):
    configs = [small_config(few_lidc_root), small_config(few_lidc_root, changes)]
    prepared = [systems.prepare(config, datasets.describe(config)) for config in configs]
    replicated = step.make_mesh()[0]
    keys = [start._Key.of(system, replicated) for system in prepared]
    assert (keys[0] == keys[1]) == shares
    start.forget()
    for system in prepared:
        start.initialise(system, seed=0, replicated=replicated)
    assert start._drawing.cache_info().misses == 2 - shares


def test_what_structure_and_shapes_do_not_tell(few_lidc_root):
    """Models that differ in nothing but how their weights are drawn."""
    replicated, keys, drawn = step.make_mesh()[0], [], []
    for init in ("uniform", "normal"):
        config = small_config(few_lidc_root, {"boost.init": init})
        system = systems.prepare(config, datasets.describe(config))
        keys.append(start._Key.of(system, replicated))
        params, *_ = start.initialise(system, seed=0, replicated=replicated)
        drawn.append(np.asarray(params["boost"]["encode"]["kernel"]))
    assert (keys[0].graphdef, keys[0].shapes, keys[0].parts) == (keys[1].graphdef, keys[1].shapes, keys[1].parts)
    assert keys[0] != keys[1]
    assert not np.isclose(*drawn).any()


def test_a_system_of_its_own_shares_with_no_other(few_lidc_root):
    """Its `build` may draw anything: nothing but its origin tells."""
    config = small_config(few_lidc_root)
    system, replicated = systems.prepare(config, datasets.describe(config)), step.make_mesh()[0]
    fields = {field.name: getattr(system, field.name) for field in dataclasses.fields(system) if field.name != "origin"}
    first, second = (start._Key.of(systems.System(**fields), replicated) for _ in range(2))
    assert first != second
    assert first == start._Key.of(first.system, replicated)


def test_a_config_that_changes_later_changes_no_draw(few_lidc_root):
    config = small_config(few_lidc_root)
    system, replicated = systems.prepare(config, datasets.describe(config)), step.make_mesh()[0]
    expected = start.initialise(system, seed=0, replicated=replicated)
    config.model.backbone = "vivit_tiny"
    start.forget()
    jax.tree.map(np.testing.assert_array_equal, start.initialise(system, seed=0, replicated=replicated), expected)
