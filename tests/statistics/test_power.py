"""What a test set could show, against the formula of the sample size, simulation, and published sizes."""

import numpy as np
import pytest
from scipy import stats

from jaxboost.statistics import paired, power

Z_A, Z_B = stats.norm.ppf([0.975, 0.8])


@pytest.mark.parametrize(("n", "discordance"), [(156, 0.1), (400, 0.05), (310, 0.3), (10_000, 0.02)])
def test_the_difference_solves_connors_formula(n, discordance):
    d = power.smallest_acc_difference(n, discordance)
    size = (Z_A * np.sqrt(discordance) + Z_B * np.sqrt(discordance - d**2)) ** 2 / d**2
    assert 0 < d < discordance
    assert size == pytest.approx(n)


def test_a_known_sample_size():
    """A difference of .05 at a discordance of .20 takes 625 items (rounded up) by this formula."""
    assert power.smallest_acc_difference(625, 0.2) == pytest.approx(0.05, abs=2e-4)


def test_mcnemar_finds_the_difference_about_as_often_as_asked():
    n, discordance = 400, 0.2
    d = power.smallest_acc_difference(n, discordance)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [(discordance + d) / 2, (discordance - d) / 2, 1 - discordance], 1500)[:, :2]
    rows = {(x1, x2): (np.arange(n) < x1, (np.arange(n) >= x1) & (np.arange(n) < x1 + x2)) for x1, x2 in counts}
    p = {key: paired.mcnemar(*pair).p for key, pair in rows.items()}
    found = np.mean([p[tuple(row)] < 0.05 for row in counts])
    # The exact test keeps its level by being careful, which costs some power.
    assert 0.72 < found < 0.83


def test_more_items_show_smaller_differences():
    found = [power.smallest_acc_difference(n, 0.2) for n in (100, 200, 400, 800)]
    assert found == sorted(found, reverse=True)
    assert power.smallest_acc_difference(200, 0.2, power=0.9) > found[1]


@pytest.mark.parametrize(("n", "discordance"), [(1, 0.5), (3, 1.0), (50, 0.02), (100, 0.0)])
def test_few_items_show_nothing(n, discordance):
    assert np.isnan(power.smallest_acc_difference(n, discordance))


def test_impossible_values_are_refused():
    for n, discordance in ((0, 0.1), (10, 1.1), (10, -0.1), (10, np.nan)):
        with pytest.raises(ValueError, match="expected 1 or more items"):
            power.smallest_acc_difference(n, discordance)


def test_auc_difference_is_found_as_often_as_asked():
    d = power.smallest_auc_difference(0.01)
    assert d == pytest.approx(0.0280158, abs=1e-6)
    # The chance that a normal estimate of d is beyond 1.96 standard errors.
    assert stats.norm.sf(1.959964, loc=d / 0.01) == pytest.approx(0.8, abs=1e-4)
    assert np.isnan(power.smallest_auc_difference(np.nan))
