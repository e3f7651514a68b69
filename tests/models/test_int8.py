"""LLaMA layers with int8 matrices: the rounding error, and that nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.convert import placing
from jaxboost.models import frozen
from jaxboost.models.frozen import Quantized
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.rngs import make_rngs
from tests.models.parity import abstract, assert_close, assert_states_close, cotangent, normal, randomise
from tests.models.pneumollm_cases import CASES, LLAMA, build, make
from tests.reference.pneumollm import state_of

DEPTH = 2
MATRICES = {"q", "k", "v", "o", "gate", "up", "down"}
ARGUMENTS = dict(rope=True, causal=False, mask=None)


def quantized(tree):
    """All stacked matrices as int8, as a run stores them."""
    return jax.tree.map(lambda leaf: placing.int8(leaf) if leaf.ndim == 3 else leaf, tree)


def dequantized(tree):
    """The float32 weights that int8 ones stand for."""
    return jax.tree.map(frozen.dequantize, tree, is_leaf=lambda node: isinstance(node, Quantized))


def make_stack(*, remat: bool = False, config: LlamaConfig = LLAMA, depth: int = DEPTH):
    """apply(weights, x), and the shapes of the weights."""
    apply, _, shapes = abstract(
        lambda: frozen.freeze(LlamaBlock(config, depth=depth, dtype=jnp.float32, remat=remat, rngs=make_rngs(0)))
    )
    return (lambda weights, x: apply({}, weights, x, **ARGUMENTS)), shapes


def test_rounding_errors_are_at_most_half_a_step():
    weights = jnp.asarray(normal((DEPTH, 24, 40), 0)) * jnp.geomspace(1e-3, 1e3, 40)
    held = placing.int8(weights)
    value, scale = held.parts.qvalue, held.parts.scale
    assert (value.dtype, scale.dtype) == (jnp.int8, jnp.float32)
    assert (value.shape, scale.shape) == ((DEPTH, 24, 40), (DEPTH, 1, 40))
    # A step of its own for every layer and output: the largest weight is in the last bucket.
    np.testing.assert_allclose(scale, np.abs(weights).max(axis=1, keepdims=True) / 127.5, rtol=1e-6)
    steps = np.abs(np.asarray(frozen.dequantize(held) - weights)) / np.asarray(scale)
    assert 0.45 < steps.max() < 0.5 + 1e-4


def test_narrow_weights_get_a_wide_scale():
    weights = jnp.asarray(normal((1, 8, 4), 0), jnp.bfloat16)
    held = placing.int8(weights)
    assert frozen.dequantize(held).dtype == held.parts.scale.dtype == jnp.float32
    np.testing.assert_array_equal(held.parts.qvalue, placing.int8(weights.astype(jnp.float32)).parts.qvalue)


def test_the_stacks_error_follows_from_the_steps():
    """The deviation of outputs is what evenly distributed rounding errors within +-scale / 2 cause.

    To first order an output's variance is sum g^2 scale^2 / 12, g being its gradient in the float32 stack.
    """
    apply, shapes = make_stack()
    weights, x = randomise(shapes, seed=1), jnp.asarray(normal((2, 5, LLAMA.width), 2))
    held = quantized(weights)
    steps = jax.tree.map(
        lambda node: node.parts.scale if isinstance(node, Quantized) else jnp.zeros(()),
        held,
        is_leaf=lambda node: isinstance(node, Quantized),
    )

    @jax.jit
    def deviations(directions):
        output, vjp = jax.vjp(lambda w: apply(w, x), weights)
        change = apply(held, x) - output

        def in_sigmas(direction):
            variances = jax.tree.map(lambda g, step: jnp.sum((g * step) ** 2) / 12, vjp(direction)[0], steps)
            return jnp.sum(direction * change) / jnp.sqrt(sum(jax.tree.leaves(variances)))

        return jax.lax.map(in_sigmas, directions)

    found = np.asarray(deviations(jnp.asarray(normal((64, 2, 5, LLAMA.width), 3))))
    assert np.abs(found).max() < 4
    assert 0.6 < np.sqrt(np.mean(found**2)) < 1.4


@pytest.mark.parametrize("remat", [False, True])
def test_the_stack_computes_with_the_dequantized_weights(remat):
    apply, shapes = make_stack(remat=remat)
    held, x = quantized(randomise(shapes, seed=1)), jnp.asarray(normal((2, 5, LLAMA.width), 2))

    @jax.jit
    def pulled_back(weights):
        output, vjp = jax.vjp(lambda x: apply(weights, x), x)
        return output, vjp(jnp.asarray(cotangent(x.shape)))[0]

    for ours, expected in zip(pulled_back(held), pulled_back(dequantized(held)), strict=True):
        assert_close(ours, expected)


def test_the_compute_dtype_is_kept():
    _, shapes = make_stack()
    graphdef = frozen.split(
        nnx.eval_shape(
            lambda: frozen.freeze(LlamaBlock(LLAMA, depth=DEPTH, dtype=jnp.bfloat16, remat=False, rngs=make_rngs(0)))
        )
    )[0]
    held = quantized(randomise(shapes, seed=1))
    block = frozen.merge(graphdef, {}, held)
    x = jnp.zeros((1, 3, LLAMA.width), jnp.bfloat16)
    assert jax.eval_shape(lambda x: block.below_last(x, **ARGUMENTS), x).dtype == jnp.bfloat16


@pytest.mark.parametrize("remat", [False, True])
def test_one_layer_is_dequantized_at_a_time(remat):
    """A stack of wide layers, forward and backward: memory has no room for it twice."""
    config, depth = dataclasses.replace(LLAMA, width=256, head_dim=64, mlp_width=768), 16
    apply, shapes = make_stack(remat=remat, config=config, depth=depth)
    x = jax.ShapeDtypeStruct((1, 4, config.width), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x, weights: apply(weights, x).sum()))

    def analysed(weights):
        return gradient.lower(x, weights).compile().memory_analysis()

    plain, int8 = analysed(shapes), analysed(jax.eval_shape(quantized, shapes))
    whole = 4 * frozen.count(shapes)
    assert int8.argument_size_in_bytes < 0.27 * whole < 0.27 * plain.argument_size_in_bytes
    assert int8.temp_size_in_bytes - plain.temp_size_in_bytes < 2 * whole / depth


def test_matrices_alone_are_quantized_and_counts_stay():
    _, _, weights, _ = make(*CASES["full"])
    held = quantized(weights["llama"])
    assert {name for name, leaf in held["layers"].items() if isinstance(leaf, Quantized)} == MATRICES
    assert frozen.count(held) == frozen.count(weights["llama"])
    assert frozen.mib(held) < 0.5 * frozen.mib(weights["llama"])


def pneumo(case: str):
    """apply, trained weights, frozen weights with an int8 stack, images."""
    apply, params, weights, images = make(*CASES[case])
    return apply, params, weights | {"llama": quantized(weights["llama"])}, images


@pytest.mark.parametrize("case", ["full", "no_emitter_remat"])
def test_every_gradient_is_that_of_the_dequantized_weights(case):
    apply, params, weights, images = pneumo(case)

    @jax.jit
    def gradients(weights):
        return jax.grad(lambda params: jnp.sum(apply(params, weights, images) * cotangent((3, 2))))(params)

    ours, expected = state_of(gradients(weights)), state_of(gradients(dequantized(weights)))
    # One number decides for all rows of a softmax' scores what its bias adds to each: it has no gradient but rounding.
    scale = float(expected["engine.scores.weight"].abs().max())
    assert_states_close(ours, expected, scales={"engine.scores.bias": scale})
    assert all(ours[name].abs().max() > 0 for name in ours if name.startswith("llama_adapters"))
    assert any(name.startswith("llama_adapters") for name in ours)


def test_adapters_merge_into_the_dequantized_weights():
    apply, params, weights, images = pneumo("full")
    spec, arguments = CASES["full"]
    graphdef = frozen.split(nnx.eval_shape(lambda: build(spec, arguments, make_rngs(0))))[0]
    precompute = jax.jit(lambda weights: frozen.merge(graphdef, params, weights).precompute())
    precomputed = precompute(weights)
    for name, expected in precompute(dequantized(weights)).llama.items():
        assert_close(precomputed.llama[name].kernel, expected.kernel, name=name)
    assert_close(apply(params, weights, images, precomputed), apply(params, weights, images))
