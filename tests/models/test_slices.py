"""2D encoders on slices of volumes: which slices, how they stand, and how they are pooled, against numpy and torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from jaxboost.models import classifier
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.classifier import BoostSpec
from jaxboost.models.frozen import merge, split, statistics
from jaxboost.models.llama import FAMILIES
from jaxboost.models.resnet import ResNet
from jaxboost.models.rngs import make_rngs
from jaxboost.models.slices import GATE_WIDTH, GatedPool, Slices, positions, sliced
from jaxboost.models.vit import ViT
from tests.models.parity import assert_close, normal, randomise

SIDE, SIZE = 6, 8
OPTIONS: dict[str, Any] = dict(dtype=jnp.float32)
ROWS = {
    "vit": Backbone(
        encoder=ViT, ndim=2, arguments=dict(patch=4, width=8, depth=2, heads=2, mlp_width=16), head_eps=1e-2
    ),
    "resnet": Backbone(
        encoder=ResNet,
        ndim=2,
        arguments=dict(block="basic", depths=(1,), convolution="2d", base_width=4),
        head_eps=None,
    ),
}


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in ROWS.items():
        monkeypatch.setitem(BACKBONES, name, row)


def made(backbone: str, slices: Slices, kind: str = "none", **changes: Any) -> tuple[Any, ...]:
    """The parts of a classifier of volumes with no weight at its initial value."""
    spec = BoostSpec(kind=kind, config=FAMILIES["llama-tiny"])
    options: dict[str, Any] = dict(classes=3, image_size=SIDE, mean=(0.2,), std=(0.5,), dtype=jnp.float32, **changes)
    # Shapes alone: a start that is drawn costs a compilation for each shape.
    model = nnx.eval_shape(lambda: classifier.build(backbone, boost=spec, slices=slices, rngs=make_rngs(0), **options))
    graphdef, params, frozen, stats = split(model)
    # Positive, as variances are.
    drawn = jax.tree.map(lambda x: np.exp(0.3 * normal(x.shape, 3)), stats)
    return graphdef, randomise(params, 5), randomise(frozen, 6), drawn


def volumes(count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, SIDE, 1), np.uint8)


def by_hand(volume: np.ndarray, slices: Slices) -> list[np.ndarray]:
    found = []
    for axis in slices.axes:
        for number in positions(SIDE, slices.count):
            image = Image.fromarray(np.take(volume[..., 0], number, axis))
            found.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., np.newaxis])
    return found


def test_positions() -> None:
    assert [positions(28, count) for count in (1, 2, 4)] == [[14], [7, 21], [3, 10, 17, 24]]
    assert positions(5, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0)])
def test_views_are_the_slices_as_pillow_resizes_them(axes: tuple[int, ...]) -> None:
    slices = Slices(count=2, axes=axes, size=SIZE)
    encoder = nnx.eval_shape(lambda: sliced(ROWS["vit"], slices).build(image_size=SIDE, **OPTIONS, rngs=make_rngs(0)))
    expected = np.array([by_hand(volume, slices) for volume in volumes()])
    found = np.asarray(jax.jit(encoder.views)(volumes()))
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    # One level where a value is halfway between two.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 0.01


@pytest.mark.parametrize("backbone", ["vit", "resnet"])
def test_token_of_a_slice_is_the_encoders_feature(backbone: str) -> None:
    """CLS after the norm, or the pooled feature; the head reads their mean."""
    slices = Slices(count=2, size=SIZE)
    graphdef, *weights = made(backbone, slices)

    @jax.jit
    def run(weights: Any, x: jax.Array) -> Any:
        model = merge(graphdef, *weights)
        one = model.encoder.encoder
        images = model.encoder.views(x).reshape(-1, SIZE, SIZE, 1)
        pixels = jnp.broadcast_to((images / 255 - 0.2) / 0.5, (*images.shape[:-1], 3))
        feature = one(pixels)[:, 0]
        return feature if model.encoder.norm is None else model.encoder.norm(feature), model.features(x), model(x)

    tokens, features, logits = run(weights, volumes())
    assert_close(features, np.asarray(tokens).reshape(2, slices.total, -1).mean(1))
    assert logits.shape == (2, 3)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_gated_pool_is_torchs() -> None:
    """Equation 9 of Ilse et al. 2018."""
    x = normal((2, 5, 8), 2)
    graphdef, params, *_ = split(nnx.eval_shape(lambda: GatedPool(8, dtype=jnp.float32, rngs=make_rngs(0))))
    params = jax.tree.map(lambda leaf: normal(leaf.shape, 4), params)
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == {
        "content": (8, GATE_WIDTH),
        "gate": (8, GATE_WIDTH),
        "score": (GATE_WIDTH, 1),
    }
    found = jax.jit(lambda params: merge(graphdef, params, {})(x))(params)
    v, u, w = (torch.from_numpy(np.array(params[name]["kernel"])) for name in ("content", "gate", "score"))
    h = torch.from_numpy(x)
    weights = torch.softmax((torch.tanh(h @ v) * torch.sigmoid(h @ u)) @ w, dim=1)
    assert_close(found, (weights * h).sum(1, keepdim=True))
    assert float(weights.max()) > 0.5


def test_attention_pools_the_tokens_and_is_trained() -> None:
    graphdef, params, frozen, stats = made("vit", Slices(count=2, size=SIZE, pooling="attention"), frozen=True)
    assert set(params) == {"pool", "head"}

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        model = merge(graphdef, params, frozen, stats)
        tokens = model.encode(x)
        loss = lambda params: merge(graphdef, params, frozen, stats)(tokens).sum()  # noqa: E731
        return tokens, model.pool(tokens), model.features(x), model.features(tokens), jax.grad(loss)(params)

    tokens, pooled, features, from_tokens, gradients = run(params, volumes())
    assert tokens.shape == (2, 6, 8)
    assert_close(features, pooled[:, 0])
    assert_close(from_tokens, features)
    assert all(float(np.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["pool"]))


def test_booster_takes_the_slices_as_tokens() -> None:
    """An encoder of images without tokens has those of slices; the head reads the mean of what the booster makes."""
    graphdef, *weights = made("resnet", Slices(count=2), "rllm")

    @jax.jit
    def run(weights: Any, x: jax.Array) -> Any:
        model = merge(graphdef, *weights)
        return model.features(x), model.boost(model.encode(x))

    features, boosted = run(weights, volumes())
    assert boosted.shape == (2, 6, 4)
    assert_close(features, boosted.mean(1))


def test_frozen_encoder_computes_as_in_evaluation() -> None:
    """Batch norms of a trained one take the statistics of the slices, and change their own."""
    key = jax.random.key(0)
    for frozen in (True, False):
        graphdef, *weights = made("resnet", Slices(count=2), frozen=frozen)

        @jax.jit
        def run(weights: Any, x: jax.Array, graphdef: Any = graphdef) -> Any:
            model = merge(graphdef, *weights)
            return model(x), model(x, key=key), statistics(model)

        evaluated, trained, stats = run(weights, volumes())
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (stats, weights[2])), strict=True)]
        assert all(same) == frozen
        assert np.array_equal(evaluated, trained) == frozen
