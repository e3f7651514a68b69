"""Sizes of the LLM families, and what their layers share with LLaMA's: adapters, emitter, LoRA, windows, 16 bits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost.models import attention, norms
from jaxboost.models.adapters import Adaptation
from jaxboost.models.boost import Boost
from jaxboost.models.families import DEPTHS, FAMILIES, Architecture, LlamaConfig
from jaxboost.models.frozen import count, freeze, merge, split
from jaxboost.models.llama import ACTIVATIONS, LlamaBlock, LlamaLayer
from jaxboost.models.rngs import make_rngs
from tests.models import pneumollm_cases
from tests.models.parity import abstract, assert_close, normal, randomise, relative_change

CONFIG = LlamaConfig(width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=48, eps=1e-5, rope_base=10000.0)
OLDER = dict(norm="layer", qkv_bias=True, o_bias=True, mlp_bias=True, gated=False, rotary=False)
KINDS = {
    "qwen2": dataclasses.replace(CONFIG, qkv_bias=True),
    "qwen3": dataclasses.replace(CONFIG, qk_norm=True),
    "gemma2": dataclasses.replace(
        CONFIG, offset_norms=True, activation="gelu_tanh", post_norms=True, score_cap=2.0, query_scale=0.5
    ),
    "gpt2": dataclasses.replace(CONFIG, activation="gelu_tanh", **OLDER),
}
# Published numbers of parameters of whole models, and those of their embeddings: words, positions, and the head if it
# is not tied to them.
PUBLISHED = {
    "qwen2.5-0.5b": (494_032_768, 151_936 * 896),
    "qwen2.5-1.5b": (1_543_714_304, 151_936 * 1536),
    "qwen2.5-7b": (7_615_616_512, 2 * 152_064 * 3584),
    "qwen3-0.6b": (596_049_920, 151_936 * 1024),
    "qwen3-1.7b": (1_720_574_976, 151_936 * 2048),
    "qwen3-8b": (8_190_735_360, 2 * 151_936 * 4096),
    "mistral-7b": (7_248_023_552, 2 * 32_768 * 4096),
    "phi-3-mini": (3_821_079_552, 2 * 32_064 * 3072),
    "gemma-2-2b": (2_614_341_888, 256_000 * 2304),
    "gemma-2-9b": (9_241_705_984, 256_000 * 3584),
    "gemma-3-1b": (999_885_952, 262_144 * 1152),
    "gpt2": (124_439_808, 50_257 * 768 + 1024 * 768),
    "gpt2-xl": (1_557_611_200, 50_257 * 1600 + 1024 * 1600),
    "opt-125m": (125_239_296, 50_272 * 768 + 2050 * 768),
    "opt-1.3b": (1_315_758_080, 50_272 * 2048 + 2050 * 2048),
    "opt-2.7b": (2_651_596_800, 50_272 * 2560 + 2050 * 2560),
    "opt-6.7b": (6_658_473_984, 50_272 * 4096 + 2050 * 4096),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_layers_have_the_published_number_of_parameters(family):
    layer = nnx.eval_shape(lambda: LlamaLayer(FAMILIES[family], dtype=jnp.float32, rngs=make_rngs(0)))
    whole, embeddings = PUBLISHED[family]
    final_norm = FAMILIES[family].width * (2 if FAMILIES[family].norm == "layer" else 1)
    assert count(split(layer)[1]) * DEPTHS[family] == whole - embeddings - final_norm


def test_every_family_is_llamas_or_is_counted():
    plain = {name for name, config in FAMILIES.items() if config.entries().keys() == CONFIG.entries().keys()}
    assert set(PUBLISHED) | plain == set(FAMILIES)
    assert all(config.activation in ACTIVATIONS for config in FAMILIES.values())


def test_entries_have_only_what_is_not_llamas():
    as_llama = {field.name for field in dataclasses.fields(Architecture)}
    assert as_llama.isdisjoint(CONFIG.entries())
    assert as_llama & set(KINDS["gemma2"].entries()) == {
        "offset_norms",
        "activation",
        "post_norms",
        "score_cap",
        "query_scale",
    }
    assert all(LlamaConfig(**config.entries()) == config for config in KINDS.values())


@functools.cache
def block_of(kind: str, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """call(params, x, ...) of two layers, and random weights."""
    apply, params, _ = abstract(lambda: LlamaBlock(KINDS[kind], depth=2, dtype=dtype, rngs=make_rngs(0)))
    call = jax.jit(functools.partial(apply, frozen={}), static_argnames=("rope", "causal", "keys"))
    return call, randomise(params, seed=0)


@pytest.mark.parametrize("norm", ["LLaMA", "Gemma", "LayerNorm"])
def test_norms_round_in_16_bits_as_in_transformers(norm):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    eps, x, weight, bias = 1e-3, normal((64, 48), 1), 0.01 * normal((48,), 2), normal((48,), 3)
    theirs: Any = {"LLaMA": LlamaRMSNorm, "Gemma": Gemma2RMSNorm, "LayerNorm": torch.nn.LayerNorm}[norm](48, eps=eps)
    if norm != "Gemma":
        weight += 1
    half = [jnp.asarray(array, jnp.bfloat16) for array in (x, weight, bias)]
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(weight))
        if norm == "LayerNorm":
            theirs.bias.copy_(torch.from_numpy(bias))
        expected = theirs.bfloat16()(torch.from_numpy(x).bfloat16()).float().numpy()
    if norm == "LayerNorm":
        found = norms.layer_norm(*half, eps)
    else:
        found = norms.rms_norm(*half[:2], eps, offset=norm == "Gemma")
    assert found.dtype == jnp.bfloat16
    found = np.asarray(found, np.float32)
    # A root of another library may round a number at the edge to the other side.
    assert np.mean(found == expected) > 0.998
    np.testing.assert_allclose(found, expected, rtol=2**-7)


def tokens() -> np.ndarray:
    return normal((2, 7, CONFIG.width), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_emitter_hides_the_last_tokens_as_a_mask_does(kind):
    call, params = block_of(kind)
    switches = dict(rope=KINDS[kind].rotary, causal=False)
    hidden = call(params, x=tokens(), mask=np.arange(7)[None] < 4, **switches)
    assert_close(call(params, x=tokens(), keys=4, **switches), hidden)
    assert relative_change(call(params, x=tokens(), **switches), hidden) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_of_pneumollm_give_the_same_logits(kind):
    spec = dataclasses.replace(pneumollm_cases.SPEC, llama=KINDS[kind], depth=1)
    _, params, weights, images = pneumollm_cases.make(spec, pneumollm_cases.CLIP)
    graphdef, *_ = split(nnx.eval_shape(lambda: pneumollm_cases.build(spec, pneumollm_cases.CLIP, make_rngs(0))))

    @jax.jit
    def run(params: Any, weights: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        model = merge(graphdef, params, weights)
        source = model.encode(images)
        plain, merged = model(source), model(source, model.precompute())
        model.llama_adapters = None
        return plain, merged, model(source)

    plain, merged, without = run(params, weights, images)
    assert_close(merged, plain)
    assert relative_change(without, plain) > 0.01


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_merged_lora_gives_the_same_tokens(kind):
    def make() -> Boost:
        block = freeze(LlamaBlock(KINDS[kind], depth=1, dtype=jnp.float32, rngs=make_rngs(0)))
        block.add_lora(2, rngs=make_rngs(1))
        return Boost("rllm", width=12, block=block, rngs=make_rngs(0))

    graphdef, params, weights, _ = split(nnx.eval_shape(make))
    assert len(params["block"]["layers"]["lora"]) == 2 * len(KINDS[kind].matrices)

    @jax.jit
    def run(params: Any, weights: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        boost = merge(graphdef, params, weights)
        expected, merged = boost(x)[:, :1], boost.pooled(x, precomputed=boost.precompute())
        boost.block.layers.lora = None
        return expected, merged, boost(x)[:, :1]

    expected, merged, without = run(randomise(params, 2), randomise(weights, 3), normal((2, 5, 12), 4))
    assert_close(merged, expected)
    assert relative_change(without, expected) > 0.01


def test_more_tokens_than_the_window_are_refused_under_a_causal_mask():
    config = dataclasses.replace(CONFIG, window=6)
    apply, params, _ = abstract(lambda: LlamaLayer(config, dtype=jnp.float32, rngs=make_rngs(0)))
    layer = functools.partial(jax.jit(apply, static_argnames=("rope", "causal")), randomise(params, seed=0), {})
    x = tokens()
    layer(x, rope=True, causal=False, mask=None)
    layer(x[:, :6], rope=True, causal=True, mask=None)
    with pytest.raises(ValueError, match=r"^7 tokens under a causal mask, but these layers have a sliding window of 6"):
        layer(x, rope=True, causal=True, mask=None)


def test_learned_positions_are_not_rotated():
    call, params = block_of("gpt2")
    with pytest.raises(ValueError, match="cannot be rotated: their family has no rotary embedding"):
        call(params, x=tokens(), rope=True, causal=True)


def test_a_soft_cap_has_no_fused_attention(monkeypatch):
    monkeypatch.setattr(attention, "fused_problem", lambda *_: "")
    q = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    assert not attention.takes_fused("auto", q, q, q, capped=True)
    with pytest.raises(ValueError, match="there is no fused attention for scores with a soft cap"):
        attention.takes_fused("fused", q, q, q, capped=True)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_returns_float32(kind):
    call, params = block_of(kind)
    half, _ = block_of(kind, jnp.bfloat16)
    switches = dict(rope=KINDS[kind].rotary, causal=True)
    full, result = call(params, x=tokens(), **switches), half(params, x=tokens(), **switches)
    assert result.dtype == full.dtype == jnp.float32
    difference = np.linalg.norm(result - full) / np.linalg.norm(full)
    assert 1e-4 < difference < 3e-2  # below: it was computed in float32


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_adapters_come_before_the_biased_projections(kind):
    """A shift of the projections' input by s is a shift of their output by s W, beside the bias."""
    layer = nnx.eval_shape(lambda: LlamaLayer(KINDS[kind], dtype=jnp.float32, rngs=make_rngs(0)))
    graphdef, params, *_ = split(layer)
    shift = normal((CONFIG.width,), 6)

    class Shift(Adaptation):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x + shift

    @jax.jit
    def run(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer = merge(graphdef, params, {})
        switches = dict(rope=KINDS[kind].rotary, causal=False, mask=None)
        adapted = layer(x, adaptation=Shift(), **switches)
        for name in "qkv":
            bias = getattr(layer, f"{name}_bias")
            bias.set_value(bias[...] + shift @ getattr(layer, name)[...])
        return layer(x, **switches), adapted

    assert_close(*run(randomise(params, 5), tokens()))
