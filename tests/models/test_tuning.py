"""What of a frozen encoder is trained: LoRA against a torch restatement, also merged; the last block by its names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.models import tuning
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.convnext import ConvNeXt
from jaxboost.models.frozen import freeze, merge, split, statistics
from jaxboost.models.resnet import ResNet
from jaxboost.models.rngs import make_rngs
from jaxboost.models.swin import Swin
from jaxboost.models.transformer import MATRICES
from jaxboost.models.vit import ViT
from tests.models.parity import (
    assert_close,
    assert_states_close,
    channels_first,
    cotangent,
    normal,
    randomise,
    relative_change,
    torch_pull_back,
)
from tests.reference import lora, rllm, weights

RANK, ALPHA = 3, 6.0
SIZE, PATCH = 8, 4
SHAPE: dict[str, Any] = dict(patch=PATCH, width=12, depth=3, heads=3, mlp_width=20)


def with_lora(encoder: type, names: tuple[str, ...], **arguments: Any) -> tuple[nnx.GraphDef, Any, Any]:
    """Graph, trained and frozen weights of a frozen encoder with LoRA; all weights random."""

    def make() -> Any:
        made = encoder(channels=3, dtype=jnp.float32, rngs=make_rngs(0), **arguments)
        tuning.add_lora(freeze(made), names, rank=RANK, alpha=ALPHA, rngs=make_rngs(0))
        return made

    graphdef, params, frozen, _ = split(nnx.eval_shape(make))
    return graphdef, randomise(params, 1), _drawn(frozen)


def _drawn(tree: Any) -> Any:
    """Random weights of any kind of encoder, none at its initial value."""
    rng = np.random.default_rng(2)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key != "kernel":
            return (1 if path[-1].key in ("scale", "layer_scale") else 0) + 0.3 * noise
        return noise / np.float32(np.sqrt(np.prod(leaf.shape[-2:-1] if leaf.ndim < 4 else leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(draw, tree)


@pytest.mark.parametrize("names", [("qkv",), MATRICES])
def test_lora_of_a_vit_equals_the_restatement(names: tuple[str, ...]) -> None:
    """Every token, and the gradients of the pixels and of all trained weights."""
    graphdef, params, frozen = with_lora(ViT, names, image_size=SIZE, **SHAPE)
    frozen = randomise(frozen, 2)
    vit = lora.add_to_vit(rllm.ViT(image_size=SIZE, channels=3, **SHAPE), names, RANK, ALPHA)
    weights.copy(lora.vit_state(weights.join(params, frozen)), vit)
    x = normal((2, SIZE, SIZE, 3), 3)
    theirs, their_x, their_gradients = torch_pull_back(vit, channels_first(x))

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        ours, pull = jax.vjp(lambda params, x: merge(graphdef, params, frozen)(x), params, x)
        none = jax.tree.map(jnp.zeros_like, params)
        return ours, pull(jnp.asarray(cotangent(ours.shape))), merge(graphdef, none, frozen)(x)

    ours, (gradients, of_x), without = run(params, jnp.asarray(x))
    assert_close(ours, theirs)
    assert_close(channels_first(of_x), their_x)
    assert_states_close(lora.vit_state(gradients), their_gradients)
    assert relative_change(without, ours) > 0.05


@pytest.mark.parametrize(
    ("encoder", "names", "arguments"),
    [
        # Without a bias of the keys, and with registers, the first token alone.
        (ViT, MATRICES, SHAPE | dict(image_size=SIZE, registers=2, rope=100.0, key_bias=False)),
        (Swin, MATRICES, dict(image_size=8, patch=2, width=8, depths=(2, 1), heads=(2, 2), window=2)),
        (ConvNeXt, ("up", "down"), dict(image_size=16, depths=(1, 1), widths=(8, 12))),
    ],
)
def test_merged_lora_gives_the_same_tokens(encoder: type, names: tuple[str, ...], arguments: dict[str, Any]) -> None:
    graphdef, params, frozen = with_lora(encoder, names, **arguments)
    x = jnp.asarray(normal((2, *[arguments["image_size"]] * 2, 3), 4))

    @jax.jit
    def run(params: Any, frozen: Any) -> Any:
        model = merge(graphdef, params, frozen)
        matrices = tuning.merged_lora(model)
        plain = tuning.with_merged(model, matrices)
        assert not jax.tree.leaves(split(plain)[1])
        none = merge(graphdef, jax.tree.map(jnp.zeros_like, params), frozen)
        return [each(x, queries=1) for each in (plain, model, none)], matrices

    (merged, beside, without), matrices = run(params, frozen)
    assert_close(merged, beside)
    assert relative_change(without, beside) > 0.01
    assert len(matrices) == len(jax.tree.leaves(params)) / 2


def test_other_names_are_refused() -> None:
    for names in ((), ("q",)):
        with pytest.raises(ValueError, match="the encoder's are qkv, out, up, down"):
            with_lora(ViT, names, image_size=SIZE, **SHAPE)
    with pytest.raises(ValueError, match="lora_rank: 3 is above the rank of a matrix of 2 x 6: set it to at most 2"):
        with_lora(ViT, ("qkv",), image_size=SIZE, **SHAPE | dict(width=2, heads=1))


# Backbone -> image size, other arguments, its last block and what follows it in the encoder, and before the head.
LAST: dict[str, tuple[int, dict[str, Any], tuple[str, ...]]] = {
    "vit_tiny": (28, {}, ("encoder.transformer.last", "head_norm")),
    "siglip_b16": (32, {}, ("encoder.transformer.last", "encoder.norm", "encoder.pool")),
    "swin_tiny": (
        8,
        dict(depths=(1, 2), heads=(1, 1), window=2, patch=2, width=8),
        ("encoder.stages.1.blocks.1", "encoder.norm"),
    ),
    "convnext_atto": (16, dict(depths=(1, 2), widths=(8, 12)), ("encoder.stages.1.blocks.1", "head_norm")),
    "resnet18": (8, dict(depths=(1, 1)), ("encoder.blocks.1",)),
    "efficientnet_lite0": (8, dict(depths=(1,) * 7), ("encoder.blocks.6", "encoder.head")),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_block_is_what_is_trained(name: str) -> None:
    size, arguments, places = LAST[name]
    common: dict[str, Any] = dict(classes=2, image_size=size, mean=(0.0,), std=(1.0,), dtype=jnp.float32)
    common |= dict(encoder_arguments=arguments)

    def names(**given: Any) -> tuple[set[str], set[str]]:
        spec = BoostSpec(kind="none")
        model = nnx.eval_shape(lambda: build(name, boost=spec, rngs=make_rngs(0), **common, **given))
        _, params, frozen, _ = split(model)
        return _names(params), _names(frozen)

    every, _ = names()
    trained, frozen = names(frozen=True, last_block=True)
    assert trained | frozen == every
    assert not trained & frozen
    starts = tuple(f"{place}." for place in (*places, "head"))
    assert trained == {each for each in every if each.startswith(starts)}
    assert all(any(each.startswith(start) for each in trained) for start in starts)


def _names(tree: Any) -> set[str]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(entry.key) for entry in path) for path, _ in paths}


def test_frozen_batch_norms_keep_their_statistics() -> None:
    """Below the last block a training pass is an evaluation; in the last block the statistics follow the batch."""

    def make() -> Any:
        shape: dict[str, Any] = dict(block="basic", depths=(1, 1), convolution="2d", base_width=4)
        made = ResNet(image_size=8, channels=3, dtype=jnp.float32, rngs=make_rngs(0), **shape)
        return freeze(made, but=tuning.last_block(made))

    graphdef, params, frozen, stats = split(make())

    @jax.jit
    def run(x: jax.Array) -> tuple[Any, Any]:
        model = merge(graphdef, params, frozen, stats)
        model(x, key=jax.random.key(0))
        return statistics(model)["blocks"], statistics(model)["stem"]

    blocks, stem = run(jnp.asarray(normal((4, 8, 8, 3), 5)))
    jax.tree.map(np.testing.assert_array_equal, (blocks[0], stem), (stats["blocks"][0], stats["stem"]))
    changed = jax.tree.map(lambda old, new: not np.allclose(old, new), stats["blocks"][1], blocks[1])
    assert all(jax.tree.leaves(changed))
