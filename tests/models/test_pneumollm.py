"""PneumoLLM against its restatement on transformers' LLaMA layers, for every row of the paper's tables."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost.models import adapters, frozen, image_llm, pneumollm
from jaxboost.models.adapters import RepAdapter
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.llama import FAMILIES
from jaxboost.models.pneumollm import PneumoSpec
from jaxboost.models.rngs import make_rngs
from tests.models.parity import assert_close, assert_states_close, cotangent, normal, relative_change
from tests.models.pneumollm_cases import CASES, LLAMA, MEAN, SPEC, STD, build, make
from tests.reference import pneumollm as reference
from tests.reference import rllm
from tests.reference.weights import copy, join


def restated(spec: PneumoSpec, arguments: dict, params, weights) -> reference.PneumoLLM:
    W, D = arguments["width"], LLAMA.width
    model = reference.PneumoLLM(
        every=spec.every,
        tokens=spec.tokens,
        emitter=spec.emitter,
        encoder=reference.Encoder(image_size=28, **arguments),
        vision_adapters=reference.adapters(W, arguments["depth"], spec.vision_adapters),
        engine=reference.engine(spec.tokens, W, spec.count),
        neck_in=torch.nn.Linear(W, 128),
        neck_out=torch.nn.Linear(128, D),
        llama=reference.Llama(LLAMA, depth=spec.depth, rope=True, causal=spec.causal) if spec.depth else None,
        llama_adapters=reference.adapters(D, spec.depth, spec.llama_adapters),
        head=torch.nn.Linear(D, 2, bias=False),
    )
    return copy(reference.state_of(join(params, weights)), model)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_gradient_match_the_restatement(case):
    spec, arguments = CASES[case]
    apply, params, weights, images = make(spec, arguments)
    model = restated(spec, arguments, params, weights)
    logits = model(rllm.pixels(torch.from_numpy(images), MEAN, STD))
    (logits * torch.from_numpy(cotangent((3, 2)))).sum().backward()

    @jax.jit
    def ours(params):
        value, vjp = jax.vjp(lambda p: apply(p, weights, images), params)
        return value, vjp(jnp.asarray(cotangent((3, 2))))[0]

    value, gradients = ours(params)
    assert_close(value, logits.detach(), name="logits")
    theirs = {name: p.grad for name, p in model.named_parameters()}
    gradients = reference.state_of(gradients)
    # One number decides for all rows of a softmax' scores what its bias adds to each: it has no gradient but rounding.
    scales = (
        {"engine.scores.bias": float(theirs["engine.scores.weight"].abs().max())}
        if "engine.scores.bias" in theirs
        else {}
    )
    assert_states_close(gradients, {name: theirs[name] for name in gradients}, scales=scales)


@pytest.mark.parametrize("case", ["full", "no_emitter_remat", "no_llama"])
def test_merged_adapters_give_the_same_logits(case):
    spec, arguments = CASES[case]
    apply, params, weights, images = make(spec, arguments)
    graphdef = frozen.split(nnx.eval_shape(lambda: build(spec, arguments, make_rngs(0))))[0]
    precomputed = jax.jit(lambda: frozen.merge(graphdef, params, weights).precompute())()
    plain = apply(params, weights, images)
    assert_close(apply(params, weights, images, precomputed), plain)
    # The precomputed projections are used: others give other logits.
    doubled = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), precomputed)
    assert relative_change(apply(params, weights, images, doubled), plain) > 1e-2


def test_merging_leaves_no_adapter_out():
    adapter = RepAdapter(16, rngs=make_rngs(0))
    for name, value in (("up", (2, 4, 8)), ("down_bias", (8,)), ("up_bias", (16,))):
        getattr(adapter, name)[...] = jnp.asarray(normal(value, len(name)))
    x, kernel, bias = normal((5, 16), 1), normal((16, 24), 2), normal((24,), 3)
    merged = adapter.merge(jnp.asarray(kernel), jnp.asarray(bias))
    assert_close(x @ np.asarray(merged.kernel) + np.asarray(merged.bias), adapter(x, key=None) @ kernel + bias)


def test_a_new_adapter_is_the_identity():
    x = normal((2, 3, 16), 0)
    np.testing.assert_array_equal(RepAdapter(16, rngs=make_rngs(0))(jnp.asarray(x), key=None), x)


def test_dropout_drops_a_tenth_and_keeps_the_mean():
    adapter = RepAdapter(64, rngs=make_rngs(0))
    adapter.up[...] = jnp.ones((2, 4, 32))
    x = jnp.asarray(normal((1, 1, 64), 0))
    draw = jax.jit(jax.vmap(lambda key: adapter(x, key=key) - x))
    draws = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    hidden = np.asarray(x[0, 0] @ adapter.down[...])
    values = np.unique(np.round(np.asarray(draws[:, 0, 0, 0]), 4))
    # Each feature of the first group is there, divided by .9, or not.
    sums = [np.sum(hidden[:4] * kept) / 0.9 for kept in itertools.product((0, 1), repeat=4)]
    assert all(min(abs(value - s) for s in sums) < 1e-3 for value in values)
    assert float(draws[:, 0, 0, 0].mean()) == pytest.approx(float(hidden[:4].sum()), abs=0.05)
    assert adapters.DROPOUT == 0.1


def test_layers_do_not_share_a_dropout_key():
    keys = image_llm.adaptation(RepAdapter(16, rngs=make_rngs(0)), None, 5, jax.random.key(0)).key
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 5


def test_dropout_follows_the_key_alone():
    apply, params, weights, images = make(*CASES["full"])
    one, same = (apply(params, weights, images, key=jax.random.key(0)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert relative_change(apply(params, weights, images, key=jax.random.key(1)), one) > 1e-4


def test_no_token_sees_the_diagnosis_tokens():
    """With the emitter the source tokens' outputs are those of a run without diagnosis tokens."""
    spec, arguments = CASES["full"]
    _, params, weights, _ = make(spec, arguments)
    graphdef = frozen.split(nnx.eval_shape(lambda: build(spec, arguments, make_rngs(0))))[0]
    model = frozen.merge(graphdef, params, weights)
    llama = nnx.jit(lambda llama, x, mask: llama(x, rope=True, causal=False, mask=mask))
    x = normal((2, 6, 32), 5)
    mask = (np.arange(6) < 4)[None]
    whole = llama(model.llama, x, mask)
    assert_close(whole[:, :4], llama(model.llama, x[:, :4], None))
    # A diagnosis token does not even see itself: its neighbour's value does not reach it.
    x[:, 5] += 1
    changed = llama(model.llama, x, mask)
    assert_close(changed[:, :5], whole[:, :5])


def test_source_tokens_can_be_given_instead_of_images():
    spec, arguments = CASES["full"]
    apply, params, weights, images = make(spec, arguments)
    graphdef = frozen.split(nnx.eval_shape(lambda: build(spec, arguments, make_rngs(0))))[0]
    tokens = jax.jit(lambda params, weights, images: frozen.merge(graphdef, params, weights).encode(images))(
        params, weights, images
    )
    assert tokens.shape == (3, 3, 32)
    assert_close(apply(params, weights, tokens), apply(params, weights, images))


def test_conv14_trains_its_patch_embedding():
    model = nnx.eval_shape(lambda: pneumollm.build("conv14", **_paper(count=4), rngs=make_rngs(0)))
    _, params, weights, _ = frozen.split(model)
    assert params["encoder"]["embedding"]["kernel"].shape == (14 * 14 * 3, 1024)
    assert "encoder" not in weights


def _paper(**changes):
    spec = dataclasses.replace(SPEC, llama=FAMILIES["llama-7b"], depth=32, every=4, **changes)
    if changes.get("vision_adapters") is None:
        spec = dataclasses.replace(spec, vision_adapters=False)
    return dict(spec=spec, classes=2, image_size=224, mean=MEAN, std=STD, dtype=jnp.float32, remat=False)


@pytest.mark.parametrize(("tokens", "trained"), [("engine", 2_704_000), ("none", 2_691_648)])
def test_the_papers_counts(tokens, trained):
    """The paper gives 2.70 M, and 2.69 M for its simplified model."""
    arguments = _paper(vision_adapters=True, tokens=tokens, count=4)
    model = nnx.eval_shape(lambda: pneumollm.build("clip_vit_l14", **arguments, rngs=make_rngs(0)))
    _, params, weights, _ = frozen.split(model)
    assert frozen.count(params) == trained
    # CLIP's encoder without its last norm and projection, and LLaMA without its token embedding and head.
    assert frozen.count(weights["llama"]) == 32 * 202_383_360 + 4096
    assert frozen.count(weights["encoder"]) == 303_179_776 - 2048
    assert BACKBONES["clip_vit_l14"].arguments["patch"] == 14


@pytest.mark.parametrize("case", CASES)
def test_features_are_what_the_head_reads_and_tokens_what_llama_sees(case):
    spec, arguments = CASES[case]
    model = nnx.eval_shape(lambda: build(spec, arguments, make_rngs(0)))
    images = np.zeros((2, 28, 28, 1), np.uint8)
    features = nnx.eval_shape(lambda model: model.features(images), model)
    assert (features.shape, features.dtype) == ((2, LLAMA.width), jnp.float32)
    tokens = nnx.eval_shape(lambda model: model.encode(images), model).shape[1]
    assert model.tokens == tokens + (0 if spec.tokens == "none" else spec.count)


def test_conv14_has_a_token_for_each_patch():
    assert nnx.eval_shape(lambda: pneumollm.build("conv14", **_paper(count=4), rngs=make_rngs(0))).tokens == 16**2 + 4
