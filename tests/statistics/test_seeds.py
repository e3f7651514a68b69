"""The spread over seeds."""

import statistics

import pytest

from jaxboost.statistics.seeds import Spread, spread


def test_spread_is_that_of_the_standard_library():
    values = [0.91, 0.88, 0.93, 0.9]
    found = spread(values)
    assert (found.n, found.min, found.max) == (4, 0.88, 0.93)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.sd == pytest.approx(statistics.stdev(values))


def test_one_seed_has_no_deviation():
    assert spread([0.9]) == Spread(n=1, mean=0.9, sd=None, min=0.9, max=0.9)


@pytest.mark.parametrize("values", [[], [float("nan")], [0.9, float("nan"), 0.8]])
def test_undefined_is_none(values):
    assert spread(values) == Spread(n=len(values), mean=None, sd=None, min=None, max=None)
