"""The sanity check: which weights are drawn anew, and what the correlation says."""

import jax
import numpy as np
import pytest

from jaxboost.explain import gradcam, sanity
from jaxboost.explain.tapped import Tapped
from tests.explain import untrained


def test_rank_correlation():
    rising = np.arange(9.0).reshape(3, 3)
    assert sanity.rank_correlation(rising, np.exp(rising)) == pytest.approx(1)
    assert sanity.rank_correlation(rising, -rising) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) for ranks without ties.
    other = np.array([1.0, 0, 2, 3, 5, 4, 6, 8, 7]).reshape(3, 3)
    np.testing.assert_allclose(sanity.rank_correlation(rising, other), 1 - 6 * 6 / (9 * 80))
    assert sanity.rank_correlation(rising, np.zeros((3, 3))) is None


def test_trained_weights_are_drawn_anew_and_frozen_ones_stay():
    run = untrained.rllm("small_vit", "rllm", model__frozen=True, model__weights="random")
    params, frozen, stats = sanity.redrawn(run)
    assert frozen is run.weights[1]
    assert stats is run.weights[2]
    assert jax.tree.structure(params) == jax.tree.structure(run.weights[0])
    for name in ("encode", "decode"):
        assert not np.allclose(params["boost"][name]["kernel"], run.weights[0]["boost"][name]["kernel"])
    assert "encoder" not in params
    again, other = sanity.redrawn(run)[0], sanity.redrawn(run, seed=1)[0]
    np.testing.assert_array_equal(params["head"]["kernel"], again["head"]["kernel"])
    assert not np.array_equal(params["head"]["kernel"], other["head"]["kernel"])


def test_correlation_is_one_for_the_same_weights_and_low_for_random_ones():
    run = untrained.rllm("small_vit", "rllm")
    tapped, images = Tapped(run), untrained.images(run, 32)
    targets = np.arange(32) % 3
    own = gradcam.maps(tapped, images, targets)
    same = gradcam.maps(tapped, images, targets, place=own.place, weights=run.weights)
    redrawn = gradcam.maps(tapped, images, targets, place=own.place, weights=sanity.redrawn(run))
    equal = [sanity.rank_correlation(*pair) for pair in zip(own.grid, same.grid, strict=True)]
    # None: a map of zeros.
    assert [value for value in equal if value is not None] == pytest.approx([1] * sum(own.grid.any((1, 2))))
    found = [sanity.rank_correlation(*pair) for pair in zip(own.grid, redrawn.grid, strict=True)]
    values = [value for value in found if value is not None]
    assert len(values) >= 16
    assert abs(np.mean(values)) < 0.4
