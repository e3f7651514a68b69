"""The learning rate of an arm is chosen on validation."""

import math

import pytest

from jaxboost.config.overrides import with_overrides
from jaxboost.errors import UserError
from jaxboost.studies import plan, tuning
from tests.studies.small_studies import RLLM, small_study, write_run


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({0.1: 0.6, 0.01: 0.7}, 0.01),
        ({0.1: 0.7, 0.01: 0.7}, 0.01),
        ({0.01: 0.7, 0.1: 0.7}, 0.01),
        ({0.1: 0.5, 0.01: math.nan}, 0.1),
        ({0.1: math.nan, 0.01: math.nan}, 0.01),
    ],
)
def test_the_best_and_of_equal_ones_the_smallest(values, rate):
    assert tuning.best(values) == rate


@pytest.fixture
def runs(tmp_path):
    study = small_study(arms=(RLLM,), comparisons=(), lr_grid=(1e-4, 1e-3, 1e-2))
    return plan.make(study, tmp_path).of("rllm")


def test_validation_decides_where_test_disagrees(runs):
    strengths = [{"val": 1.0, "test": 9.0}, {"val": 5.0, "test": -9.0}, {"val": 0.0, "test": 9.0}]
    contents = [
        write_run(run.config, run.folder, strengths=each) for run, each in zip(runs[:3], strengths, strict=True)
    ]
    # The best on validation is the worst on test.
    assert max(contents, key=lambda content: content["val"]["auc"]) is contents[1]
    assert min(contents, key=lambda content: content["test"]["auc"]) is contents[1]
    assert tuning.chosen(runs) is runs[1]


def test_nothing_is_chosen_before_all_rates_have_run(runs):
    for run in runs[:2]:
        write_run(run.config, run.folder)
        assert tuning.chosen(runs) is None
    write_run(runs[2].config, runs[2].folder)
    assert tuning.chosen(runs) is runs[0]


def test_a_rate_that_failed_is_left_out(runs):
    for run in runs[:2]:
        write_run(run.config, run.folder)
    runs[2].failure.parent.mkdir()
    runs[2].failure.write_text("diverged")
    assert tuning.chosen(runs) is runs[0]


def test_all_rates_failed(runs):
    runs[0].failure.parent.mkdir()
    for run in runs[:3]:
        run.failure.write_text("diverged")
    with pytest.raises(UserError, match="arm rllm: no learning rate can be chosen"):
        tuning.chosen(runs)


def test_the_rate_of_other_seeds_stays(runs):
    """Another start may finish a run that failed: its rate comes too late for the seeds that are done."""
    for run, strength in zip(runs[:3], (0.0, 0.5, 5.0), strict=True):
        write_run(run.config, run.folder, strengths={"val": strength})
    assert tuning.chosen(runs) is runs[2]
    write_run(with_overrides(runs[3].config, {"optim.lr": 1e-3}), runs[3].folder)
    assert tuning.chosen(runs) is runs[1]
