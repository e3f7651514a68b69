"""Each operation of a step against the host's, with the same choices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxboost.data.pipeline import rand_augment as host
from jaxboost.data.pipeline import resize as host_resize
from jaxboost.data.pipeline.augment import ROTATIONS, crop_box, rotate, translate
from jaxboost.models import resample
from jaxboost.training.on_device import pictures, rand_augment, volumes
from tests.data.natural_images import natural_images

FILTERS = {resample.BICUBIC: Image.Resampling.BICUBIC, resample.BILINEAR: Image.Resampling.BILINEAR}
SIDE = 44


def as_picture(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def as_array(picture, channels):
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def assert_near(found, expected, *, share=0.02):
    """At most one grey level apart, and that for few pixels: where a value is at the edge of two levels."""
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    apart = np.abs(np.asarray(found, int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() <= share


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "rgb"])
def image(request):
    return np.stack(list(natural_images(request.param, (SIDE, SIDE), seed=3)), axis=-1)


@pytest.mark.parametrize(("side", "size"), [(28, 70), (70, 28), (33, 20), (20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize(side, size, channels):
    stored = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8)
    assert_near(jax.jit(resample.resize, static_argnums=1)(stored, size), host_resize.resize(stored, size))


@pytest.mark.parametrize("number", FILTERS)
def test_crop_and_resize(image, number):
    crop = jax.jit(resample.crop_resize_and_flip, static_argnums=4)
    flip = jax.jit(pictures.flip)
    for left, upper, width, height in [
        (0, 0, SIDE, SIDE),
        (3, 9, 17, 31),
        (20, 1, 24, 5),
        (7, 7, 1, 30),
        (9, 4, 30, 30),
    ]:
        part = as_picture(image).crop((left, upper, left + width, upper + height))
        # x first: from version 13 on Pillow chooses the order itself.
        expected = part.resize((30, height), FILTERS[number]).resize((30, 30), FILTERS[number])
        flips = np.array([width % 2 == 0, height % 2 == 1])
        found = flip(crop(image, np.array([left, upper, width, height]), number, flips, 30), flips)
        # Bilinear weights of simple ratios give many values halfway between two levels.
        assert_near(found, as_array(expected, image.shape[-1]), share=0.1 if number else 0.02)


def test_boxes_are_drawn_as_on_the_host():
    side, options = 50, dict(scale=(0.3, 1.0), ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    expected = np.array([crop_box(side, rng, **options) for _ in range(4000)])
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(jax.jit(jax.vmap(functools.partial(pictures.draw_box, side=side, **options)))(keys))
    left, upper, width, height = found.T
    assert (found >= 0).all()
    assert (left + width <= side).all()
    assert (upper + height <= side).all()
    sides = np.stack([expected[:, 2] - expected[:, 0], expected[:, 3] - expected[:, 1]])
    for ours, theirs in (((left, upper), expected[:, :2].T), ((width, height), sides)):
        np.testing.assert_allclose(np.mean(ours, 1), np.mean(theirs, 1), atol=0.6)
        np.testing.assert_allclose(np.std(ours, 1), np.std(theirs, 1), atol=0.5)


@pytest.mark.parametrize(("scale", "ratio"), [((1.0, 1.0), (3.0, 3.0)), ((1.0, 1.0), (0.2, 0.2))])
def test_a_box_that_never_fits_is_the_largest_centre_crop(scale, ratio):
    left, upper, right, lower = crop_box(50, np.random.default_rng(0), scale=scale, ratio=ratio)
    found = jax.jit(functools.partial(pictures.draw_box, side=50, scale=scale, ratio=ratio))(jax.random.key(0))
    assert found.tolist() == [left, upper, right - left, lower - upper]


@pytest.mark.parametrize("factor", [0.0, 0.35, 1.0, 1.7])
@pytest.mark.parametrize(
    ("ours", "enhancer"),
    [
        (pictures.brightness, ImageEnhance.Brightness),
        (pictures.contrast, ImageEnhance.Contrast),
        (pictures.saturation, ImageEnhance.Color),
        (pictures.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements(image, ours, enhancer, factor):
    expected = as_array(enhancer(as_picture(image)).enhance(factor), image.shape[-1])
    assert_near(jax.jit(ours)(image, jnp.float32(factor)), expected)


def test_jitter_is_in_the_order_that_was_drawn(image):
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for order, factors in (((2, 0, 1), (1.3, 0.6, 1.2)), ((1, 2, 0), (0.7, 1.4, 1.1))):
        picture = as_picture(image)
        for number, factor in zip(order, factors, strict=True):
            picture = changes[number](picture).enhance(factor)
        found = jax.jit(pictures.jitter)(image, np.array(order), np.array(factors, np.float32))
        # A level of one change may be two of the next.
        assert np.abs(np.asarray(found, int) - as_array(picture, image.shape[-1])).max() <= 2
    draw = jax.jit(jax.vmap(functools.partial(pictures.draw_jitter, strength=0.4)))
    orders, factors = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    assert len(np.unique(orders, axis=0)) == 6
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_flips(image, across, down):
    expected = image[:: -1 if down else 1, :: -1 if across else 1]
    np.testing.assert_array_equal(jax.jit(pictures.flip)(image, np.array([across, down])), expected)


@functools.partial(jax.jit, static_argnames="increasing")
def applied(image, number, level, sign, filter_number, increasing):
    value = rand_augment.argument(number, level, sign, increasing=increasing)
    return rand_augment.apply(image, rand_augment.Operation(number, np.array(True), value, filter_number)), value


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", host.OPERATIONS)
def test_each_operation_of_rand_augment(image, name, increasing):
    number = host.OPERATIONS.index(name)
    for level, negative, filter_number in ((0.0, False, 0), (3.3, True, 1), (7.2, False, 0), (10.0, True, 0)):
        value = host.argument(name, level, negative=negative, increasing=increasing)
        expected = host.apply(name, as_picture(image), value, FILTERS[filter_number])
        found, ours = applied(image, number, level, -1.0 if negative else 1.0, filter_number, increasing)
        assert value is None or ours == pytest.approx(value, rel=1e-6)
        assert_near(found, as_array(expected, image.shape[-1]))


@pytest.mark.parametrize("values", [[7], [3, 200], [0, 255], list(range(256))], ids=len)
@pytest.mark.parametrize("name", ["Equalize", "AutoContrast", "Contrast"])
def test_tables_of_unusual_histograms(name, values):
    image = np.random.default_rng(0).choice(np.array(values, np.uint8), (SIDE, SIDE, 1))
    expected = host.apply(name, as_picture(image), 1.4)
    operation = rand_augment.Operation(
        *map(jax.device_put, (np.int32(host.OPERATIONS.index(name)), np.array(True), np.float32(1.4), np.int32(0)))
    )
    assert_near(jax.jit(rand_augment.apply)(image, operation), as_array(expected, 1), share=0.05)


def test_operations_are_drawn_as_on_the_host():
    draw = functools.partial(rand_augment.draw, magnitude=9.0, std=0.5, increasing=True, interpolation="random")
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 14000)))
    counts = np.bincount(found.number, minlength=len(host.OPERATIONS))
    assert counts.min() > 850
    assert counts.max() < 1150
    assert found.applied.mean() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(found.filter).tolist()) == set(FILTERS)
    rotations = found.value[found.number == host.OPERATIONS.index("Rotate")]
    assert (rotations < 0).mean() == pytest.approx(0.5, abs=0.06)
    # A magnitude of 9 +- 0.5, clipped at 10.
    levels = np.clip(np.random.default_rng(0).normal(9, 0.5, 100_000), 0, 10) * 3
    assert np.abs(rotations).mean() == pytest.approx(levels.mean(), abs=0.15)
    assert np.abs(rotations).std() == pytest.approx(levels.std(), abs=0.1)


def moves(rotation=0, flips=(False,) * 3, shift=(0,) * 3):
    return volumes.Moves(np.int32(rotation), np.array(flips), np.array(shift, np.int32))


def test_moves_of_volumes():
    volume = np.random.default_rng(0).integers(1, 256, (5, 5, 5, 1), np.uint8)
    move = jax.jit(volumes.move)
    for number in range(len(ROTATIONS)):
        flips, shift = (number % 2 == 0, number % 3 == 0, number % 5 == 0), (number % 3 - 1, -(number % 4), number % 2)
        expected = np.flip(rotate(volume, number), [axis for axis in range(3) if flips[axis]])
        np.testing.assert_array_equal(move(volume, moves(number, flips, shift)), translate(expected, shift))
    assert not np.asarray(move(volume, moves(shift=(5, 0, 0)))).any()
    noise = np.array([-300.0, -0.4, 0.6, 300.0], np.float32).reshape(4, 1, 1, 1)
    assert volumes.add_noise(jnp.full((4, 1, 1, 1), 100, jnp.uint8), noise).ravel().tolist() == [0, 100, 101, 255]
