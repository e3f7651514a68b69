"""LLaMA layers against transformers, and against the restatement where rotary embedding and mask are off."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxboost.models.llama import LlamaBlock, LlamaConfig, LlamaLayer, attention_mask
from jaxboost.models.rngs import make_rngs
from tests.models.huggingface import HuggingFaceBlock, huggingface_config
from tests.models.parity import (
    FAINT,
    abstract,
    assert_close,
    assert_states_close,
    faint,
    normal,
    pull_back,
    randomise,
    relative_change,
    torch_pull_back,
    uniform_attention,
)
from tests.reference import rllm, weights

# Heads twice as wide together as the residual stream, three of them on each key/value head.
CONFIG = LlamaConfig(width=24, heads=6, kv_heads=2, head_dim=8, mlp_width=40, eps=1e-5, rope_base=10000.0)
BATCH, TOKENS, DEPTH = 3, 12, 2
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]
# The original context of 64 puts K/2 = 4 wavelengths of 6, 63, 628 and 6283 tokens on all three branches of the rule.
ROPE_SCALING = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def tokens() -> np.ndarray:
    return normal((BATCH, TOKENS, CONFIG.width), 1)


def padding(side: str) -> np.ndarray:
    """(B, N), True where a token is real: rows of 12, 7 and 1 real tokens, padded on one side."""
    real = np.arange(TOKENS)[None] < np.array([TOKENS, 7, 1])[:, None]
    return real if side == "right" else real[:, ::-1].copy()


@functools.cache
def make_layer(config: LlamaConfig = CONFIG) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """call(params, x, rope=, causal=, mask=), compiled, and random weights."""
    apply, params, _ = abstract(lambda: LlamaLayer(config, dtype=jnp.float32, rngs=make_rngs(0)))
    return compiled(apply), randomise(params, seed=0)


@functools.cache
def make_block(depth: int, dtype: Any = jnp.float32) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """As `make_layer`, of several layers and the final norm."""
    apply, params, _ = abstract(lambda: LlamaBlock(CONFIG, depth=depth, dtype=dtype, rngs=make_rngs(0)))
    return compiled(apply), randomise(params, seed=0)


def compiled(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, x, **switches: apply(params, {}, x, **switches), static_argnames=("rope", "causal"))


@functools.cache
def layer_pull_back(rope: bool, causal: bool) -> tuple[jax.Array, dict[str, Any], jax.Array]:
    """Output of the layer, and the loss's gradients with respect to weights and input."""
    call, params = make_layer()
    output, (gradients, x_gradient) = pull_back(
        lambda params, x: call(params, x, rope=rope, causal=causal, mask=None), params, tokens()
    )
    return output, gradients, x_gradient


def huggingface_layer(params: dict[str, Any], **arguments: Any) -> HuggingFaceBlock:
    """transformers' decoder layer alone, without a final norm, with our weights."""
    module = HuggingFaceBlock(CONFIG, **arguments)
    module.norm = nn.Identity()
    return weights.copy(weights.huggingface_llama_layer_state(params, "layers.0."), module)


def rope_factors(scaling: dict[str, Any]) -> tuple[float, ...]:
    """What transformers divides the inverse frequencies by under a scaling rule."""
    plain = LlamaRotaryEmbedding(huggingface_config(CONFIG)).inv_freq
    scaled = LlamaRotaryEmbedding(huggingface_config(CONFIG, rope_parameters=scaling)).inv_freq
    return tuple((plain.double() / scaled.double()).tolist())


@pytest.mark.parametrize(("rope", "causal"), SWITCHES)
def test_layer_equals_huggingface(rope: bool, causal: bool) -> None:
    call, params = make_layer()
    ours = call(params, tokens(), rope=rope, causal=causal, mask=None)
    module = huggingface_layer(params, rope=rope, causal=causal)
    assert_close(ours, module(torch.from_numpy(tokens())).detach())


def test_gradients_of_the_layer_equal_huggingface() -> None:
    """With rotary embedding and causal mask; without, the restatement below."""
    _, gradients, x_gradient = layer_pull_back(rope=True, causal=True)
    _, params = make_layer()
    _, their_x_gradient, their_gradients = torch_pull_back(huggingface_layer(params, rope=True, causal=True), tokens())
    assert_close(x_gradient, their_x_gradient)
    assert_states_close(weights.huggingface_llama_layer_state(gradients, "layers.0."), their_gradients)


def test_attention_of_the_random_weights_is_not_uniform() -> None:
    call, params = make_layer()
    for rope, causal in SWITCHES:
        switches = dict(rope=rope, causal=causal, mask=None)
        uniform = call(uniform_attention(params), tokens(), **switches)
        assert relative_change(uniform, call(params, tokens(), **switches)) > 0.1


@pytest.mark.parametrize("rule", ROPE_SCALING)
def test_layer_with_scaled_rope_equals_huggingface(rule: str) -> None:
    factors = rope_factors(ROPE_SCALING[rule])
    if rule == "llama3":
        assert factors[0] == 1
        assert 1 < factors[1] < 8
        np.testing.assert_allclose(factors[2:], 8, rtol=1e-6)
    call, params = make_layer(dataclasses.replace(CONFIG, rope_factors=factors))
    switches = dict(rope=True, causal=True, mask=None)
    ours = call(params, tokens(), **switches)
    module = huggingface_layer(params, rope=True, causal=True, rope_parameters=ROPE_SCALING[rule])
    assert_close(ours, module(torch.from_numpy(tokens())).detach())
    unscaled, _ = make_layer()
    assert relative_change(unscaled(params, tokens(), **switches), ours) > 0.01


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("rope", "causal"), SWITCHES)
def test_layer_with_padding_equals_huggingface_on_real_tokens(rope: bool, causal: bool, side: str) -> None:
    call, params = make_layer()
    mask = padding(side)
    ours = np.asarray(call(params, tokens(), rope=rope, causal=causal, mask=jnp.asarray(mask)))
    module = huggingface_layer(params, rope=rope, causal=causal, mask=torch.from_numpy(mask))
    theirs = module(torch.from_numpy(tokens())).detach().numpy()
    assert_close(ours[mask], theirs[mask])
    unmasked = np.asarray(call(params, tokens(), rope=rope, causal=causal, mask=None))
    if side == "left" or not causal:
        assert relative_change(unmasked[mask], ours[mask]) > 0.01
    else:
        # Real tokens come first, and the causal mask hides the padding already.
        assert_close(unmasked[mask], ours[mask])


def test_layer_without_rope_and_mask_equals_the_restatement() -> None:
    ours, gradients, x_gradient = layer_pull_back(rope=False, causal=False)
    _, params = make_layer()
    shape = {key: value for key, value in CONFIG.shape.items() if key != "width"}
    module = weights.copy(weights.module_state(params), rllm.LlamaLayer(CONFIG.width, **shape, eps=CONFIG.eps))
    theirs, their_x_gradient, their_gradients = torch_pull_back(module, tokens())
    assert_close(ours, theirs)
    assert_close(x_gradient, their_x_gradient)
    assert_states_close(weights.module_state(gradients), their_gradients)


def test_each_switch_alone_changes_the_result() -> None:
    call, params = make_layer()
    off = dict(rope=False, causal=False, mask=None)
    plain = call(params, tokens(), **off)
    for switch in (dict(rope=True), dict(causal=True), dict(mask=jnp.asarray(padding("right")))):
        assert relative_change(call(params, tokens(), **(off | switch)), plain) > 0.01, switch


def test_without_rope_and_mask_the_order_of_tokens_plays_no_part() -> None:
    call, params = make_layer()
    order = np.random.default_rng(5).permutation(TOKENS)
    off = dict(rope=False, causal=False, mask=None)
    assert_close(call(params, tokens()[:, order], **off), np.asarray(call(params, tokens(), **off))[:, order])


@pytest.mark.parametrize("final_norm", ["ones", "random"])
def test_block_equals_huggingface_model(final_norm: str) -> None:
    call, params = make_block(DEPTH)
    if final_norm == "ones":
        params = params | {"final_norm": jnp.ones(CONFIG.width)}
    model = LlamaModel(huggingface_config(CONFIG, depth=DEPTH))
    model.embed_tokens = nn.Identity()
    weights.copy(weights.huggingface_llama_state(params), model)
    mask = padding("right")
    theirs = model(
        inputs_embeds=torch.from_numpy(tokens()), attention_mask=torch.from_numpy(mask).long()
    ).last_hidden_state
    ours = call(params, tokens(), rope=True, causal=True, mask=jnp.asarray(mask))
    assert_close(np.asarray(ours)[mask], theirs.detach().numpy()[mask])


def test_block_equals_the_restatement_with_gradients() -> None:
    call, params = make_block(DEPTH)
    module = weights.copy(weights.module_state(params), rllm.LlamaBlock(**CONFIG.shape, depth=DEPTH, eps=CONFIG.eps))
    ours, (gradients, x_gradient) = pull_back(
        lambda params, x: call(params, x, rope=False, causal=False, mask=None), params, tokens()
    )
    theirs, their_x_gradient, their_gradients = torch_pull_back(module, tokens())
    assert_close(ours, theirs)
    assert_close(x_gradient, their_x_gradient)
    assert_states_close(weights.module_state(gradients), their_gradients)


def test_eps_decides_about_faint_tokens_as_in_huggingface() -> None:
    """Mean squares near 1e-5 = eps in every norm."""
    call, params = make_block(DEPTH)
    params, x = faint(params), FAINT * tokens()
    mask = padding("right")
    module = HuggingFaceBlock(CONFIG, depth=DEPTH, rope=True, causal=True, mask=torch.from_numpy(mask))
    weights.copy(weights.huggingface_llama_state(params), module)
    ours = np.asarray(call(params, x, rope=True, causal=True, mask=jnp.asarray(mask)))
    assert_close(ours[mask], module(torch.from_numpy(x)).detach().numpy()[mask])


@pytest.mark.parametrize(("rope", "causal"), SWITCHES)
def test_padded_tokens_do_not_influence_real_ones(rope: bool, causal: bool) -> None:
    call, params = make_block(DEPTH)
    mask = padding("right")
    x = tokens()
    switches = dict(rope=rope, causal=causal, mask=jnp.asarray(mask))
    before = np.asarray(call(params, x, **switches))
    noisy = np.where(mask[..., None], x, 100 * normal(x.shape, 2))
    after = np.asarray(call(params, noisy, **switches))
    np.testing.assert_array_equal(after[mask], before[mask])
    moved = x.copy()
    moved[1, 0] += 1  # a real token, seen by the row's others under every switch
    assert relative_change(np.asarray(call(params, moved, **switches))[1, 1:7], before[1, 1:7]) > 0.01


def test_queries_that_may_see_nothing_stay_finite() -> None:
    """Padding on the left under a causal mask leaves the first queries no key at all."""
    call, params = make_layer()
    mask = jnp.asarray(padding("left"))
    assert not np.asarray(attention_mask(TOKENS, causal=True, mask=mask)).any(axis=-1).all()
    output, gradients = pull_back(
        lambda params, x: call(params, x, rope=True, causal=True, mask=mask), params, tokens()
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((output, gradients)))


def test_attention_mask_is_absent_where_everything_is_visible() -> None:
    assert attention_mask(TOKENS, causal=False, mask=None) is None


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_bfloat16_is_close_and_returns_float32(stored: Any) -> None:
    """One layer: bfloat16's rounding alone, with attention this peaked, grows past 1e-2 with the second."""
    call, params = make_block(1)
    half, _ = make_block(1, dtype=jnp.bfloat16)
    switches = dict(rope=True, causal=True, mask=jnp.asarray(padding("right")))
    full = call(params, tokens(), **switches)
    result = half(jax.tree.map(lambda a: a.astype(stored), params), tokens(), **switches)
    assert result.dtype == full.dtype == jnp.float32
    difference = np.linalg.norm(result - full) / np.linalg.norm(full)
    assert 1e-4 < difference < 1e-2  # below: it was computed in float32
