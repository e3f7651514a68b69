"""FLOPs against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from jaxboost.models import depthwise
from jaxboost.training.flops import count_flops


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_batched_product():
    assert count_flops(lambda a, b: a @ b, _shape(5, 3, 4), _shape(5, 4, 7)) == 2 * 5 * 3 * 4 * 7


def test_product_in_jit_and_remat_counts_once():
    assert count_flops(jax.jit(jax.checkpoint(lambda a: a @ a)), _shape(3, 3)) == 2 * 27


def test_scan_counts_as_often_as_it_runs():
    def chain(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert count_flops(chain, _shape(2, 3), _shape(6, 3, 3)) == 6 * 2 * 2 * 3 * 3


@pytest.mark.parametrize(("groups", "kernel"), [(1, (3, 3, 8, 16)), (2, (3, 3, 4, 16))])
def test_convolution(groups, kernel):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    assert count_flops(convolve, _shape(1, 10, 10, 8), _shape(*kernel)) == 2 * 100 * 9 * 8 * 16 // groups


def test_depthwise_convolution_counts_as_one():
    """On a CPU it is a sum of products (`models.depthwise`); forward, and both gradients."""
    x, kernel = _shape(2, 10, 10, 8), _shape(3, 3, 1, 8)

    def loss(x, kernel):
        return depthwise.convolve(x, kernel, stride=2, pads=((1, 1), (1, 1))).sum()

    once = 2 * 2 * 5 * 5 * 8 * 9
    assert jax.default_backend() == "cpu"
    assert count_flops(loss, x, kernel) == once
    # The gradient of the images has an output for each pixel.
    assert count_flops(jax.grad(loss, argnums=(0, 1)), x, kernel) == once + 4 * once + once
    # A frozen kernel, and a first layer.
    assert count_flops(jax.grad(loss, argnums=0), x, kernel) == once + 4 * once
    assert count_flops(jax.grad(loss, argnums=1), x, kernel) == once + once


def test_cond_counts_its_dearest_branch():
    def branch(flag, a):
        return jax.lax.cond(flag, lambda a: a @ a, lambda a: a, a)

    assert count_flops(branch, jax.ShapeDtypeStruct((), jnp.bool_), _shape(4, 4)) == 2 * 64


def test_fused_attention(monkeypatch):
    """cuDNN's primitives, which XLA computes elsewhere, count as the products of plain attention."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(checks, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda _: False)
    q, k = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 6, 4, 8), (2, 10, 2, 8)))

    def cost(implementation, *, gradient):
        def mixed(*arrays):
            return jax.nn.dot_product_attention(*arrays, implementation=implementation).astype(jnp.float32).sum()

        return count_flops(jax.grad(mixed, argnums=(0, 1, 2)) if gradient else mixed, q, k, k)

    product = 2 * 2 * 6 * 10 * 4 * 8
    assert cost("cudnn", gradient=False) == cost("xla", gradient=False) == 2 * product
    assert cost("cudnn", gradient=True) == cost("xla", gradient=True) == 6 * product
