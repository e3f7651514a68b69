"""Rotary positions of patches, and keys without bias, in the ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.models import grid_rotary
from jaxboost.models.rngs import make_rngs
from jaxboost.models.vit import ViT
from tests.models.parity import assert_close, normal


def test_angles_by_hand():
    """Two patches a side have their centres at -1/2 and 1/2; the second of two frequencies is 1 / 10 of the first."""
    found = grid_rotary.on_grid(2, first=3, head_dim=8, base=100.0)
    np.testing.assert_array_equal(found.cos[:3], 1)
    np.testing.assert_array_equal(found.sin[:3], 0)
    y, x = [-1, -1, 1, 1], [-1, 1, -1, 1]  # rows first
    expected = [[np.pi * v * f for v in (a, b) for f in (1, 0.1)] * 2 for a, b in zip(y, x, strict=True)]
    np.testing.assert_allclose(found.cos[3:], np.cos(expected), atol=1e-6)
    np.testing.assert_allclose(found.sin[3:], np.sin(expected), atol=1e-6)


def test_rotation_by_hand():
    """Features 0 and 2 of a head, and 1 and 3, are turned together; the first token stays."""
    angles = np.array([0.3, -1.1])
    table = grid_rotary.Rotary(
        cos=np.float32([[1] * 4, np.tile(np.cos(angles), 2)]), sin=np.float32([[0] * 4, np.tile(np.sin(angles), 2)])
    )
    x = normal((1, 2, 1, 4), 0)
    found = np.asarray(grid_rotary.rotate(jnp.asarray(x), table))
    np.testing.assert_array_equal(found[0, 0], x[0, 0])
    turned = (x[0, 1, 0, :2] + 1j * x[0, 1, 0, 2:]) * np.exp(1j * angles)
    np.testing.assert_allclose(found[0, 1, 0], np.concatenate([turned.real, turned.imag]), atol=1e-6)
    # A single query is the first token.
    np.testing.assert_array_equal(grid_rotary.rotate(jnp.asarray(x[:, :1]), table), x[:, :1])
    assert grid_rotary.rotate(jnp.asarray(x, jnp.bfloat16), table).dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def vit() -> ViT:
    shape = dict(patch=4, width=16, depth=2, heads=2, mlp_width=24, layer_scale=True, registers=2)
    model = ViT(image_size=12, channels=3, rope=100.0, key_bias=False, dtype=jnp.float32, rngs=make_rngs(0), **shape)
    for seed, qkv in enumerate((model.transformer.blocks.attention.qkv, model.transformer.last.attention.qkv)):
        qkv.kernel[...] = jnp.asarray(normal(qkv.kernel.shape, seed))
        qkv.bias[...] = jnp.asarray(normal(qkv.bias.shape, 9 + seed))
    return model


def test_the_first_token_alone_is_that_of_all(vit):
    images = jnp.asarray(normal((2, 12, 12, 3), 1))
    every, one, blocks = (
        nnx.jit(call)(vit, images)
        for call in (lambda m, x: m(x), lambda m, x: m(x, queries=1), lambda m, x: m.first_tokens(x))
    )
    assert every.shape == (2, 1 + 2 + 9, 16)
    assert_close(one, every[:, :1])
    assert_close(blocks[-1], every[:, 0])
    assert vit.positions is None


def test_patches_have_positions_and_registers_have_none(vit):
    """Swapped patches change CLS: without positions they would not."""
    images = normal((1, 12, 12, 3), 1)
    swapped = np.concatenate([images[:, 4:8], images[:, :4], images[:, 8:]], axis=1)
    call = nnx.jit(lambda model, x: model(x, queries=1))
    assert np.abs(call(vit, images) - call(vit, swapped)).max() > 1e-3


def test_keys_have_no_bias(vit):
    graphdef, params = nnx.split(vit, nnx.Param)
    images = jnp.asarray(normal((2, 12, 12, 3), 2))

    @jax.jit
    def value_and_gradient(params):
        return jax.value_and_grad(lambda params: (nnx.merge(graphdef, params)(images, queries=1) ** 2).sum())(params)

    value, gradient = value_and_gradient(params)
    for block in (gradient["transformer"]["blocks"], gradient["transformer"]["last"]):
        parts = np.split(np.asarray(block["attention"]["qkv"]["bias"][...]), 3, axis=-1)
        assert [bool(part.any()) for part in parts] == [True, False, True]
    bias = params["transformer"]["last"]["attention"]["qkv"]["bias"]
    bias[...] = bias[...].at[16:32].add(7.0)
    assert value_and_gradient(params)[0] == value
