"""Decoder layers of every LLM family, converted from transformers' checkpoints, compute what its layers compute."""

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost.convert import convert
from jaxboost.convert.store import load_block
from jaxboost.models.frozen import freeze, merge, split
from jaxboost.models.llama import LlamaBlock, check_window
from jaxboost.models.rngs import make_rngs
from jaxboost.models.rotary import check_limit
from tests.models.parity import assert_close, cotangent, normal, relative_change, torch_pull_back
from tests.reference import llm_models

ROTATES = {family: family not in ("gpt2", "opt") for family in llm_models.FAMILIES}
# (family, number of layers, rotary embedding, causal mask)
CASES = [
    (family, depth, rope, causal)
    for family in llm_models.FAMILIES
    for depth, rope, causal in [
        *((1, rope, causal) for rope in (True, False) for causal in (True, False)),
        (2, True, True),
    ]
    if ROTATES[family] or not rope
] + [(family, 2, False, True) for family in llm_models.FAMILIES if not ROTATES[family]]
TOKENS = normal((2, 9, llm_models.WIDTH), 1)
# A layer of Gemma 3 with a rotary base of its own, and one with the other base.
CHOSEN = {"gemma3_text": (2, 1)}


@functools.cache
def model_of(family: str) -> Any:
    return llm_models.tiny(family)


@functools.cache
def source_of(family: str, folder: Any) -> str:
    # OPT is published without safetensors.
    return llm_models.save(model_of(family), folder / family, safetensors=family != "opt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@functools.cache
def converted(family: str, layers: tuple[int, ...], folder: Any) -> Any:
    out = folder / f"{family}-{'-'.join(map(str, layers))}"
    convert(source_of(family, folder), layers, out)
    return load_block(out, layers, final_norm=True)


def ours(block: Any, x: np.ndarray, **switches: bool) -> tuple[jax.Array, jax.Array]:
    """The block's output, and the loss's gradient with respect to the tokens; without compilation."""
    config, depth = block.config, len(block.layers)
    make = lambda: freeze(LlamaBlock(config, depth=depth, dtype=jnp.float32, rngs=make_rngs(0)))  # noqa: E731
    graphdef, params, frozen, _ = split(nnx.eval_shape(make))
    weights = block.tree()
    assert params == {}
    assert jax.tree.map(lambda a: a.shape, frozen) == jax.tree.map(lambda a: a.shape, weights)
    with jax.disable_jit():
        output, vjp = jax.vjp(lambda x: merge(graphdef, {}, weights)(x, mask=None, **switches), jnp.asarray(x))
        return output, vjp(jnp.asarray(cotangent(output.shape)))[0]


@pytest.mark.parametrize(("family", "depth", "rope", "causal"), CASES)
def test_layers_equal_transformers_with_the_gradients_of_the_tokens(family, depth, rope, causal, folder):
    layers = CHOSEN.get(family, (3, 1))[:depth]
    output, gradient = ours(converted(family, layers, folder), TOKENS, rope=rope, causal=causal)
    module = llm_models.Layers(model_of(family), layers, rope=rope, causal=causal)
    expected, expected_gradient, _ = torch_pull_back(module, TOKENS)
    assert_close(output, expected)
    assert_close(gradient, expected_gradient)


# What a GGUF file of Gemma says by the number of layers, or not at all.
OF_GGUF = {
    "gemma2": dict(query_pre_attn_scalar=12),
    "gemma3_text": dict(
        query_pre_attn_scalar=12,
        num_hidden_layers=6,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        },
    ),
}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "gpt2"])
def test_gguf_holds_the_same_layers(family, tmp_path):
    """As transformers' checkpoint; the norms of Gemma lose the last bits in 1 + w."""
    model, layers = llm_models.tiny(family, **OF_GGUF.get(family, {})), "5,4" if family == "gemma3_text" else "3,2"
    expected = convert(llm_models.save(model, tmp_path / "source"), layers, tmp_path / "block")
    of_gguf = convert(llm_models.write_gguf(model, tmp_path / "model.gguf"), layers, tmp_path / "gguf")
    assert dataclasses.replace(of_gguf.config, rope_magnitude=1.0) == dataclasses.replace(
        expected.config, rope_magnitude=1.0
    )
    assert of_gguf.config.rope_magnitude == pytest.approx(expected.config.rope_magnitude, rel=1e-6)
    if family.startswith("gemma"):
        trees = [load_block(tmp_path / each, None, final_norm=True).tree() for each in ("gguf", "block")]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1.5e-7, rtol=0), *trees)
    else:
        assert of_gguf.sha256 == expected.sha256


def test_longrope_of_more_tokens_is_refused(folder):
    block = converted("phi3", (1,), folder)
    assert block.config.rope_limit == 16
    check_limit(block.config, 16)
    with pytest.raises(
        ValueError, match=r"17 tokens, but the rotary embedding of these layers \(LongRoPE\) holds for 16"
    ):
        ours(block, TOKENS[:, :1].repeat(17, axis=1), rope=True, causal=False)


@pytest.mark.parametrize("family", llm_models.FAMILIES)
def test_whole_model_of_transformers(family, tmp_path):
    """As it runs in transformers, with its own masks and rotary embedding; learned positions are zero."""
    changes = {"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}
    if "layer_types" in llm_models.FAMILIES[family]:
        changes["layer_types"] = ["sliding_attention", "full_attention"]
    if "sliding_window" in llm_models.FAMILIES[family]:
        # A window of all tokens hides none.
        changes["sliding_window"] = TOKENS.shape[1]
    model = llm_models.tiny(family, seed=1, **changes)
    convert(llm_models.save(model, tmp_path / "source"), "all", tmp_path / "block")
    with torch.no_grad():
        expected = llm_models.whole(model, torch.from_numpy(TOKENS))
    block = load_block(tmp_path / "block", None, final_norm=True)
    output, _ = ours(block, TOKENS, rope=ROTATES[family], causal=True)
    assert_close(output, expected)
    if "sliding_window" in changes:
        model.config.sliding_window -= 1
        with torch.no_grad():
            assert relative_change(llm_models.whole(model, torch.from_numpy(TOKENS)), expected) > 1e-3
        narrower = dataclasses.replace(block.config, window=model.config.sliding_window)
        with pytest.raises(ValueError, match=r"9 tokens under a causal mask, .* sliding window of 8"):
            check_window(narrower, TOKENS.shape[1], causal=True)


@pytest.mark.parametrize("family", llm_models.FAMILIES)
def test_gradients_of_the_weights_equal_those_of_transformers(family, folder):
    """The gradients in transformers' names are converted as if they were weights."""
    model, (layer,) = copy.deepcopy(model_of(family)), CHOSEN.get(family, (3, 1))[:1]
    module = llm_models.Layers(model, (layer,), rope=ROTATES[family], causal=True)
    torch_pull_back(module, TOKENS)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    convert(llm_models.save(model, folder / f"{family}-gradients"), str(layer), folder / f"{family}-of-weights")
    expected = load_block(folder / f"{family}-of-weights", None, final_norm=True).tree()

    block = converted(family, (layer,), folder)
    make = lambda: LlamaBlock(block.config, depth=1, dtype=jnp.float32, rngs=make_rngs(0))  # noqa: E731
    graphdef, *_ = split(nnx.eval_shape(make))

    def run(weights: Any) -> jax.Array:
        return merge(graphdef, weights, {})(jnp.asarray(TOKENS), mask=None, rope=ROTATES[family], causal=True)

    with jax.disable_jit():
        output, vjp = jax.vjp(run, block.tree())
        (gradients,) = vjp(jnp.asarray(cotangent(output.shape)))
    paths = jax.tree.leaves_with_path(expected)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for (path, reference), actual in zip(paths, jax.tree.leaves(gradients), strict=True):
        name = jax.tree_util.keystr(path)
        # The keys' bias adds the same to all scores of a query: its gradient is rounding.
        scale = float(np.abs(expected["layers"]["v_bias"]).max()) if "k_bias" in name else None
        assert_close(actual, reference, name=name, scale=scale)
