"""t-SNE: classes that lie apart stay apart, equal input gives equal bytes, and what is refused."""

import numpy as np
import pytest

from jaxboost.errors import UserError
from jaxboost.explain import features, pictures


def clusters(count=20):
    rng = np.random.default_rng(0)
    groups = np.arange(2 * count) % 2
    return rng.normal(size=(2 * count, 8)).astype(np.float32) + 20 * groups[:, None], groups


def test_classes_that_lie_apart_stay_apart():
    values, groups = clusters()
    found = features.embed(values)
    assert found.shape == (40, 2)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(groups[distances.argmin(1)], groups)
    np.testing.assert_array_equal(features.embed(values), found)


def test_scatter_has_the_same_bytes_and_the_classes_that_occur():
    values, groups = clusters(6)
    places = values[:, :2]
    first, second = (features.scatter([places] * 2, ["plain", "rllm"], groups, ["a", "b", "c"]) for _ in range(2))
    assert pictures.png(first) == pictures.png(second)
    assert pictures.svg(first) == pictures.svg(second)
    legend = first.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert [axes.get_title() for axes in first.axes] == ["plain", "rllm"]
    for number, points in enumerate(first.axes[1].collections):
        np.testing.assert_allclose(points.get_offsets(), places[groups == number])
    assert b"<dc:date>" not in pictures.svg(first)


def test_what_cannot_be_placed():
    with pytest.raises(UserError, match="4 images are too few"):
        features.embed(np.eye(4))
    with pytest.raises(UserError, match="the same features"):
        features.embed(np.ones((10, 3)))
