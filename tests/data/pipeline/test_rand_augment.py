"""RandAugment: each operation against torchvision or plain NumPy, and the distribution of draws."""

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from jaxboost.data.pipeline import rand_augment
from jaxboost.data.pipeline.rand_augment import FILL, OPERATIONS, apply, argument

SIDE = 20
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
MODES = {BICUBIC: InterpolationMode.BICUBIC, BILINEAR: InterpolationMode.BILINEAR}


def picture(mode):
    """Smooth and noisy parts with values 40 to 219, so that stretching the contrast has an effect."""
    pixels = np.random.default_rng(3).integers(40, 220, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:8] = np.linspace(40, 219, SIDE, dtype=np.uint8)[None, :, None]
    return Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])


def colour(mode):
    return list(FILL["RGB"]) if mode == "RGB" else [FILL["L"]]


both_modes = pytest.mark.parametrize("mode", ["L", "RGB"])
both_filters = pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])


@both_modes
@pytest.mark.parametrize(
    ("name", "value", "reference"),
    [
        ("AutoContrast", None, functional.autocontrast),
        ("Equalize", None, functional.equalize),
        ("Invert", None, functional.invert),
        ("Posterize", 3, lambda image: functional.posterize(image, 3)),
        ("Solarize", 100, lambda image: functional.solarize(image, 100)),
        ("Color", 1.7, lambda image: functional.adjust_saturation(image, 1.7)),
        ("Contrast", 0.4, lambda image: functional.adjust_contrast(image, 0.4)),
        ("Brightness", 1.3, lambda image: functional.adjust_brightness(image, 1.3)),
        ("Sharpness", 1.9, lambda image: functional.adjust_sharpness(image, 1.9)),
    ],
)
def test_operations_on_values_match_torchvision(name, value, reference, mode):
    found, given = apply(name, picture(mode), value), picture(mode)
    assert found.mode == mode
    np.testing.assert_array_equal(np.asarray(found), np.asarray(reference(given)))
    # Grey values have no saturation.
    assert np.array_equal(np.asarray(found), np.asarray(given)) == (name == "Color" and mode == "L")


@both_modes
def test_operations_on_values_by_their_formulas(mode):
    given = picture(mode)
    values = np.asarray(given).astype(int)
    for name, value, expected in (
        ("Invert", None, 255 - values),
        ("Posterize", 4, values // 16 * 16),
        ("Posterize", 0, 0 * values),
        ("Solarize", 100, np.where(values < 100, values, 255 - values)),
        ("Solarize", 256, values),
        ("SolarizeAdd", 99, np.where(values < 128, np.minimum(values + 99, 255), values)),
        ("SolarizeAdd", 0, values),
    ):
        np.testing.assert_array_equal(np.asarray(apply(name, given, value)), expected, err_msg=f"{name} {value}")


@both_modes
@both_filters
@pytest.mark.parametrize("degrees", [27.0, -13.5])
def test_rotation_matches_torchvision(mode, resample, degrees):
    given = picture(mode)
    expected = functional.rotate(given, degrees, MODES[resample], fill=colour(mode))
    found = np.asarray(apply("Rotate", given, degrees, resample))
    np.testing.assert_array_equal(found, np.asarray(expected))
    # A corner comes from outside the image.
    np.testing.assert_array_equal(np.atleast_1d(found[0, 0]), colour(mode))


@both_modes
@both_filters
@pytest.mark.parametrize(("name", "axis"), [("ShearX", 0), ("ShearY", 1)])
@pytest.mark.parametrize("value", [0.27, -0.3])
def test_shear_matches_torchvision(mode, resample, name, axis, value):
    given = picture(mode)
    angles = [0.0, 0.0]
    angles[axis] = math.degrees(math.atan(value))
    expected = functional.affine(
        given, 0.0, [0, 0], 1.0, angles, interpolation=MODES[resample], fill=colour(mode), center=[0, 0]
    )
    found = np.asarray(apply(name, given, value, resample)).astype(int)
    # torchvision converts the shear to an angle and back, so the last bit may change a rounding.
    assert np.abs(found - np.asarray(expected)).max() <= 1
    assert np.abs(found - np.asarray(given)).max() > 20


@both_modes
@both_filters
@pytest.mark.parametrize(("name", "axis"), [("TranslateXRel", 1), ("TranslateYRel", 0)])
@pytest.mark.parametrize("pixels", [5, -3])
def test_translation_is_relative_to_the_side(mode, resample, name, axis, pixels):
    given = np.asarray(picture(mode))
    expected = np.roll(given, -pixels, axis)
    outside = [slice(None), slice(None)]
    outside[axis] = slice(SIDE - pixels, None) if pixels > 0 else slice(0, -pixels)
    expected[tuple(outside)] = FILL[mode]
    found = apply(name, Image.fromarray(given), pixels / SIDE, resample)
    np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("level", [0.0, 4.7, 9.3, 10.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_grey_equals_each_channel_of_rgb(monkeypatch, name, level):
    monkeypatch.setitem(FILL, "RGB", (FILL["L"],) * 3)
    grey = picture("L")
    coloured = Image.merge("RGB", [grey] * 3)
    for negative, increasing in itertools.product((False, True), repeat=2):
        value = argument(name, level, negative=negative, increasing=increasing)
        found = np.asarray(apply(name, grey, value))
        for channel in np.moveaxis(np.asarray(apply(name, coloured, value)), -1, 0):
            np.testing.assert_array_equal(channel, found)


def test_the_fill_is_imagenets_mean():
    assert FILL["RGB"] == tuple(round(255 * mean) for mean in (0.485, 0.456, 0.406))
    assert Image.new("RGB", (1, 1), FILL["RGB"]).convert("L").getpixel((0, 0)) == FILL["L"]


# The arguments of timm 0.4.12 by magnitude, for "rand-m9" and, increasing, for "rand-m9-inc1".
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("Rotate",), {0: 0.0, 5: 15.0, 9: 27.0, 10: 30.0}),
        (("ShearX", "ShearY"), {0: 0.0, 5: 0.15, 9: 0.27, 10: 0.3}),
        (("TranslateXRel", "TranslateYRel"), {0: 0.0, 5: 0.225, 9: 0.405, 10: 0.45}),
    ],
)
def test_arguments_with_a_sign(names, values, increasing):
    for name, (level, value) in itertools.product(names, values.items()):
        assert argument(name, level, negative=False, increasing=increasing) == pytest.approx(value)
        assert argument(name, level, negative=True, increasing=increasing) == pytest.approx(-value)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("name", "plain", "increasing"),
    [
        ("Posterize", {0: 0, 5: 2, 8.9: 3, 10: 4}, {0: 4, 5: 2, 8.9: 1, 10: 0}),
        ("Solarize", {0: 0, 5: 128, 9: 230, 10: 256}, {0: 256, 5: 128, 9: 26, 10: 0}),
        ("SolarizeAdd", {0: 0, 5: 55, 9.99: 109, 10: 110}, {0: 0, 5: 55, 9.99: 109, 10: 110}),
        *(
            (name, dict.fromkeys((0, 5, 10)), dict.fromkeys((0, 5, 10)))
            for name in ("AutoContrast", "Equalize", "Invert")
        ),
    ],
)
def test_arguments_without_a_sign(name, plain, increasing, negative):
    for level, value in plain.items():
        assert argument(name, level, negative=negative, increasing=False) == value
    for level, value in increasing.items():
        assert argument(name, level, negative=negative, increasing=True) == value


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_factors_of_enhancements(name):
    for level, plain, stronger, weaker in ((0, 0.1, 1.0, 1.0), (5, 1.0, 1.45, 0.55), (10, 1.9, 1.9, 0.1)):
        for negative in (False, True):
            assert argument(name, level, negative=negative, increasing=False) == pytest.approx(plain)
        assert argument(name, level, negative=False, increasing=True) == pytest.approx(stronger)
        assert argument(name, level, negative=True, increasing=True) == pytest.approx(weaker)
        assert argument(name, level, negative=True, increasing=True) >= 0.1


def test_there_are_timms_fifteen_operations():
    assert set(OPERATIONS) == {
        *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
        *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
    }
    assert len(OPERATIONS) == 15


def settings(**changes):
    return {"ops": 2, "magnitude": 9.0, "std": 0.5, "increasing": False, "filters": (BILINEAR, BICUBIC), **changes}


def draw(monkeypatch, pictures, **changes):
    """The operations that `rand_augment` applies to each of the images: (name, argument, filter)."""
    rng, applied = np.random.default_rng(0), []
    monkeypatch.setattr(
        rand_augment, "apply", lambda name, _, value, resample: applied[-1].append((name, value, resample))
    )
    for _ in range(pictures):
        applied.append([])
        rand_augment.rand_augment(None, rng, **settings(**changes))
    return applied


def test_distribution_of_draws(monkeypatch):
    """15 equally frequent operations, probability 0.5, N(9, 0.5) clipped at 10, both signs and both filters."""
    pictures = 12_000
    drawn = draw(monkeypatch, pictures)
    counts = collections.Counter(map(len, drawn))
    assert scipy.stats.chisquare([counts[n] for n in range(3)], pictures * np.array([0.25, 0.5, 0.25])).pvalue > 0.01
    applied = list(itertools.chain.from_iterable(drawn))
    names = collections.Counter(name for name, _, _ in applied)
    assert set(names) == set(OPERATIONS)
    assert scipy.stats.chisquare(list(names.values())).pvalue > 0.01
    filters = sum(resample == BICUBIC for _, _, resample in applied)
    assert scipy.stats.binomtest(filters, len(applied)).pvalue > 0.01
    degrees = np.array([value for name, value, _ in applied if name == "Rotate"])
    assert scipy.stats.binomtest(int((degrees < 0).sum()), len(degrees)).pvalue > 0.01
    levels = np.abs(degrees) / 3
    assert scipy.stats.binomtest(int((levels >= 10).sum()), len(levels), scipy.stats.norm.sf(2)).pvalue > 0.01
    below = scipy.stats.truncnorm(-np.inf, 2, loc=9, scale=0.5)
    assert scipy.stats.kstest(levels[levels < 10], below.cdf).pvalue > 0.01


def test_without_deviation_the_magnitude_is_constant(monkeypatch):
    values = {
        abs(value)
        for ops in draw(monkeypatch, 300, std=0.0, magnitude=6.0)
        for name, value, _ in ops
        if name == "Rotate"
    }
    assert values == {18.0}


def test_magnitudes_are_clipped(monkeypatch):
    drawn = draw(monkeypatch, 500, magnitude=0.0, std=3.0)
    degrees = [abs(value) for ops in drawn for name, value, _ in ops if name == "Rotate"]
    assert min(degrees) == 0.0
    assert 0 < max(degrees) <= 30
    assert draw(monkeypatch, 2, ops=0) == [[], []]


@both_modes
def test_the_generator_is_the_only_source_of_randomness(mode):
    given = picture(mode)
    first, again, other = (
        [np.asarray(rand_augment.rand_augment(given, rng, **settings())) for _ in range(8)]
        for rng in map(np.random.default_rng, (1, 1, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert {image.shape for image in first} == {np.asarray(given).shape}
