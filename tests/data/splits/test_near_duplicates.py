"""Near duplicates: found after every kind of change, and not among images of one modality."""

import functools
import io

import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageEnhance

from jaxboost.data.splits import dct, near_duplicates
from tests.data.natural_images import natural_images

COUNT, SIZE = 24, 32
WHOLE = ((0.0, 1.0), (0.0, 1.0))


def resized(pictures, size=SIZE):
    squares = [np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]
    images = np.stack(squares)
    return images if images.ndim == 4 else images[..., None]


def saved(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("L")


def cut(number, picture, width, height):
    """A crop of these fractions of the sides, at another position for each number."""
    rng = np.random.default_rng(number)
    wide, high = round(width * picture.width), round(height * picture.height)
    left, top = int(rng.integers(picture.width - wide + 1)), int(rng.integers(picture.height - high + 1))
    return picture.crop((left, top, left + wide, top + high))


@functools.cache
def pictures():
    return [Image.fromarray(image) for image in natural_images(COUNT, (96, 96), seed=0)]


COPIES = {
    "quality 50": (lambda number, picture: saved(picture, 50), ""),
    "half the size": (lambda number, picture: picture.resize((48, 48), Image.Resampling.BILINEAR), ""),
    "brighter": (lambda number, picture: ImageEnhance.Brightness(picture).enhance(1.1), ""),
    "darker": (lambda number, picture: ImageEnhance.Brightness(picture).enhance(0.9), ""),
    "less contrast": (lambda number, picture: ImageEnhance.Contrast(picture).enhance(0.7), ""),
    "mirrored": (lambda number, picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "mirrored or turned"),
    "turned": (lambda number, picture: picture.transpose(Image.Transpose.ROTATE_90), "mirrored or turned"),
    "turned the other way": (
        lambda number, picture: picture.transpose(Image.Transpose.ROTATE_270),
        "mirrored or turned",
    ),
    "inverted": (lambda number, picture: picture.point(lambda value: 255 - value), "inverted"),
    "cut to 90 %": (lambda number, picture: cut(number, picture, 0.9, 0.9), "one is a crop of the other"),
    "cut to 80 %": (lambda number, picture: cut(number, picture, 0.8, 0.8), "one is a crop of the other"),
    "cut to 75 %": (lambda number, picture: cut(number, picture, 0.75, 0.75), "one is a crop of the other"),
    "cut at the sides": (lambda number, picture: cut(number, picture, 0.75, 1), "one is a crop of the other"),
    "cut and saved": (
        lambda number, picture: saved(cut(number, picture, 0.8, 0.8).resize((64, 64)), 70),
        "one is a crop of the other",
    ),
}


def find(images, patients=None, splits=None):
    alone = np.arange(len(images))
    return near_duplicates.find(images, alone if patients is None else patients, alone if splits is None else splits)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(kind):
    change, how = COPIES[kind]
    copies = [change(number, picture) for number, picture in enumerate(pictures())]
    found = find(np.concatenate([resized(pictures()), resized(copies)]))
    assert found == near_duplicates.Search(tuple((number, number + COUNT, how) for number in range(COUNT)))


def test_a_crop_is_found_in_either_order():
    parts = [cut(number, picture, 0.8, 0.8) for number, picture in enumerate(pictures())]
    found = find(np.concatenate([resized(parts), resized(pictures())]))
    assert [pair[:2] for pair in found.pairs] == [(number, number + COUNT) for number in range(COUNT)]


def test_large_images_and_colours():
    colours = [Image.merge("RGB", [picture, pictures()[0], picture]) for picture in pictures()]
    copies = [cut(number, picture, 0.8, 0.8) for number, picture in enumerate(colours)]
    found = find(np.concatenate([resized(colours, 100), resized(copies, 100)]))
    assert {pair[:2] for pair in found.pairs} == {(number, number + COUNT) for number in range(COUNT)}


def test_common_anatomy_is_not_a_duplicate():
    # Their correlation is 0.8, that of a copy that is cropped elsewhere.
    images = natural_images(300, (SIZE, SIZE), seed=1, common=2.0)[..., None]
    flat = images.reshape(300, -1).astype(float)
    assert np.corrcoef(flat)[0, 1:].mean() > 0.75
    copies = resized([cut(number, Image.fromarray(images[number, ..., 0]), 0.9, 0.9) for number in range(5)])
    found = find(np.concatenate([images, copies]))
    assert [pair[:2] for pair in found.pairs] == [(number, number + 300) for number in range(5)]


def test_patients_and_splits():
    images = np.concatenate([resized(pictures()[:4])] * 2)
    assert [pair[:2] for pair in find(images).pairs] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    patients = np.array([0, 1, 2, 3, 0, 1, 4, 5])
    assert [pair[:2] for pair in find(images, patients=patients).pairs] == [(2, 6), (3, 7)]
    splits = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    assert [pair[:2] for pair in find(images, splits=splits).pairs] == [(1, 5), (2, 6)]
    # Patients that are connected already are not compared again.
    assert len(find(np.concatenate([images[:2]] * 5)).pairs) == 8


@pytest.mark.parametrize("size", [8, 16, SIZE])
def test_small_images(size):
    images = resized(pictures(), size)
    assert [pair[:2] for pair in find(np.concatenate([images, images[:3] // 2])).pairs] == [(0, 24), (1, 25), (2, 26)]


def test_empty_images():
    assert find(np.full((6, SIZE, SIZE, 1), 7, np.uint8)).pairs == ()
    assert find(np.zeros((6, 4, 4, 1), np.uint8)).pairs == ()
    assert find(resized(pictures()[:1])).pairs == ()


def test_volumes():
    volumes = natural_images(12, (28, 28, 28), seed=2)
    noise = np.random.default_rng(0).normal(0, 5, volumes.shape)
    copies = {
        "": np.clip(volumes * 0.9 + noise, 0, 255).astype(np.uint8),
        "mirrored or turned": volumes[:, :, ::-1],
        "inverted": 255 - volumes,
    }
    for how, changed in copies.items():
        found = find(np.concatenate([volumes, changed])[..., None])
        assert found.pairs == tuple((number, number + 12, how) for number in range(12))


def test_limits(monkeypatch):
    part = resized([cut(3, pictures()[0], 0.8, 0.8), pictures()[1]])
    images = np.concatenate([resized(pictures()), part])
    assert [pair[:2] for pair in find(images).pairs] == [(0, 24), (1, 25)]
    monkeypatch.setattr(near_duplicates, "MOST_FOR_PARTS", 10)
    assert [pair[:2] for pair in find(images).pairs] == [(1, 25)]
    no_parts = "crops of another image are not looked for among more than 10 images"
    assert find(images).gap == no_parts
    monkeypatch.setattr(near_duplicates, "_MAX_CANDIDATES", {2: 0})
    assert find(images).gap == f"{no_parts}; more pairs look alike than can be compared closely"


def test_shapes_are_not_distinguishable():
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    radii = rng.uniform(6, 12, (2, 100, 1, 1))
    shapes = (np.hypot(down / radii[0], across / radii[1]) < 1).astype(np.uint8)[..., None] * 255
    found = find(shapes)
    assert (found.pairs, "as shapes do" in found.gap) == ((), True)
    # Many copies of few images are distinguishable.
    images = np.concatenate([resized(pictures()[:3])] * 40)
    assert (len(find(images).pairs), find(images).gap) == (117, "")


@pytest.mark.parametrize(("low", "high"), [(0, 20), (3, 19), (4, 20)])
def test_the_transform_is_the_discrete_cosine_transform_of_the_crop(low, high):
    image = np.random.default_rng(3).normal(size=(20, 20)).astype(np.float32)
    base = dct.bases(20, np.float64(low / 20), np.float64(high / 20), 8)
    expected = scipy.fft.dctn(image[low:high, low:high], type=2)[:8, :8] / (2 * (high - low)) ** 2
    np.testing.assert_allclose(dct.transform(image[None], [base, base])[0], expected, atol=1e-6)


def test_pixels_on_an_edge_are_weighted_by_their_fraction_inside():
    (mean,) = dct.bases(4, np.float64(1 / 8), np.float64(7 / 8), 1)
    np.testing.assert_allclose(mean, [1 / 6, 1 / 3, 1 / 3, 1 / 6], rtol=1e-6)
