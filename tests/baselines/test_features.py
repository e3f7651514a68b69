"""Trivial features by hand, and embeddings against the classifier's own features."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost import systems
from jaxboost.baselines import embeddings, features
from jaxboost.config import load_config
from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.errors import UserError
from jaxboost.models import classifier, embedder
from jaxboost.models.classifier import BoostSpec
from jaxboost.models.frozen import Frozen
from jaxboost.models.layers import normalize_pixels
from jaxboost.systems import start
from jaxboost.training import step


def named(row: np.ndarray, ndim: int, channels: int) -> dict[str, float]:
    return dict(zip(features.names(ndim, channels), row.tolist(), strict=True))


def test_a_small_picture_by_hand():
    picture = np.zeros((1, 3, 3, 1), np.uint8)
    # An L of three bright pixels in a corner, one pixel just below half of the range, the others black.
    picture[0, 0, 0] = picture[0, 1, 0] = picture[0, 1, 1] = 240
    picture[0, 2, 2] = 127
    (row,) = features.trivial(picture, 1)
    found = named(row, 2, 1)
    values = [240, 0, 0, 240, 240, 0, 0, 0, 127]
    assert found["channel 0 mean"] == pytest.approx(sum(values) / 9)
    assert found["channel 0 sd"] == pytest.approx(np.std(values))
    assert (found["channel 0 min"], found["channel 0 max"]) == (0, 240)
    bins = {number: found[f"channel 0 bin {number}"] for number in range(16)}
    assert {number: value for number, value in bins.items() if value} == pytest.approx({0: 5 / 9, 7: 1 / 9, 15: 3 / 9})
    # The L has 3 pixels with 4 faces each, of which 2 pairs touch.
    assert (found["size"], found["surface"]) == (3, 3 * 4 - 2 * 2)
    assert (found["extent 0"], found["extent 1"]) == (2, 2)


def test_a_small_shape_by_hand():
    volumes = np.zeros((2, 4, 4, 4, 1), np.uint8)
    volumes[0, 1:3, 0:4, 2, 0] = 255
    empty, box = named(features.trivial(volumes, 1)[1], 3, 1), named(features.trivial(volumes, 1)[0], 3, 1)
    assert (box["size"], box["surface"]) == (8, 2 * (2 * 4 + 2 * 1 + 4 * 1))
    assert [box[f"extent {axis}"] for axis in range(3)] == [2, 4, 1]
    assert (empty["size"], empty["surface"], empty["extent 0"]) == (0, 0, 0)
    assert box["channel 0 bin 15"] == 8 / 64


def test_channels():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (2, 5, 5, 3), np.uint8)
    row = named(features.trivial(colours, 3)[1], 2, 3)
    assert len(row) == 3 * 20 + 4
    assert row["channel 2 mean"] == pytest.approx(colours[1, ..., 2].mean())
    assert row["size"] == (colours[1].mean(-1) > 127.5).sum()
    grey = colours[..., :1]
    np.testing.assert_array_equal(features.trivial(grey, 3), features.trivial(np.repeat(grey, 3, -1), 3))
    with pytest.raises(UserError, match="3 channels, and the baseline was fitted to grey ones"):
        features.trivial(colours, 1)


PIXELS = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
MODEL = dict(image_size=14, mean=PIXELS[0], std=PIXELS[1], dtype=jnp.dtype("float32"))


@nnx.jit
def embedding_and_tokens(model, images):
    """The embeddings (n, 2W), and all normalised tokens (n, N, W)."""
    pixels = normalize_pixels(images, MODEL["mean"], MODEL["std"])
    return model(images), model.head_norm(model.encoder(pixels))


def test_embedding_is_cls_and_mean_of_the_patches_after_the_norm():
    """The first half is what the classifier without a booster gives its head, with the same weights."""
    ours = embedder.build("vit_tiny", encoder_arguments={}, rngs=nnx.Rngs(0), **MODEL)
    plain = classifier.build("vit_tiny", boost=BoostSpec(kind="none"), classes=2, rngs=nnx.Rngs(1), **MODEL)
    # Not the identity, as a fresh norm is.
    ours.head_norm.scale = Frozen(jnp.linspace(0.5, 2, 128))
    plain.encoder, plain.head_norm = ours.encoder, ours.head_norm
    images = np.random.default_rng(0).integers(0, 256, (3, 14, 14, 3), np.uint8)
    found, tokens = embedding_and_tokens(ours, images)
    assert (found.shape, found.dtype) == ((3, 256), jnp.float32)
    cls = nnx.jit(lambda model, images: model.features(images))(plain, images)
    np.testing.assert_allclose(found[:, :128], cls, rtol=1e-5, atol=1e-6)
    assert tokens.shape == (3, 1 + 4, 128)
    np.testing.assert_allclose(found[:, 128:], np.asarray(tokens)[:, 1:].mean(1), rtol=1e-5, atol=1e-6)


def test_registers_are_left_out():
    arguments = dict(width=32, depth=1, heads=2, mlp_width=32, registers=4)
    ours = embedder.build("vit_tiny", encoder_arguments=arguments, rngs=nnx.Rngs(0), **MODEL)
    found, tokens = embedding_and_tokens(ours, np.random.default_rng(0).integers(0, 256, (2, 14, 14, 1), np.uint8))
    assert tokens.shape == (2, 1 + 4 + 4, 32)
    np.testing.assert_allclose(found[:, 32:], np.asarray(tokens)[:, 5:].mean(1), rtol=1e-5, atol=1e-6)


def test_embedding_of_a_pooling_encoder_is_its_feature():
    arguments = dict(patch=7, width=32, depth=1, heads=2, mlp_width=32)
    ours = embedder.build("siglip_b16", encoder_arguments=arguments, rngs=nnx.Rngs(0), **MODEL)
    images = np.random.default_rng(0).integers(0, 256, (2, 14, 14, 1), np.uint8)
    found, feature = nnx.jit(lambda model, x: (model(x), model.encoder(normalize_pixels(x, *PIXELS))))(ours, images)
    assert (found.shape, found.dtype) == ((2, 32), jnp.float32)
    np.testing.assert_array_equal(found, feature[:, 0])
    assert np.ptp(found, axis=0).all()


@pytest.fixture(scope="module")
def encoder():
    """A compiled tiny random encoder for 14 pixels, and the sharding of its batches."""
    config = load_config(
        "baseline:logistic", **{"model.backbone": "vit_tiny", "model.weights": "random", "model.image_size": 14}
    )
    info = DatasetInfo(name="x", task="binary-class", classes=("a", "b"), channels=1, ndim=3, size=8)
    system = systems.prepare(config, info)
    replicated, by_batch = step.make_mesh()
    *weights, _ = start.initialise(system, seed=0, replicated=replicated)
    return embeddings.make_encode(system, tuple(weights), replicated), by_batch


def test_middle_views_by_hand():
    volume = np.arange(4**3, dtype=np.uint8).reshape(1, 4, 4, 4, 1)
    views = embeddings.views_of(volume, 1)
    assert views.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(views[0], volume[0, 2])
    np.testing.assert_array_equal(views[1], volume[0, :, 2])
    np.testing.assert_array_equal(views[2], volume[0, :, :, 2])


def test_several_views_by_hand():
    volumes = np.arange(2 * 6**3, dtype=np.uint8).reshape(2, 6, 6, 6, 1)
    views = embeddings.views_of(volumes, 2).reshape(2, 3, 2, 6, 6, 1)
    for volume, found in zip(volumes, views, strict=True):
        # The middles of two halves of six slices.
        np.testing.assert_array_equal(found[0], volume[[1, 4]])
        np.testing.assert_array_equal(found[1], [volume[:, 1], volume[:, 4]])
        np.testing.assert_array_equal(found[2], [volume[:, :, 1], volume[:, :, 4]])


def test_volumes_are_the_mean_of_their_views(encoder, tmp_path):
    encode, by_batch = encoder
    rng = np.random.default_rng(0)
    volumes = {name: rng.integers(0, 256, (count, 8, 8, 8, 1), np.uint8) for name, count in (("train", 5), ("test", 3))}
    splits = {name: Split(images=found, labels=np.zeros((len(found), 1), int)) for name, found in volumes.items()}
    info = DatasetInfo(name="x", task="binary-class", classes=("a", "b"), channels=1, ndim=3, size=8)
    one = dict(batch_size=4, image_size=14, by_batch=by_batch, slices=0)
    options = one | dict(slices=1)
    dataset = Dataset(info=info, splits=splits, baselines={})
    found = embeddings.of_dataset(dataset, encode, folder=tmp_path, key="one", **options)
    assert {name: part.shape for name, part in found.items()} == {"train": (5, 256), "test": (3, 256)}
    for name, split in volumes.items():
        by_hand = [
            np.mean(
                [
                    embeddings.of_images(slices[np.newaxis], encode, **one)[0]
                    for slices in (volume[4], volume[:, 4], volume[:, :, 4])
                ],
                axis=0,
            )
            for volume in split
        ]
        np.testing.assert_allclose(found[name], by_hand, atol=1e-5)
        np.testing.assert_allclose(embeddings.of_images(split, encode, **options), found[name], atol=1e-5)
    # From the file, without the encoder; another encoder has another file.
    again = embeddings.of_dataset(dataset, lambda _: 1 / 0, folder=tmp_path, key="one", **options)
    np.testing.assert_array_equal(again["train"], found["train"])
    with pytest.raises(ZeroDivisionError):
        embeddings.of_dataset(dataset, lambda _: 1 / 0, folder=tmp_path, key="two", **options)


def test_a_batch_does_not_change_an_embedding(encoder):
    encode, by_batch = encoder
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    options = dict(image_size=14, by_batch=by_batch, slices=0)
    found = embeddings.of_images(images, encode, batch_size=2, **options)
    np.testing.assert_allclose(embeddings.of_images(images[2:], encode, batch_size=8, **options), found[2:], atol=1e-5)
