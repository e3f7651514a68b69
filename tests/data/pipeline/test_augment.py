"""Augmentation of images and volumes: results against torchvision or plain NumPy, and the distribution of draws."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional

from jaxboost.config import table
from jaxboost.data.pipeline.augment import (
    Augment,
    augment_image,
    augment_volume,
    crop_box,
    jitter,
    rotate,
    translate,
)
from jaxboost.errors import UserError

SIDE = 12
both = pytest.mark.parametrize("channels", [1, 3])


def image(channels, side=SIDE):
    return np.random.default_rng(5).integers(0, 256, (side, side, channels), dtype=np.uint8)


def volume(side=4):
    return np.random.default_rng(6).permutation(side**3).astype(np.uint8).reshape(side, side, side, 1)


def as_picture(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def as_pixels(picture):
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("config", [table.get_config(), table.get_pneumollm_config()])
def test_the_config_section_has_the_fields_and_their_defaults(config):
    assert config.augment.to_dict() == dataclasses.asdict(Augment())
    assert Augment(**config.augment) == Augment()
    assert Augment().random_fields == ()


def test_random_fields_are_those_that_change_images():
    assert Augment(resize=16, repeats=3, interpolation="random", rand_augment_increasing=True).random_fields == ()
    assert Augment(flip=0.5, crop_scale=(0.5, 1.0)).random_fields == ("crop_scale", "flip")
    assert Augment(noise=0.1, volume_flips=True).random_fields == ("volume_flips", "noise")


@both
def test_defaults_change_nothing(channels):
    given = image(channels)
    np.testing.assert_array_equal(augment_image(given, rng(), Augment(), image_size=SIDE), given)
    np.testing.assert_array_equal(augment_volume(volume(), rng(), Augment()), volume())


@both
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_crop_matches_torchvision(channels, interpolation):
    augment = Augment(crop_scale=(0.2, 0.9), interpolation=interpolation)
    used = set()
    for seed in range(20):
        left, upper, right, lower = crop_box(SIDE, rng(seed), scale=augment.crop_scale, ratio=augment.crop_ratio)
        found = augment_image(image(channels), rng(seed), augment, image_size=17)
        assert (found.shape, found.dtype) == ((17, 17, channels), np.uint8)
        box = upper, left, lower - upper, right - left
        expected = {
            mode: as_pixels(functional.resized_crop(as_picture(image(channels)), *box, [17, 17], mode))
            for mode in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR)
        }
        used |= {mode for mode, pixels in expected.items() if np.array_equal(pixels, found)}
    assert used == ({InterpolationMode.BICUBIC} if interpolation == "bicubic" else set(expected))


def fractions_and_ratios(boxes, side):
    sizes = np.array([(right - left, lower - upper) for left, upper, right, lower in boxes], float)
    return sizes.prod(1) / side**2, np.log(sizes[:, 0] / sizes[:, 1])


def test_crops_that_always_fit_have_uniform_areas_ratios_and_positions():
    side, generator = 2000, rng(1)
    boxes = [crop_box(side, generator, scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3)) for _ in range(1500)]
    areas, ratios = fractions_and_ratios(boxes, side)
    assert scipy.stats.kstest(areas, scipy.stats.uniform(0.1, 0.4).cdf).pvalue > 0.01
    low = math.log(3 / 4)
    assert scipy.stats.kstest(ratios, scipy.stats.uniform(low, -2 * low).cdf).pvalue > 0.01
    for near, far in ((0, 2), (1, 3)):
        places = [box[near] / (side - box[far] + box[near]) for box in boxes]
        assert scipy.stats.kstest(places, scipy.stats.uniform.cdf).pvalue > 0.01


def test_crops_have_the_distribution_of_torchvision():
    """With the usual ranges, where some attempts do not fit."""
    side, generator = 500, rng(2)
    torch.manual_seed(0)
    blank = torch.zeros(1, side, side)
    theirs = []
    for _ in range(1500):
        upper, left, height, width = RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((left, upper, left + width, upper + height))
    ours = [crop_box(side, generator, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) for _ in range(1500)]
    for mine, other in zip(fractions_and_ratios(ours, side), fractions_and_ratios(theirs, side), strict=True):
        assert scipy.stats.ks_2samp(mine, other).pvalue > 0.01
    assert min(min(box) for box in ours) >= 0
    assert max(max(box) for box in ours) <= side


@pytest.mark.parametrize("ratio", [(2, 3), (1 / 3, 1 / 2), (3 / 4, 4 / 3)])
def test_a_crop_that_never_fits_is_in_the_centre(ratio):
    # More than the whole area never fits. The checks refuse it, but it tests the fallback.
    upper, left, height, width = RandomResizedCrop.get_params(torch.zeros(1, 21, 21), [2.0, 2.0], list(ratio))
    assert crop_box(21, rng(), scale=(2.0, 2.0), ratio=ratio) == (left, upper, left + width, upper + height)


def test_a_crop_has_at_least_one_pixel():
    for seed in range(50):
        left, upper, right, lower = crop_box(3, rng(seed), scale=(1e-6, 0.1), ratio=(0.01, 100))
        assert 0 <= left < right <= 3
        assert 0 <= upper < lower <= 3


@both
@pytest.mark.parametrize(("field", "axis"), [("flip", 1), ("vertical_flip", 0)])
def test_flips(channels, field, axis):
    given = image(channels)
    always = augment_image(given, rng(), Augment(**{field: 1.0}), image_size=SIDE)
    np.testing.assert_array_equal(always, np.flip(given, axis))
    generator, flipped = rng(3), 0
    for _ in range(1000):
        found = augment_image(given, generator, Augment(**{field: 0.3}), image_size=SIDE)
        flipped += (is_flipped := np.array_equal(found, always))
        assert is_flipped or np.array_equal(found, given)
    assert scipy.stats.binomtest(flipped, 1000, 0.3).pvalue > 0.01


class Script:
    """A random generator that returns the given order and factors."""

    def __init__(self, order, factors):
        self.order, self.factors, self.ranges = order, list(factors), []

    def permutation(self, count):
        assert count == 3
        return self.order

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.factors.pop(0)


@both
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_jitter_matches_torchvision(channels, order):
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    expected = picture = as_picture(image(channels))
    factors = (0.7, 1.35, 0.9)
    for number, factor in zip(order, factors, strict=True):
        expected = adjust[number](expected, factor)
    script = Script(order, factors)
    np.testing.assert_array_equal(as_pixels(jitter(picture, script, 0.4)), as_pixels(expected))
    assert script.ranges == [(0.6, 1.4)] * 3


@both
def test_augment_image_applies_jitter(channels):
    found = augment_image(image(channels), rng(4), Augment(color_jitter=0.4), image_size=SIDE)
    # The flips draw two numbers, even with probability 0.
    generator = rng(4)
    generator.random(2)
    generator.integers(15, size=0)
    np.testing.assert_array_equal(found, as_pixels(jitter(as_picture(image(channels)), generator, 0.4)))
    assert not np.array_equal(found, image(channels))


@both
def test_all_2d_fields_together(channels):
    augment = Augment(
        **{"crop_scale": (0.08, 1.0), "flip": 0.5, "vertical_flip": 0.5, "color_jitter": 0.4},
        **{"rand_augment_ops": 2, "rand_augment_increasing": True, "interpolation": "random"},
    )
    first, again = (
        [augment_image(image(channels), generator, augment, image_size=16) for _ in range(30)]
        for generator in (rng(7), rng(7))
    )
    np.testing.assert_array_equal(first, again)
    assert {(found.shape, found.dtype) for found in first} == {((16, 16, channels), np.dtype(np.uint8))}
    assert len({found.tobytes() for found in first}) == 30


@pytest.mark.parametrize(("increasing", "std"), [(True, 0.0), (False, 2.0)])
def test_rand_augment_receives_its_fields(monkeypatch, increasing, std):
    seen = []
    monkeypatch.setattr(
        "jaxboost.data.pipeline.augment.rand_augment.rand_augment",
        lambda picture, _, **given: seen.append(given) or picture,
    )
    augment = Augment(
        rand_augment_ops=3, rand_augment_magnitude=4.0, rand_augment_std=std, rand_augment_increasing=increasing
    )
    augment_image(image(1), rng(), augment, image_size=SIDE)
    bicubic = (Image.Resampling.BICUBIC,)
    assert seen == [{"ops": 3, "magnitude": 4.0, "std": std, "increasing": increasing, "filters": bicubic}]


def orientations(given):
    """All orientations that `numpy.rot90` reaches, by their bytes."""
    reached, fresh = {}, [given]
    while fresh:
        current = fresh.pop()
        if current.tobytes() not in reached:
            reached[current.tobytes()] = current
            fresh += [np.rot90(current, axes=axes) for axes in ((0, 1), (0, 2), (1, 2))]
    return reached


def test_rotations_are_the_24_orientations():
    reached = orientations(volume())
    assert len(reached) == 24
    assert {rotate(volume(), number).tobytes() for number in range(24)} == set(reached)
    np.testing.assert_array_equal(rotate(volume(), 0), volume())


def test_rotations_are_equally_frequent():
    generator, counts = rng(8), dict.fromkeys(orientations(volume()), 0)
    for _ in range(2400):
        counts[augment_volume(volume(), generator, Augment(volume_rotations=True)).tobytes()] += 1
    assert len(counts) == 24
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 0.01


def test_volume_flips_are_equally_frequent():
    expected = {
        np.flip(volume(), axes).tobytes() for count in range(4) for axes in itertools.combinations(range(3), count)
    }
    generator, counts = rng(9), dict.fromkeys(expected, 0)
    for _ in range(1600):
        counts[augment_volume(volume(), generator, Augment(volume_flips=True)).tobytes()] += 1
    assert len(counts) == 8
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 0.01


@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 0, -2), (-3, 2, 1), (4, 0, 0), (0, -4, 4)])
def test_translation(offsets):
    expected = volume()
    for axis, by in enumerate(offsets):
        expected = np.roll(expected, by, axis)
        outside = [slice(None)] * 3
        outside[axis] = slice(0, by) if by >= 0 else slice(by, None)
        expected[tuple(outside)] = 0
    found = translate(volume(), offsets)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_shifts_are_uniform_over_their_range():
    solid = np.full((7, 7, 7, 1), 255, np.uint8)
    generator, offsets = rng(10), []
    for _ in range(1000):
        found = augment_volume(solid, generator, Augment(shift=2))[..., 0] > 0
        rows = [np.flatnonzero(found.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        offsets.append([span[0] if span[0] else span[-1] - 6 for span in rows])
    for axis in np.array(offsets).T:
        values, counts = np.unique(axis, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_noise_is_normal_and_rounded():
    grey = np.full((30, 30, 30, 1), 128, np.uint8)
    found = augment_volume(grey, rng(11), Augment(noise=0.05))
    assert (found.dtype, found.shape) == (np.uint8, grey.shape)
    # Rounding adds 1/12 to the variance.
    deviations = found.astype(float) - 128
    expected = math.hypot(0.05 * 255, 12**-0.5)
    assert abs(deviations.mean()) < 4 * expected / 27_000**0.5
    assert abs(deviations.std() - expected) < 4 * expected / 54_000**0.5
    edges = np.arange(-30, 31) + 0.5
    assert (
        np.abs((deviations[..., None] < edges).mean((0, 1, 2, 3)) - scipy.stats.norm.cdf(edges, 0, 12.75)).max() < 0.01
    )


def test_noise_stays_in_the_range():
    for value in (0, 255):
        found = augment_volume(np.full((9, 9, 9, 1), value, np.uint8), rng(12), Augment(noise=0.2))
        assert 0.4 < (found == value).mean() < 0.6
        assert np.abs(found.astype(int) - value).max() < 5 * 51


def test_input_volumes_are_unchanged():
    given = volume()
    everything = Augment(volume_flips=True, volume_rotations=True, shift=1, noise=0.1)
    first, again = (
        [augment_volume(given, generator, everything) for _ in range(10)] for generator in (rng(13), rng(13))
    )
    np.testing.assert_array_equal(first, again)
    assert len({found.tobytes() for found in first}) == 10
    np.testing.assert_array_equal(given, volume())


FULL_2D = {
    **{"resize": 256, "crop_scale": (0.08, 1.0), "crop_ratio": (0.5, 2.0), "interpolation": "random", "flip": 0.5},
    **{"vertical_flip": 0.5, "color_jitter": 0.4, "rand_augment_ops": 2, "rand_augment_magnitude": 7.0},
    **{"rand_augment_std": 0.0, "rand_augment_increasing": True, "rgb": True},
}
FULL_3D = {"volume_flips": True, "volume_rotations": True, "shift": 2, "noise": 0.1}


def test_fields_for_other_dimensions_are_refused():
    assert {*FULL_2D, *FULL_3D, "repeats"} == {field.name for field in dataclasses.fields(Augment)}
    for ndim, own, other in ((2, FULL_2D, FULL_3D), (3, FULL_3D, FULL_2D)):
        Augment().check(ndim)
        Augment(**own, repeats=3).check(ndim)
        for name, value in other.items():
            message = (
                f"config field augment.{name}: {value!r} is for {5 - ndim}-D images, these are {ndim}-D: leave it at"
            )
            with pytest.raises(UserError) as raised:
                Augment(**{name: value}).check(ndim)
            assert str(raised.value) == f"{message} {getattr(Augment(), name)!r}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": (0.5, 1.5)}, "crop_scale: (0.5, 1.5) should be (low, high) with 0 < low <= high <= 1"),
        ({"crop_scale": (0.5,)}, "crop_scale: (0.5,) should be (low, high) with 0 < low <= high <= 1"),
        ({"crop_scale": (0.0, 0.5)}, "crop_scale: (0.0, 0.5) should be (low, high) with 0 < low <= high <= 1"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio: (2.0, 1.0) should be (low, high) with 0 < low <= high"),
        ({"crop_ratio": ()}, "crop_ratio: () should be (low, high) with 0 < low <= high"),
    ],
)
def test_ranges(changes, message):
    with pytest.raises(UserError) as raised:
        Augment(**changes).check(2)
    assert str(raised.value) == f"config field augment.{message}"


def test_source_tokens_cannot_be_augmented():
    Augment(resize=256, repeats=2).check_source_tokens()
    with pytest.raises(UserError) as raised:
        Augment(flip=0.5).check_source_tokens()
    assert str(raised.value) == (
        "config field augment.flip: 0.5 changes images, but the encoder that sees them is frozen and sees each only "
        "once: leave it at 0.0"
    )
    with pytest.raises(UserError, match=r"augment.crop_ratio: \(\) should be \(low, high\)"):
        Augment(crop_ratio=()).check_source_tokens()
