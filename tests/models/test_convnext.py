"""What the parity with timm (`tests/convert/test_whole.py`) leaves open: edges, and the mean as the feature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from timm.layers.grn import GlobalResponseNorm

from jaxboost.config import load_config, validation
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import Boost, check_path
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.convnext import ConvNeXt, ResponseNorm
from jaxboost.models.layers import torch_init
from jaxboost.models.llama import FAMILIES as LLAMAS
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.rngs import make_rngs
from jaxboost.models.trained_layer import TrainedLayer
from tests.models.parity import assert_close, normal, randomised, relative_change

LLAMA = LLAMAS["llama-tiny"]


def small(**changes: Any) -> ConvNeXt:
    arguments: dict[str, Any] = dict(image_size=64, channels=3, depths=(1, 2), widths=(8, 12), dtype=jnp.float32)
    return randomised(lambda: ConvNeXt(**arguments | changes, rngs=make_rngs(0)), 0)


def test_response_norm_of_a_channel_that_is_zero_everywhere() -> None:
    """Its norm has no derivative there; torch takes 0, and no gradient is NaN."""
    x = normal((2, 3, 3, 5), 1)
    x[0, ..., 2] = 0
    scale, bias = normal((5,), 2), normal((5,), 3)
    theirs = GlobalResponseNorm(5)
    theirs.load_state_dict({"weight": torch.from_numpy(scale), "bias": torch.from_numpy(bias)})
    given = torch.tensor(x, requires_grad=True)
    theirs(given).pow(2).sum().backward()
    norm = ResponseNorm(5)
    norm.scale[...], norm.bias[...] = scale, bias
    assert_close(jax.jit(norm)(x), theirs(given).detach())
    assert_close(jax.jit(jax.grad(lambda x: jnp.square(norm(x)).sum()))(x), given.grad)


def test_stochastic_depth() -> None:
    """The first block is never left out; the last one is for some examples, and counts double for the others."""
    encoder = small(depths=(2,), widths=(8,), drop_path=0.5, layer_scale=False, image_size=4)
    x = np.broadcast_to(normal((1, 4, 4, 3), 1), (64, 4, 4, 3))

    @nnx.jit
    def run(encoder: ConvNeXt, x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        first, last = encoder.stages[0].blocks
        between = first(encoder.stem(x))
        return between, last(between), encoder(x, key=key), encoder(x)

    between, both, found, whole = map(np.asarray, run(encoder, x, jax.random.key(0)))
    branch = both - between
    found = found.reshape(between.shape)
    dropped = np.isclose(found, between, atol=1e-6).all((1, 2, 3))
    kept = np.isclose(found, between + 2 * branch, atol=1e-5).all((1, 2, 3))
    assert (dropped ^ kept).all()
    assert 16 < dropped.sum() < 48
    assert_close(whole.reshape(between.shape), between + branch)


def test_images_without_a_token_are_refused() -> None:
    assert small(image_size=15, depths=(1, 1)).tokens == 1
    with pytest.raises(ValueError, match="images of 7 pixels give no token: give 8 or more"):
        small(image_size=7)
    (problem,) = validation.problems(changed("model.image_size=28"))
    assert problem == (
        "config field model.image_size: backbone convnext_tiny: images of 28 pixels give no token: give 32 or more"
    )


def changed(*overrides: str) -> Any:
    fields = {"model.backbone": "convnext_tiny", "model.image_size": 224}
    given = dict(override.split("=") for override in overrides)
    fields |= {name: int(value) if value.isdigit() else value for name, value in given.items()}
    return load_config("breastmnist_vits", **fields)


def test_paths_for_the_first_token_alone_are_refused() -> None:
    assert validation.problems(changed("boost.path=full")) == []
    for path in ("pooled", "absorbed"):
        (problem,) = validation.problems(changed(f"boost.path={path}"))
        assert problem.startswith(f"config field boost.path: {path} computes the first token alone, but this encoder")
        with pytest.raises(ValueError, match="has no CLS token and its head reads the mean of all tokens: choose full"):
            check_path(path, "rllm", rope=False, pool="mean")


@pytest.mark.parametrize("kind", ["rllm", "out_nn", "mlp_gelu", "layer"])
def test_head_reads_the_mean_of_the_boosted_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the norm; a booster boosts every token first."""
    row = BACKBONES["convnext_atto"]
    monkeypatch.setitem(
        BACKBONES,
        "small",
        type(row)(encoder=ConvNeXt, ndim=2, arguments=dict(depths=(1, 1), widths=(8, 12)), head_eps=1e-6),
    )
    common: dict[str, Any] = dict(classes=2, image_size=24, mean=(0.5,), std=(0.25,), dtype=jnp.float32)
    spec = BoostSpec(kind=kind, config=LLAMA)
    model = randomised(lambda: build("small", boost=spec, rngs=make_rngs(1), **common), 1)
    plain = randomised(lambda: build("small", boost=BoostSpec(kind="none"), rngs=make_rngs(1), **common), 1)
    plain.encoder = model.encoder
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 1), np.uint8)

    @nnx.jit
    def run(model: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        tokens = model.encode(images)
        boosted = model.boost(tokens)
        expected, of_first = model.head_norm(boosted.mean(1)), model.head_norm(boosted[:, 0])
        return tokens, expected, of_first, model.features(images, model.precompute()), model.features(tokens)

    tokens, expected, of_first, found, of_tokens = run(model, images)
    assert tokens.shape == (2, 9, 12)
    assert_close(found, expected)
    assert_close(of_tokens, expected)
    assert relative_change(found, of_first) > 1e-3

    @nnx.jit
    def run_plain(plain: Any, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, ...]:
        return plain.encode(images), plain.features(images), plain.head_norm(tokens.mean(1))

    encoded, features, expected = run_plain(plain, images, tokens)
    assert encoded.shape == (2, 1, 12)
    assert_close(features, expected)


def test_boosters_mean_over_real_tokens() -> None:
    x, mask = normal((2, 5, 12), 1), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)

    def make() -> Boost:
        block = LlamaBlock(LLAMA, depth=1, dtype=jnp.float32, rngs=make_rngs(0))
        return Boost("rllm", width=12, block=block, pool="mean", rngs=make_rngs(1))

    run = nnx.jit(lambda boost, *given: (boost.pooled(*given), boost(*given)))
    found, tokens = map(np.asarray, run(randomised(make, 0), x, mask))
    assert_close(found[0, 0], tokens[0, :3].mean(0))
    assert_close(found[1, 0], tokens[1].mean(0))
    layer = randomised(lambda: TrainedLayer(width=12, block_width=64, mean=True, init=torch_init, rngs=make_rngs(0)), 0)
    found, tokens = map(np.asarray, run(layer, x))
    assert_close(found[:, 0], tokens.mean(1))
