"""Every encoder keeps the protocol of `models.encoder`, and its traits are true; from shapes alone."""

import collections
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.classifier import BoostSpec, Classifier, build
from jaxboost.models.frozen import split
from jaxboost.models.image_llm import ENCODERS
from jaxboost.models.layers import Linear
from jaxboost.models.llama import FAMILIES
from jaxboost.models.rngs import make_rngs
from jaxboost.models.transformer import Transformer
from jaxboost.training import layer_decay

# The row itself takes seconds to trace.
SMALL_CT = dataclasses.replace(BACKBONES["resnet152_ct"], arguments=dict(depths=(1, 1)))
ROWS = BACKBONES | ENCODERS | {"resnet_ct_small": SMALL_CT}
NAMES = [
    "vit_tiny",
    "clip_vit_b32",
    "dinov2_s14",
    "dinov3_s16",
    "siglip_b16",
    "vit3d_tiny",
    "vivit_tiny",
    "resnet18",
    "resnet18_acs",
    "resnet_ct_small",
    "conv14",
    "convnext_atto",
    "convnextv2_atto",
    "swin_tiny",
    "efficientnet_lite0",
]
SIZE = 28
SIDES = {"convnext": 64, "swin": 224}
KEY = jax.random.key(0)


def size_of(name: str) -> int:
    """SIZE, or two tokens along a side."""
    if not ROWS[name].traits.cls_first:
        return SIDES[ROWS[name].traits.names]
    return 2 * ROWS[name].arguments.get("patch", 14) if ROWS[name].ndim == 2 else SIZE


@functools.cache
def make(name: str) -> Any:
    return nnx.eval_shape(lambda: ROWS[name].build(image_size=size_of(name), dtype=jnp.float32, rngs=make_rngs(0)))


def images(name: str) -> jax.Array:
    return jnp.zeros((2, *[size_of(name)] * ROWS[name].ndim, 3))


def test_every_encoder_is_tried_below() -> None:
    assert {row.encoder for row in ROWS.values()} == {ROWS[name].encoder for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_gives_the_tokens_that_it_says(name: str) -> None:
    encoder, x = make(name), images(name)
    assert encoder.traits.gives_tokens == (encoder.tokens > 1)
    for queries in (None, 1):
        for key in (None, KEY):
            found = nnx.eval_shape(lambda encoder, q=queries, k=key: encoder(x, queries=q, key=k), encoder)
            assert found.shape == (2, queries or encoder.tokens, encoder.width)


@pytest.mark.parametrize("name", NAMES)
def test_traits_are_true(name: str) -> None:
    encoder, traits = make(name), ROWS[name].traits
    stacks = {stack.name: stack.followers for stack in traits.stacks}
    assert set(stacks) == {name for name, child in vars(encoder).items() if isinstance(child, Transformer | nnx.List)}
    linear = {
        path[-1] for path, node in nnx.iter_modules(encoder) if path and path[0] in stacks and isinstance(node, Linear)
    }
    # What merges a Swin's patches is before a block.
    assert set(traits.matrices) == linear - {"reduction"}
    assert all(hasattr(encoder, follower) for followers in stacks.values() for follower in followers)
    assert traits.has_statistics == bool(split(encoder)[3])
    arguments = inspect.signature(ROWS[name].encoder.__init__).parameters
    assert traits.has_stochastic_depth == ("drop_path" in arguments)
    assert {key: arguments[key].default for key in traits.defaults} == dict(traits.defaults)
    assert traits.has_first_tokens == hasattr(encoder, "first_tokens")
    if traits.has_first_tokens:
        first = nnx.eval_shape(lambda encoder: encoder.first_tokens(images(name)), encoder)
        assert first.shape == (encoder.depth, 2, encoder.width)
        qkv = nnx.eval_shape(lambda encoder: encoder.qkv(), encoder)
        assert qkv.kernel.shape == (encoder.depth, encoder.width, 3 * encoder.width)
        assert qkv.bias.shape == (encoder.depth, 3 * encoder.width)


@pytest.mark.parametrize(
    ("name", "size", "theirs"),
    [
        ("vit_ti16", 224, "vit_tiny_patch16_224"),
        ("convnext_atto", 64, "convnext_atto"),
        ("swin_tiny", 224, "swin_tiny_patch4_window7_224"),
        ("resnet50", 224, "resnet50"),
        ("efficientnet_lite0", 64, "efficientnet_lite0"),
    ],
)
def test_layer_decay_is_that_of_timm(name: str, size: int, theirs: str) -> None:
    """The number of weights with each factor."""
    timm, optim = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    encoder = nnx.eval_shape(lambda: ROWS[name].build(image_size=size, dtype=jnp.float32, rngs=make_rngs(0)))
    weights = split(encoder)[1]
    found: collections.Counter[float] = collections.Counter()
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), {"encoder": weights})
    factors = layer_decay.factors(zeros, 0.5)["encoder"]
    for leaf, factor in zip(jax.tree.leaves(weights), jax.tree.leaves(factors), strict=True):
        for each in np.ravel(factor):
            found[float(each)] += leaf.size // np.size(factor)
    with torch.device("meta"):
        model = timm.create_model(theirs)
    expected: collections.Counter[float] = collections.Counter()
    for group in optim.param_groups_layer_decay(model, layer_decay=0.5):
        expected[group["lr_scale"]] += sum(each.numel() for each in group["params"])
    # Ours has no head; timm counts a ViT's final norm as part of its last block.
    del expected[1.0]
    if name == "vit_ti16":
        expected[0.5] -= 2 * 192
    assert found == expected


@pytest.mark.parametrize("name", ["vit_tiny", "siglip_b16", "vit3d_tiny", "vivit_tiny"])
def test_layer_decay_counts_every_block(name: str) -> None:
    params = {"encoder": split(make(name))[1]}
    depth = sum(getattr(make(name), stack.name).depth for stack in ROWS[name].traits.stacks)
    factors = layer_decay.factors(params, 0.5)["encoder"]
    assert factors["embedding"] == jax.tree.map(lambda _: 0.5 ** (depth + 1), params["encoder"]["embedding"])
    last = ROWS[name].traits.stacks[-1].name
    assert jax.tree.leaves(factors[last]["last"])[0] == 0.5
    followers = ROWS[name].traits.stacks[-1].followers
    assert {leaf for follower in followers for leaf in jax.tree.leaves(factors[follower])} <= {0.5}


def classifier(name: str, kind: str = "none", dtype: Any = jnp.float32) -> Classifier:
    spec = BoostSpec(kind=kind, config=FAMILIES["llama-tiny"])
    common: dict[str, Any] = dict(classes=3, image_size=SIZE, mean=(0.0,), std=(1.0,), dtype=dtype)
    return build(name, boost=spec, rngs=make_rngs(0), **common)


@pytest.mark.parametrize(("name", "kind"), [("vit_tiny", "rllm"), ("vivit_tiny", "none"), ("resnet18", "none")])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_features_are_float32_of_the_encoders_width(name: str, kind: str, dtype: Any) -> None:
    model = nnx.eval_shape(lambda: classifier(name, kind, dtype))
    x = jnp.zeros((2, *[SIZE] * BACKBONES[name].ndim, 1), jnp.uint8)
    features = nnx.eval_shape(lambda model: model.features(x), model)
    assert (features.shape, features.dtype) == ((2, model.encoder.width), jnp.float32)
    assert model.tokens == model.encoder.tokens


def test_the_head_of_the_features_gives_the_logits() -> None:
    model = classifier("vit_tiny", "rllm")
    x = jax.random.randint(jax.random.key(1), (2, SIZE, SIZE, 1), 0, 256).astype(jnp.uint8)
    assert (model.head(model.features(x)) == model(x)).all()
    precomputed = model.precompute()
    assert jnp.allclose(model.features(x, precomputed), model.features(x), atol=1e-5)
