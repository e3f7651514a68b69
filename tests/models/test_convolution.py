"""Dense convolutions whose kernel's gradient is a loop, against XLA's convolution and PyTorch's."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from jaxboost.models import attention, convolution, layers
from jaxboost.models.rngs import make_rngs
from jaxboost.training.flops import count_flops
from tests.models.parity import assert_close, channels_first, normal
from tests.scripts import devices, run_script

# On a CPU with large images, and else.
FORMS = (convolution._with_loop, convolution._convolution)
PADS = ((1, 1), (1, 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(form, strides, pads, x, kernel):
    """Values of one form, and its gradients of images and kernel."""
    y, pull = jax.vjp(functools.partial(form, strides, pads), x, kernel)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize(
    ("sides", "strides", "pads", "shape"),
    [
        ((3, 3), (1, 1), PADS, (4, 5, 7, 3)),
        # An odd batch: one image in a pass. A row and a column that the stride leaves over.
        ((3, 3), (2, 2), PADS, (3, 8, 6, 2)),
        # ResNet's stem, of grey images.
        ((7, 7), (2, 2), ((3, 3), (3, 3)), (2, 11, 9, 1)),
        # TensorFlow's padding of an even side, and no padding.
        ((3, 5), (2, 1), ((0, 1), (0, 0)), (2, 8, 6, 3)),
        # Volumes, also with 2D kernels in them.
        ((3, 3, 3), (1, 2, 1), (*PADS, (1, 1)), (2, 4, 5, 3, 2)),
        ((3, 1, 3), (2, 2, 2), ((1, 1), (0, 0), (1, 1)), (1, 4, 5, 3, 3)),
    ],
)
def test_values_and_gradients(sides, strides, pads, shape):
    x, kernel = normal(shape, 1), normal((*sides, shape[-1], 5), 2)

    both = [run(form, strides, pads, x, kernel) for form in FORMS]
    given = torch.tensor(channels_first(x), requires_grad=True)
    weights = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)), requires_grad=True)
    padded = torch.nn.functional.pad(given, [zeros for pad in reversed(pads) for zeros in pad])
    convolve = torch.nn.functional.conv2d if len(sides) == 2 else torch.nn.functional.conv3d
    y = convolve(padded, weights, stride=strides)
    dy = np.cos(np.arange(y.numel(), dtype=np.float32)).reshape(both[0][0].shape)
    y.backward(torch.from_numpy(channels_first(dy)))
    for found in both:
        assert_close(found[0], np.moveaxis(y.detach().numpy(), 1, -1))
        assert_close(found[1], np.moveaxis(given.grad.numpy(), 1, -1))
        assert_close(found[2], np.moveaxis(weights.grad.numpy(), (0, 1), (-1, -2)))


def test_both_forms_agree_in_16_bits():
    x, kernel = (jnp.asarray(normal(shape, 1), jnp.bfloat16) for shape in ((2, 5, 6, 2), (3, 3, 2, 4)))
    ours, xlas = (run(form, (1, 1), PADS, x, kernel) for form in FORMS)
    for a, b in zip(ours, xlas, strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2e-2, atol=4e-2)


def test_sums_of_16_bits_are_float32():
    """Between 512 and 516 there is nothing in bfloat16: within a pass, and over passes."""
    for shape in ((2, 257, 1, 1), (514, 1, 1, 1)):
        x = jnp.ones(shape, jnp.bfloat16)
        assert convolution.kernel_gradient(x, x, (1, 1), (1, 1), ((0, 0), (0, 0)))[0, 0, 0, 0] == 514


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_several_at_once(axes):
    """Seeds have kernels of their own; those of the first layer see the same images."""
    x, kernel = normal((3, 2, 5, 4, 2), 1), normal((3, 3, 3, 2, 4), 2)
    given = [array if axis == 0 else array[0] for array, axis in zip((x, kernel), axes, strict=True)]
    ours, xlas = (jax.vmap(functools.partial(run, form, (2, 2), PADS), axes)(*given) for form in FORMS)
    for a, b in zip(ours, xlas, strict=True):
        assert_close(a, b)

    # The gradient of what is mapped, where all share a kernel or the images too.
    def loss(form, *given):
        return jnp.sin(jax.vmap(functools.partial(form, (2, 2), PADS), axes)(*given)).sum()

    ours, xlas = (jax.jit(jax.grad(functools.partial(loss, form), (0, 1)))(*given) for form in FORMS)
    for a, b in zip(ours, xlas, strict=True):
        assert_close(a, b)


def test_remat():
    x, kernel = normal((2, 5, 4, 2), 1), normal((3, 3, 2, 4), 2)

    def loss(form, x, kernel):
        return jnp.sin(form((1, 1), PADS, x, kernel)).sum()

    plain, again = (
        jax.jit(jax.grad(wrap(functools.partial(loss, form)), (0, 1)))(x, kernel)
        for wrap, form in ((lambda f: f, FORMS[1]), (jax.checkpoint, FORMS[0]))
    )
    for a, b in zip(again, plain, strict=True):
        assert_close(a, b)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("which", [0, 1, (0, 1)])
def test_a_gradient_that_is_not_asked_for_is_not_computed(which):
    """Neither in the program nor in the counted operations, which are those of XLA's form."""
    x, kernel = normal((4, 5, 4, 2), 1), normal((3, 3, 2, 4), 2)
    gradients = [jax.grad(lambda *given, form=form: jnp.sin(form((1, 1), PADS, *given)).sum(), which) for form in FORMS]
    text = jax.jit(gradients[0]).lower(x, kernel).compile().as_text()
    assert ("while(" in text) == (which != 0)
    assert text.count(" convolution(") == (1 if which == 1 else 2)
    ours, xlas = (count_flops(gradient, x, kernel) for gradient in gradients)
    assert ours == xlas


def test_a_convolution_without_use_has_no_gradients():
    """Not reached by `jax.grad` of jax 0.10.2, which drops such a convolution before."""
    zero = SymbolicZero(jax.core.ShapedArray((4, 5, 4, 4), jnp.float32))
    kept = (jax.vjp(jnp.sin, 1.0)[1], (np.zeros((4, 5, 4, 2)), np.zeros((3, 3, 2, 4))))
    assert convolution._backward((1, 1), PADS, kept, zero) == (None, None)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("shape", "size", "stride", "loops"),
    [
        ((1, 28, 28, 2), 3, 2, True),
        ((1, 14, 56, 2), 3, 1, True),
        ((1, 27, 28, 2), 3, 1, False),
        ((1, 28, 28, 2), 2, 2, False),
        ((1, 28, 28, 2), 1, 1, False),
        ((1, 28, 28, 28, 2), 3, 1, False),
    ],
)
def test_which_form_is_taken(shape, size, stride, loops):
    axes = len(shape) - 2
    kernel = jnp.ones((*[size] * axes, 2, 3))

    def text():
        gradient = jax.grad(
            lambda x, kernel: convolution.convolve(x, kernel, strides=(stride,) * axes, pads=((1, 1),) * axes).sum(), 1
        )
        return str(jax.make_jaxpr(gradient)(jnp.ones(shape), kernel))

    assert ("kernel_gradient" in text()) == loops
    with attention.portable():
        assert "kernel_gradient" not in text()


@pytest.mark.usefixtures("on_cpu")
def test_convolutions_in_groups_are_xlas():
    def gradient(groups):
        conv = layers.Convolution(
            4,
            6,
            size=3,
            padding="SAME",
            groups=groups,
            init=(nnx.initializers.normal(), None),
            dtype=jnp.float32,
            rngs=make_rngs(0),
        )
        graphdef, state = nnx.split(conv)
        return str(jax.make_jaxpr(jax.grad(lambda s: nnx.merge(graphdef, s)(jnp.ones((1, 28, 28, 4))).sum()))(state))

    assert "kernel_gradient" in gradient(1)
    assert "kernel_gradient" not in gradient(2)


ON_TWO = """
import functools, json, re
import jax, jax.numpy as jnp
from jaxboost.models import convolution

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
by_batch, whole = (jax.NamedSharding(mesh, jax.P(*names)) for names in (("data",), ()))
x = jnp.sin(jnp.arange(8 * 6 * 5 * 2.0)).reshape(8, 6, 5, 2)
dy = jnp.cos(jnp.arange(8 * 6 * 5 * 3.0)).reshape(8, 6, 5, 3)
gradient = lambda x, dy: convolution.kernel_gradient(x, dy, (3, 3), (1, 1), ((1, 1), (1, 1)))
compiled = jax.jit(gradient, in_shardings=by_batch, out_shardings=whole).lower(x, dy).compile()
found = compiled(*(jax.device_put(array, by_batch) for array in (x, dy)))
moved = re.findall(r"= \\S+ (all-\\w+|collective-\\w+)\\(", compiled.as_text())
odd = jax.jit(gradient)(x[:7], dy[:7])
print(json.dumps([moved, found.tolist(), odd.tolist()]))
"""


def test_two_devices_keep_their_images():
    """One sum over the devices, behind the loop; the gradient is that of one device."""
    process = run_script("-c", ON_TWO, env=devices(2))
    assert process.returncode == 0, process.stderr
    moved, found, odd = json.loads(process.stdout)
    assert moved == ["all-reduce"]
    x = jnp.sin(jnp.arange(8 * 6 * 5 * 2.0)).reshape(8, 6, 5, 2)
    dy = jnp.cos(jnp.arange(8 * 6 * 5 * 3.0)).reshape(8, 6, 5, 3)
    for count, gradient in ((8, found), (7, odd)):
        convolve = functools.partial(FORMS[1], (1, 1), PADS, x[:count])
        (reference,) = jax.linear_transpose(convolve, jnp.zeros((3, 3, 2, 3)))(dy[:count])
        assert_close(np.asarray(gradient, np.float32), reference)
