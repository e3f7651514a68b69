"""Every boost variant on every encoder family against the restatement, and what sets the variants apart."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import KINDS, VARIANTS, Boost
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.frozen import freeze
from jaxboost.models.llama import LlamaBlock, LlamaConfig
from jaxboost.models.rngs import make_rngs
from tests.models.huggingface import HuggingFaceBlock
from tests.models.parity import (
    abstract,
    assert_close,
    assert_states_close,
    cotangent,
    normal,
    randomise,
    relative_change,
    torch_pull_back,
    uniform_attention,
)
from tests.models.small import CHANNELS, IMAGE_SIZE, RESTATED, SMALL
from tests.reference import rllm, weights

CONFIG = LlamaConfig(width=48, heads=4, kv_heads=2, head_dim=8, mlp_width=56, eps=1e-6, rope_base=10000.0)
BATCH, CLASSES = 2, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
WITH_LAYER = [kind for kind, variant in VARIANTS.items() if variant.layer]

small_backbones = pytest.mark.usefixtures("small_backbones")


@functools.cache
def make(backbone: str, spec: BoostSpec) -> tuple[Callable[..., jax.Array], dict[str, Any], dict[str, Any], np.ndarray]:
    """apply(params, frozen, images), random weights, and random grey images: uint8's values, but differentiable."""
    apply, params, frozen = abstract(
        lambda: build(
            backbone,
            boost=spec,
            classes=CLASSES,
            image_size=IMAGE_SIZE,
            mean=MEAN,
            std=STD,
            dtype=jnp.float32,
            rngs=make_rngs(0),
        )
    )
    images = np.random.default_rng(7).integers(0, 256, (BATCH, *[IMAGE_SIZE] * SMALL[backbone].ndim, 1))
    return apply, randomise(params, seed=1), randomise(frozen, seed=2), images.astype(np.float32)


def restate(backbone: str, kind: str, block: nn.Module | None) -> rllm.Classifier:
    spec = SMALL[backbone]
    width = spec.arguments["width"]
    return rllm.Classifier(
        RESTATED[spec.encoder](image_size=IMAGE_SIZE, channels=CHANNELS, **spec.arguments),
        None if kind == "none" else rllm.Boost(kind, width=width, block_width=CONFIG.width, block=block),
        width=width,
        classes=CLASSES,
        head_eps=spec.head_eps,
    )


def restated_block(depth: int) -> rllm.LlamaBlock:
    return rllm.LlamaBlock(**CONFIG.shape, depth=depth, eps=CONFIG.eps)


def assert_equals_torch(
    backbone: str, spec: BoostSpec, block: nn.Module | None, to_state: Callable[[dict[str, Any], int], weights.State]
) -> None:
    """Compares logits and the gradients of pixels and every trainable weight; the frozen ones have none on either side.

    Args:
      block: the module that stands for F_L.
      to_state: from our tree of weights, or gradients, and the backbone's dimensions to torch's names.
    """
    apply, params, frozen, images = make(backbone, spec)
    if block is not None:
        block.requires_grad_(spec.trainable)
    module = restate(backbone, spec.kind, block)
    ndim = SMALL[backbone].ndim
    weights.copy(to_state(weights.join(params, frozen), ndim), module)
    theirs, their_image_gradient, their_gradients = torch_pull_back(
        module, images, lambda images: rllm.pixels(images, MEAN, STD)
    )
    ours, vjp = jax.vjp(lambda params, images: apply(params, frozen, images), params, jnp.asarray(images))
    gradients, image_gradient = vjp(jnp.asarray(cotangent((BATCH, CLASSES))))
    assert_close(ours, theirs)
    assert_close(image_gradient, their_image_gradient)
    assert_states_close(to_state(gradients, ndim), their_gradients)


def restated_state(tree: dict[str, Any], ndim: int) -> weights.State:
    return weights.classifier_state(tree, ndim=ndim)


def huggingface_state(tree: dict[str, Any], ndim: int) -> weights.State:
    """As `restated_state`, with F_L under transformers' names."""
    boost = dict(tree["boost"])
    block = boost.pop("block", None)
    state = weights.classifier_state(tree | {"boost": boost}, ndim=ndim)
    if block is not None:
        state |= {f"boost.block.{name}": value for name, value in weights.huggingface_llama_state(block).items()}
    return state


@small_backbones
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", SMALL)
def test_every_kind_equals_the_restatement(backbone: str, kind: str) -> None:
    block = restated_block(1) if kind in WITH_LAYER else None
    assert_equals_torch(backbone, BoostSpec(kind=kind, config=CONFIG), block, restated_state)


@small_backbones
@pytest.mark.parametrize("kind", WITH_LAYER)
def test_trainable_block_equals_the_restatement(kind: str) -> None:
    spec = BoostSpec(kind=kind, config=CONFIG, trainable=True)
    assert_equals_torch("small_vit", spec, restated_block(1), restated_state)


@small_backbones
def test_several_layers_equal_the_restatement() -> None:
    spec = BoostSpec(kind="rllm", config=CONFIG, depth=3, trainable=True)
    assert_equals_torch("small_vit", spec, restated_block(3), restated_state)


@small_backbones
@pytest.mark.parametrize(("rope", "causal"), [(True, False), (False, True)])
def test_rope_and_causal_mask_equal_huggingface(rope: bool, causal: bool) -> None:
    spec = BoostSpec(kind="rllm", config=CONFIG, depth=2, rope=rope, causal=causal)
    block = HuggingFaceBlock(CONFIG, depth=2, rope=rope, causal=causal)
    assert_equals_torch("small_vit", spec, block, huggingface_state)


@small_backbones
def test_block_matters_and_its_attention_is_not_uniform() -> None:
    """Over several draws: the residual around the block hides it in some."""
    apply, params, frozen, images = make("small_vit", BoostSpec(kind="rllm", config=CONFIG))
    changes = []
    for seed in range(5):
        drawn, block = randomise(params, seed=2 * seed), randomise(frozen, seed=2 * seed + 1)
        logits = apply(drawn, block, images)
        changes.append(relative_change(apply(drawn, uniform_attention(block), images), logits))
    assert np.median(changes) > 0.01


def test_compiled_whole_equals_the_restatement(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: one program from pixels to logits."""
    monkeypatch.setitem(BACKBONES, "small_vit3d", SMALL["small_vit3d"])
    apply, params, frozen, images = make("small_vit3d", BoostSpec(kind="rllm", config=CONFIG))
    module = restate("small_vit3d", "rllm", restated_block(1))
    weights.copy(restated_state(weights.join(params, frozen), 3), module)
    theirs = module(rllm.pixels(torch.from_numpy(images), MEAN, STD))
    assert_close(jax.jit(apply)(params, frozen, images.astype(np.uint8)), theirs.detach())


@small_backbones
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_no_entry_for_the_frozen_block(kind: str) -> None:
    apply, params, frozen, images = make("small_vit", BoostSpec(kind=kind, config=CONFIG))
    gradients = jax.eval_shape(jax.grad(lambda params: apply(params, frozen, images).sum()), params)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert "block" not in gradients.get("boost", {})
    assert set(frozen) == ({"boost"} if kind in WITH_LAYER else set())
    assert ("boost" in gradients) == (kind != "none")


@small_backbones
def test_trainable_block_leaves_nothing_frozen() -> None:
    _, params, frozen, _ = make("small_vit", BoostSpec(kind="rllm", config=CONFIG, trainable=True))
    assert frozen == {}
    assert set(params["boost"]["block"]) == {"layers", "final_norm"}


@small_backbones
@pytest.mark.parametrize("backbone", SMALL)
def test_none_has_the_plain_backbones_weights_only(backbone: str) -> None:
    """Its values are compared with the restatement's plain backbone above."""
    _, params, frozen, _ = make(backbone, BoostSpec(kind="none"))
    assert set(params) == {"encoder", "head"} | (set() if backbone == "small_vivit" else {"head_norm"})
    assert frozen == {}


WIDTH, TOKENS = 20, 9


@functools.cache
def make_boost(
    kind: str, *, rope: bool = False, causal: bool = False
) -> tuple[Callable[..., jax.Array], dict[str, Any], dict[str, Any]]:
    """apply(params, frozen, tokens, mask) of a boost alone, and random weights."""

    def boost() -> Boost:
        common = dict(dtype=jnp.float32, rngs=make_rngs(0))
        switches = dict(rope=rope, causal=causal, path="auto")
        block = freeze(LlamaBlock(CONFIG, depth=1, **common)) if kind in WITH_LAYER else None
        return Boost(kind, width=WIDTH, block_width=CONFIG.width, block=block, **switches, **common)

    apply, params, frozen = abstract(boost)
    return jax.jit(apply), randomise(params, seed=3), randomise(frozen, seed=4)


def tokens() -> np.ndarray:
    return normal((BATCH, TOKENS, WIDTH), 8)


@pytest.mark.parametrize("rope", [False, True])
def test_under_a_causal_mask_the_first_token_sees_only_itself(rope: bool) -> None:
    """ "bare" is F_D F_L F_E alone: whatever reaches token 0 has passed the block."""
    changed = tokens()
    changed[:, 1:] = normal((BATCH, TOKENS - 1, WIDTH), 9)
    for causal in (True, False):
        apply, params, frozen = make_boost("bare", rope=rope, causal=causal)
        before = np.asarray(apply(params, frozen, tokens()))[:, 0]
        after = np.asarray(apply(params, frozen, changed))[:, 0]
        if causal:
            np.testing.assert_array_equal(after, before)
        else:
            assert relative_change(after, before) > 0.05


def test_padded_tokens_do_not_influence_real_ones() -> None:
    apply, params, frozen = make_boost("rllm")
    mask = np.arange(TOKENS)[None] < np.array([[TOKENS], [4]])
    noisy = np.where(mask[..., None], tokens(), 100)
    before, after = (np.asarray(apply(params, frozen, x, jnp.asarray(mask))) for x in (tokens(), noisy))
    np.testing.assert_array_equal(after[mask], before[mask])
    assert relative_change(np.asarray(apply(params, frozen, noisy))[mask], before[mask]) > 0.05


def test_out_nn_has_a_leaky_skip_of_slope_one_hundredth() -> None:
    apply, params, frozen = make_boost("out_nn")
    params = params | {"decode": {"kernel": jnp.zeros_like(params["decode"]["kernel"])}}
    skip = tokens() @ np.asarray(params["skip"]["kernel"])
    assert (skip > 0.1).any()
    assert (skip < -0.1).any()
    assert_close(apply(params, frozen, tokens()), np.where(skip > 0, skip, 0.01 * skip))


@pytest.mark.parametrize("kind", VARIANTS)
def test_only_out_nn_has_skip_weights(kind: str) -> None:
    _, params, frozen = make_boost(kind)
    assert set(params) == {"encode", "decode"} | ({"skip"} if kind == "out_nn" else set())
    assert set(frozen) == ({"block"} if kind in WITH_LAYER else set())


@pytest.mark.parametrize("kind", VARIANTS)
def test_kind_and_block_must_go_together(kind: str) -> None:
    def boost() -> Boost:
        common = dict(dtype=jnp.float32, rngs=make_rngs(0))
        switches = dict(rope=False, causal=False, path="auto")
        wrong = None if kind in WITH_LAYER else LlamaBlock(CONFIG, depth=1, **common)
        return Boost(kind, width=WIDTH, block_width=CONFIG.width, block=wrong, **switches, **common)

    with pytest.raises(ValueError, match=f"(?s){kind!r}.*do not go together"):
        nnx.eval_shape(boost)


def test_defaults_are_the_papers_and_the_width_comes_from_the_block() -> None:
    block = nnx.eval_shape(lambda: freeze(LlamaBlock(CONFIG, depth=1, dtype=jnp.float32, rngs=make_rngs(0))))
    boost = nnx.eval_shape(lambda: Boost("rllm", width=WIDTH, block=block, rngs=make_rngs(0)))
    assert boost.encode.kernel.shape == (WIDTH, CONFIG.width)
    assert (boost.rope, boost.causal, boost.path) == (False, False, "auto")
    with pytest.raises(ValueError, match=f"block_width 7 is not the block's width {CONFIG.width}"):
        nnx.eval_shape(lambda: Boost("rllm", width=WIDTH, block=block, block_width=7, rngs=make_rngs(0)))


def test_a_kind_without_layers_needs_a_block_width() -> None:
    boost = nnx.eval_shape(lambda: Boost("mlp", width=WIDTH, block_width=7, rngs=make_rngs(0)))
    assert boost.encode.kernel.shape == (WIDTH, 7)
    with pytest.raises(ValueError, match="'mlp' has no LLaMA layers: give its hidden width as block_width"):
        Boost("mlp", width=WIDTH, rngs=make_rngs(0))


def test_unknown_kind_names_the_known() -> None:
    with pytest.raises(ValueError, match="boost kind 'none' is unknown, valid: rllm, out, hybrid"):
        Boost("none", width=WIDTH, rngs=make_rngs(0))
