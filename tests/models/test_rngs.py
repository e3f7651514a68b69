"""The keys of first weights are those of Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxboost.models.layers import linear, stack, torch_init
from jaxboost.models.rngs import make_rngs


def _model(rngs: nnx.Rngs) -> nnx.Module:
    """Weights of its own, of layers that are drawn as one, and again of its own."""
    model, layer = nnx.Module(), functools.partial(linear, init=torch_init, dtype=jnp.float32)
    model.first = layer(3, 4, rngs=rngs)
    model.layers = stack(lambda rngs: layer(4, 4, rngs=rngs), 3, rngs)
    model.last = layer(4, 2, rngs=rngs)
    return model


def test_keys_are_those_of_flax():
    for seed in (0, 5):
        ours, theirs = make_rngs(seed), nnx.Rngs(seed)
        for _ in range(3):
            assert (jax.random.key_data(ours.params()) == jax.random.key_data(theirs.params())).all()
        assert (jax.random.key_data(ours()) == jax.random.key_data(theirs())).all()


def test_weights_are_those_of_flax():
    """Also under jit, where a key follows from an argument."""

    def draw(key):
        return [nnx.state(_model(make(key)), nnx.Param) for make in (make_rngs, nnx.Rngs)]

    for ours, theirs in (draw(jax.random.key(3)), jax.jit(draw)(jax.random.key(3))):
        ours, theirs = (dict(nnx.to_flat_state(state)) for state in (ours, theirs))
        assert len(ours) == 6
        assert ours.keys() == theirs.keys()
        for path, variable in ours.items():
            np.testing.assert_array_equal(variable[...], theirs[path][...], err_msg=str(path))
