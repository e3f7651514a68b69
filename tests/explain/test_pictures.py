"""The pictures: where a map lies on its image, which slices are shown, and equal bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxboost.explain import pictures
from jaxboost.explain.pictures import Panel


def test_map_lies_on_its_patch():
    grid = np.zeros((4, 4))
    grid[1, 3] = 5
    full = pictures.upsampled(grid, (28, 28))
    assert full.shape == (28, 28)
    assert full.max() == 1
    # Row 1 and column 3 of patches of 7 pixels.
    centre = np.unravel_index(full.argmax(), full.shape)
    assert 7 <= centre[0] < 14
    assert 21 <= centre[1] < 28
    assert full[:7, :14].max() == 0
    np.testing.assert_array_equal(pictures.upsampled(np.zeros((4, 4)), (28, 28)), np.zeros((28, 28)))


def test_an_axis_of_length_one_has_one_value():
    full = pictures.upsampled(np.arange(4.0).reshape(4, 1, 1), (8, 8, 8))
    assert (np.ptp(full, axis=(1, 2)) == 0).all()
    assert (np.diff(full[:, 0, 0]) >= 0).all()


def test_slices_go_through_the_centre_of_mass():
    """Of the image, also where the map is highest outside of the object."""
    volume = np.zeros((8, 8, 8, 1), np.uint8)
    volume[5:8, 1:3, 4] = 10
    # Twice the weight of one voxel draws the centre along the second axis from 1.5 to 2.
    volume[:, 2] *= 3
    grid = np.zeros((4, 4, 4))
    grid[0, 3, 0] = 1
    centre = (6, 2, 4)
    assert pictures.centre(volume[..., 0]) == centre
    full = pictures.upsampled(grid, (8, 8, 8))
    for panel in (Panel(title="", image=volume, grid=grid), Panel(title="", image=volume)):
        found = pictures.slices(panel)
        assert [note for note, *_ in found] == [f"axis {axis}, slice {place}" for axis, place in enumerate(centre)]
        for axis, (_, image, part) in enumerate(found):
            np.testing.assert_array_equal(image, volume[..., 0].take(centre[axis], axis))
            assert image.any()
            if panel.grid is not None:
                np.testing.assert_array_equal(part, full.take(centre[axis], axis))
    empty = pictures.slices(Panel(title="", image=np.zeros_like(volume), grid=grid))
    assert [note for note, *_ in empty] == [f"axis {axis}, slice 4" for axis in range(3)]
    # Many voxels of the same value do not leave their range.
    assert pictures.centre(np.full((9, 2, 1), 255, np.uint8)) == (4, 1, 0)


def example(ndim, channels):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*[28] * ndim, channels), np.uint8)
    return [Panel(title="image", image=image), Panel(title="vit + rllm", image=image, grid=rng.random([4] * ndim))]


@pytest.mark.parametrize(("ndim", "channels"), [(2, 3), (3, 1)])
def test_png_has_the_same_bytes_and_the_panels(ndim, channels):
    panels = example(ndim, channels)
    caption = "a.png, label malignant\nvit + rllm: predicted benign " + "and so on " * 30
    first = pictures.draw(panels, caption)
    assert first == pictures.draw(panels, caption)
    width, height = Image.open(io.BytesIO(first)).size
    columns, rows = (2, 1) if ndim == 2 else (3, 2)
    side = pictures.PANEL * pictures.DPI
    assert width == pytest.approx(columns * side, abs=2)
    # Titles and captions are added to the panels.
    assert height > rows * side
    assert Image.open(io.BytesIO(pictures.draw(panels))).size[1] < height
    assert b"Software" not in first


def test_map_colours_only_its_place():
    image = np.full((28, 28, 1), 100, np.uint8)
    grid = np.zeros((4, 4))
    grid[0, 0] = 1
    png = pictures.draw([Panel(title="", image=image, grid=grid)])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    side = len(pixels)
    inner = slice(side // 2, side * 9 // 10)
    assert np.abs(pixels[inner, inner] - 100).max() <= 1
    assert np.ptp(pixels[side // 10, side // 10]) > 50


def test_pyplot_is_not_used():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    pictures.draw(example(2, 1))
    assert plt.get_fignums() == before
