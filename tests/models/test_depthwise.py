"""Depthwise convolutions as sums of products, against XLA's convolution and PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.custom_derivatives import SymbolicZero

from jaxboost.models import attention, depthwise
from tests.models.parity import assert_close, channels_first, normal

# On a CPU, and on accelerators.
FORMS = (depthwise._products, depthwise._convolution)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(form, stride, pads, x, kernel):
    """Values of one form, and its gradients of images and kernel."""
    y, pull = jax.vjp(functools.partial(form, stride, pads), x, kernel)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize(
    ("size", "stride", "pads", "shape"),
    [
        # One row a pass of the kernel's gradient: 37 columns are too many for two.
        (3, 1, ((1, 1), (1, 1)), (2, 5, 37, 3)),
        # More columns than a pass may have: two parts of 34, the last column of which is zeros.
        (3, 2, ((1, 1), (1, 1)), (1, 3, 134, 1)),
        # Five rows a pass. TensorFlow's padding of an even side.
        (5, 2, ((1, 2), (1, 2)), (2, 10, 8, 3)),
        # A row and a column that the stride leaves over.
        (3, 2, ((1, 1), (1, 1)), (1, 8, 6, 4)),
    ],
)
def test_values_and_gradients(size, stride, pads, shape):
    x, kernel = normal(shape, 1), normal((size, size, 1, shape[-1]), 2)

    both = [run(form, stride, pads, x, kernel) for form in FORMS]
    given = torch.tensor(channels_first(x), requires_grad=True)
    weights = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    (top, bottom), (left, right) = pads
    padded = torch.nn.functional.pad(given, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, weights, stride=stride, groups=shape[-1])
    dy = np.cos(np.arange(y.numel(), dtype=np.float32)).reshape(both[0][0].shape)
    y.backward(torch.from_numpy(channels_first(dy)))
    for found in both:
        assert_close(found[0], np.moveaxis(y.detach().numpy(), 1, -1))
        assert_close(found[1], np.moveaxis(given.grad.numpy(), 1, -1))
        assert_close(found[2], weights.grad.numpy().transpose(2, 3, 1, 0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_gradient_alone_is_that_of_both(dtype):
    """Of images before a frozen kernel, and of the first layer's kernel."""
    given = [jnp.asarray(normal(shape, 1), dtype) for shape in ((2, 8, 6, 3), (3, 3, 1, 3))]

    def loss(x, kernel):
        return jnp.sin(depthwise._products(2, ((1, 1), (1, 1)), x, kernel).astype(jnp.float32)).sum()

    both = jax.grad(loss, argnums=(0, 1))(*given)
    for place, gradient in enumerate(both):
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(jax.grad(loss, argnums=place)(*given), gradient)
        np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss), argnums=place)(*given), gradient)


def test_what_is_kept_for_the_backward_pass():
    """The kernel for the gradient of the images, the images for that of the kernel."""
    x, kernel = jnp.asarray(normal((2, 8, 6, 3), 1)), jnp.asarray(normal((3, 3, 1, 3), 2))
    run = functools.partial(depthwise._products, 1, ((1, 1), (1, 1)))
    pulls = jax.vjp(lambda x: run(x, kernel), x)[1], jax.vjp(lambda kernel: run(x, kernel), kernel)[1]
    for pull, kept in zip(pulls, (kernel, x), strict=True):
        assert {leaf.shape for leaf in jax.tree.leaves(pull) if leaf.size} == {kept.shape}


def test_a_convolution_without_use_has_no_gradients():
    """Not reached by `jax.grad` of jax 0.10.2, which drops such a convolution before."""
    zero = SymbolicZero(jax.core.ShapedArray((1, 4, 4, 2), jnp.float32))
    x, kernel = np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 3, 1, 2), np.float32)
    assert depthwise._backward(1, ((1, 1), (1, 1)), (x[:0], kernel[:0], x, kernel), zero) == (None, None)


def test_both_forms_agree_in_16_bits():
    x, kernel = (jnp.asarray(normal(shape, 1), jnp.bfloat16) for shape in ((1, 5, 6, 2), (3, 3, 1, 2)))
    ours, xlas = (run(form, 1, ((1, 1), (1, 1)), x, kernel) for form in FORMS)
    for a, b in zip(ours, xlas, strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2e-2, atol=4e-2)


@pytest.mark.usefixtures("on_cpu")
def test_which_form_is_taken():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))

    def text():
        return str(jax.make_jaxpr(lambda x: depthwise.convolve(x, kernel, stride=1, pads=((1, 1), (1, 1))))(x))

    assert "conv_general_dilated" not in text()
    with attention.portable():
        both = text()
    assert "conv_general_dilated" in both
    assert "depthwise_products" in both


@pytest.mark.usefixtures("on_cpu")
def test_sums_of_16_bits_are_float32():
    kernel = jnp.ones((7, 7, 1, 1), jnp.bfloat16)
    wide = jnp.concatenate([jnp.ones((1, 7, 6, 1), jnp.bfloat16), jnp.full((1, 7, 1, 1), 256, jnp.bfloat16)], 2)
    found = jax.jit(lambda x: depthwise.convolve(x, kernel, stride=1, pads=((0, 0), (0, 0))))(wide)
    assert found.dtype == wide.dtype
    assert float(found[0, 0, 0, 0]) == float(jnp.bfloat16(7 * 256 + 42))
