"""Taps: they read and differentiate inner values, and change nothing where nobody reads."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost.models import taps
from jaxboost.models.rngs import make_rngs
from tests.models import small


def test_nothing_happens_outside():
    x = jnp.ones(3)
    assert taps.tap("tokens", x) is x
    assert not taps.is_open()
    with taps.opened() as values:
        assert taps.is_open()
        with taps.closed():
            assert taps.tap("tokens", x) is x
        taps.tap("tokens", x)
        taps.tap("tokens", 2 * x)
        taps.tap("tokens_of_others", 3 * x)
    assert {name: float(value[0]) for name, value in values.items()} == {
        "tokens": 1,
        "tokens/1": 2,
        "tokens_of_others": 3,
    }


def test_gradient_with_respect_to_a_value():
    def result(difference, x):
        with taps.opened({"y": difference}) as values:
            return jnp.sum(taps.tap("y", 3 * x) ** 2), values["y"]

    x = jnp.asarray([1.0, 2.0])
    gradient, value = jax.jit(jax.grad(result, has_aux=True))(jnp.zeros(2), x)
    np.testing.assert_allclose(value, [3, 6])
    np.testing.assert_allclose(gradient, [6, 12])


def test_an_encoder_gives_the_same_tokens_with_and_without_readers():
    encoder = small.SMALL["small_vivit"].build(
        image_size=small.IMAGE_SIZE, dtype=jnp.float32, remat=True, rngs=make_rngs(0)
    )
    volumes = jax.random.normal(jax.random.key(0), (2, 12, 12, 12, 3))

    @jax.jit
    def read(volumes):
        with taps.opened() as values:
            return encoder(volumes, queries=1), values

    tokens, values = read(volumes)
    np.testing.assert_allclose(tokens, jax.jit(lambda x: encoder(x, queries=1))(volumes), rtol=1e-5, atol=1e-6)
    # The last block of the spatial encoder, for each frame, then that of the temporal encoder; not those below.
    assert {name: value.shape for name, value in values.items()} == {
        "encoder_last": (6, 10, 20),
        "encoder_attention": (6, 2, 1, 10),
        "encoder_last/1": (2, 4, 20),
        "encoder_attention/1": (2, 2, 1, 4),
    }
