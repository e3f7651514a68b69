"""The initial weights of a run."""

import numpy as np
import pytest

from jaxboost import systems
from jaxboost.runs import datasets
from jaxboost.systems import start
from jaxboost.training import step
from tests.training.small_runs import small_config


@pytest.mark.parametrize(
    ("seed", "trained", "frozen"),
    [
        (0, [-0.05845207, -0.03139576, 0.04122699], [0.01847266, 0.03031605, -0.00552999]),
        (3, [-0.07151829, -0.0749227, -0.0169801], [0.01762221, 0.00280491, -0.00960022]),
    ],
)
def test_draws_are_those_of_earlier_runs(seed, trained, frozen, few_lidc_root):
    """Runs record a fingerprint of their random block: other draws would refuse every earlier run with one."""
    config = small_config(few_lidc_root, {"seed": seed})
    system = systems.prepare(config, datasets.describe(config))
    params, held, _, _ = start.initialise(system, seed=seed, replicated=step.make_mesh()[0])
    for weights, expected in ((params["head"]["kernel"], trained), (held["boost"]["block"]["layers"]["q"], frozen)):
        np.testing.assert_allclose(np.asarray(weights).ravel()[:3], expected, rtol=1e-5)
