"""What models start from: the distributions, and layers that differ from each other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxboost.models.boost import Boost
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.frozen import split
from jaxboost.models.llama import LlamaConfig
from jaxboost.models.rngs import make_rngs

CONFIG = LlamaConfig(width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, eps=1e-6, rope_base=10000.0)


@functools.cache
def initialiser(backbone: str) -> Callable[[int], tuple[dict[str, Any], dict[str, Any]]]:
    def initialise(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        model = build(
            backbone,
            boost=BoostSpec(kind="rllm", config=CONFIG, depth=2),
            classes=3,
            image_size=28,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            dtype=jnp.float32,
            rngs=make_rngs(jax.random.key(seed)),
        )
        return split(model)[1:3]

    return jax.jit(initialise)


@functools.cache
def weights(backbone: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trainable and frozen weights of a boosted classifier, as initialised under jit."""
    return jax.tree.map(np.asarray, initialiser(backbone)(seed))


def assert_torch_default(linear: dict[str, np.ndarray]) -> None:
    """U(-b, b) with b = 1/sqrt(fan_in), for kernel and bias."""
    bound = linear["kernel"].shape[-2] ** -0.5
    for name, value in linear.items():
        assert np.abs(value).max() <= bound, name
        assert 0.8 * bound / 3**0.5 < value.std() < 1.2 * bound / 3**0.5, name


def assert_normal(value: np.ndarray, scale: float) -> None:
    assert 0.85 * scale < value.std() < 1.15 * scale
    assert np.abs(value).max() > 2 * scale
    assert abs(value.mean()) < 5 * scale / value.size**0.5


def linear_maps(transformer: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Those of the stacked blocks and of the last."""
    names = [("attention", "qkv"), ("attention", "out"), ("mlp", "up"), ("mlp", "down")]
    return [transformer[blocks][part][name] for blocks in ("blocks", "last") for part, name in names]


def test_volume_encoder_starts_as_torch_does() -> None:
    params, _ = weights("vit3d_tiny")
    encoder = params["encoder"]
    for linear in (encoder["embedding"]["linear"], *linear_maps(encoder["transformer"])):
        assert_torch_default(linear)
    bound = params["head"]["kernel"].shape[0] ** -0.5
    assert 0 < np.abs(params["head"]["bias"]).max() <= bound
    assert 0.9 * bound < np.abs(params["head"]["kernel"]).max() <= bound
    assert_normal(encoder["positions"], 1)
    assert_normal(encoder["cls"], 1)


def test_image_encoder_starts_as_vit_does() -> None:
    params, _ = weights("vit_tiny")
    encoder = params["encoder"]
    for linear in (encoder["embedding"], *linear_maps(encoder["transformer"]), params["head"]):
        assert_normal(linear["kernel"], 0.02)
        assert not linear["bias"].any()
    assert_normal(encoder["positions"], 0.02)
    assert_normal(encoder["cls"], 0.02)


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit3d_tiny"])
def test_boost_and_norms(backbone: str) -> None:
    params, frozen = weights(backbone)
    for adapter in ("encode", "decode"):
        assert params["boost"][adapter].keys() == {"kernel"}
        assert_torch_default(params["boost"][adapter])
    blocks = params["encoder"]["transformer"].values()
    for norm in (params["head_norm"], *(block[name] for block in blocks for name in ("attention_norm", "mlp_norm"))):
        assert (norm["scale"] == 1).all()
        assert not norm["bias"].any()
    block = frozen["boost"]["block"]
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        assert_normal(block["layers"][name], 0.02)
    for norm in (block["final_norm"], block["layers"]["attention_norm"], block["layers"]["mlp_norm"]):
        assert (norm == 1).all()


def test_adapters_may_start_as_in_the_2d_code() -> None:
    rngs, options = make_rngs(0), dict(width=128, block_width=512, block=None, rope=False, causal=False, path="auto")
    boost = Boost("mlp", init="normal", dtype=jnp.float32, rngs=rngs, **options)
    for adapter in (boost.encode, boost.decode):
        assert_normal(np.asarray(adapter.kernel[...]), 0.02)
    # An unknown name is no default.
    with pytest.raises(ValueError, match=r"boost init 'torch' is unknown, valid: uniform, normal"):
        Boost("mlp", init="torch", dtype=jnp.float32, rngs=rngs, **options)


def test_every_random_array_differs_between_layers_and_seeds() -> None:
    params, frozen = weights("vit3d_tiny")
    stack, last = params["encoder"]["transformer"]["blocks"], params["encoder"]["transformer"]["last"]
    pairs = [(stack[part], jax.tree.map(lambda a: a[None], last[part])) for part in ("attention", "mlp")]
    matrices = {key: value for key, value in frozen["boost"]["block"]["layers"].items() if value.ndim == 3}
    pairs.append(tuple(jax.tree.map(lambda a, i=i: a[i], matrices) for i in range(2)))
    for one, other in pairs:
        for leaf, changed in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert (leaf != changed).mean() > 0.99
    layers = frozen["boost"]["block"]["layers"]
    assert (layers["k"] != layers["v"]).mean() > 0.99
    assert (layers["gate"] != layers["up"]).mean() > 0.99
    other, other_frozen = weights("vit3d_tiny", seed=1)
    for leaf, changed in zip(*map(jax.tree.leaves, ((params, frozen), (other, other_frozen))), strict=True):
        if leaf.std() > 0:
            assert (leaf != changed).mean() > 0.99
