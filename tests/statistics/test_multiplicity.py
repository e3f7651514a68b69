"""Holm's p values by hand and against statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from jaxboost.statistics.multiplicity import holm


def test_holm_by_hand():
    # Sorted: .01 x 4, .02 x 3, .03 x 2, .04 x 1, each at least as large as the one before.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])


def test_undefined_tests_are_not_of_the_family():
    p = np.array([0.03, np.nan, 0.01, 0.5, np.nan])
    found = holm(p)
    np.testing.assert_allclose(found[[0, 2, 3]], multipletests(p[[0, 2, 3]], method="holm")[1])
    assert np.isnan(found[[1, 4]]).all()


def test_equal_and_large_p_values_are_those_of_statsmodels():
    p = (np.random.default_rng(0).random(60) ** 8).round(3)
    assert len(np.unique(p)) < 50
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-15)


@pytest.mark.parametrize("p", [[], [np.nan], [np.nan, np.nan]])
def test_no_tests(p):
    assert holm(p).shape == (len(p),)
    assert np.isnan(holm(p)).all()


def test_one_test_is_not_adjusted():
    np.testing.assert_allclose(holm([0.2]), [0.2])


@pytest.mark.parametrize("p", [-0.1, 1.1, np.inf])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, p])
