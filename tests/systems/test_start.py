"""The initial weights of a run."""

import dataclasses

import numpy as np

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
    counted = dataclasses.replace(system, build=lambda rngs: built.append(1) or system.build(rngs))
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
