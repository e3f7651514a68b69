"""Depthwise convolutions as sums of products, against XLA's convolution and PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxboost.models import attention, depthwise
from tests.models.parity import assert_close, channels_first, normal


@pytest.mark.parametrize(
    ("size", "stride", "pads", "shape"),
    [
        # Four rows a pass of the kernel's gradient, and one: 37 columns are too many for two.
        (7, 1, ((3, 3), (3, 3)), (2, 12, 14, 5)),
        (3, 1, ((1, 1), (1, 1)), (2, 5, 37, 3)),
        # TensorFlow's padding of an even side.
        (5, 2, ((1, 2), (1, 2)), (2, 10, 8, 3)),
        # A row and a column that the stride leaves over.
        (3, 2, ((1, 1), (1, 1)), (1, 8, 6, 4)),
    ],
)
def test_values_and_gradients(size, stride, pads, shape):
    x, kernel = normal(shape, 1), normal((size, size, 1, shape[-1]), 2)

    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: depthwise._products(stride, pads, x, kernel), x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    found = run(x, kernel)
    given = torch.tensor(channels_first(x), requires_grad=True)
    weights = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    (top, bottom), (left, right) = pads
    padded = torch.nn.functional.pad(given, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, weights, stride=stride, groups=shape[-1])
    dy = np.cos(np.arange(found[0].size, dtype=np.float32)).reshape(found[0].shape)
    y.backward(torch.from_numpy(channels_first(dy)))
    assert_close(found[0], np.moveaxis(y.detach().numpy(), 1, -1))
    assert_close(found[1], np.moveaxis(given.grad.numpy(), 1, -1))
    assert_close(found[2], weights.grad.numpy().transpose(2, 3, 1, 0))


def test_which_form_is_taken():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))

    def text():
        return str(jax.make_jaxpr(lambda x: depthwise.convolve(x, kernel, stride=1, pads=((1, 1), (1, 1))))(x))

    assert "conv_general_dilated" not in text()
    with attention.portable():
        both = text()
    assert "conv_general_dilated" in both
    assert "depthwise_products" in both


def test_sums_of_16_bits_are_float32():
    kernel = jnp.ones((7, 7, 1, 1), jnp.bfloat16)
    wide = jnp.concatenate([jnp.ones((1, 7, 6, 1), jnp.bfloat16), jnp.full((1, 7, 1, 1), 256, jnp.bfloat16)], 2)
    found = jax.jit(lambda x: depthwise.convolve(x, kernel, stride=1, pads=((0, 0), (0, 0))))(wide)
    assert found.dtype == wide.dtype
    assert float(found[0, 0, 0, 0]) == float(jnp.bfloat16(7 * 256 + 42))
