"""Stochastic depth in the encoders: what is left out, how often, and that evaluation leaves out nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxboost.models import classifier
from jaxboost.models.rngs import make_rngs
from jaxboost.models.transformer import StochasticDepth, drop_path
from tests.models.parity import randomised


def _model(backbone: str, rate: float):
    def build():
        return classifier.build(
            backbone,
            boost=classifier.BoostSpec(kind="none"),
            classes=2,
            image_size=28,
            mean=(0.0,),
            std=(1.0,),
            dtype=jnp.float32,
            drop_path=rate,
            rngs=make_rngs(0),
        )

    return randomised(build, 0)


@nnx.jit
def _logits(model, images, key=None):
    return model(images, key=key)


def test_branches_are_left_out_whole_and_scaled():
    x = jnp.ones((4000, 3, 2))
    kept = np.asarray(drop_path(x, StochasticDepth(rate=jnp.float32(0.2), key=jax.random.key(0))))
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.8)}
    assert (np.ptp(kept, axis=(1, 2)) == 0).all()
    assert stats.binomtest(int((kept[:, 0, 0] == 0).sum()), 4000, 0.2).pvalue > 0.01


def test_both_branches_are_drawn_apart():
    drop = StochasticDepth(rate=jnp.float32(0.5), key=jax.random.key(0))
    first, second = (np.asarray(drop_path(jnp.ones((64, 1)), part)) for part in drop.split())
    assert (first != second).any()


@pytest.mark.parametrize(("backbone", "ndim"), [("vit_tiny", 2), ("vit3d_tiny", 3), ("vivit_tiny", 3)])
def test_training_draws_and_evaluation_does_not(backbone, ndim):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, *[28] * ndim, 1), np.uint8))
    plain, dropping = _model(backbone, 0.0), _model(backbone, 0.9)
    key = jax.random.key(1)
    np.testing.assert_array_equal(_logits(plain, images), _logits(dropping, images))
    np.testing.assert_array_equal(_logits(plain, images), _logits(plain, images, key=key))
    drawn = _logits(dropping, images, key=key)
    np.testing.assert_array_equal(drawn, _logits(dropping, images, key=key))
    assert not np.allclose(drawn, _logits(dropping, images, key=jax.random.key(2)))
    assert not np.allclose(drawn, _logits(plain, images))


def test_the_rate_grows_from_nothing_in_the_first_block():
    """Two blocks, the second nearly always left out: its input, the first block's output, is what comes out."""
    model = _model("vit_tiny", 1 - 1e-6).encoder
    images = jnp.asarray(np.random.default_rng(0).random((2, 28, 28, 3)), jnp.float32)
    below, output = nnx.jit(lambda model, x, key: (model.first_tokens(x)[0], model(x, queries=1, key=key)[:, 0]))(
        model, images, jax.random.key(0)
    )
    np.testing.assert_allclose(output, below, rtol=1e-5, atol=1e-5)
