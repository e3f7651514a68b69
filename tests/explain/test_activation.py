"""Token activation: both views by hand, and the tokens around the block against torch."""

import numpy as np
import pytest
import torch

from jaxboost.errors import UserError
from jaxboost.explain import activation
from jaxboost.explain.tapped import Tapped
from tests.explain import restated, untrained


def test_magnitude_is_the_norm_of_what_differs_from_the_mean():
    tokens = np.zeros((1, 2, 2, 2), np.float32)
    tokens[0, 1, 0] = (3, 4)
    tokens += 7
    # Differences of (3, 4) from the mean (.75, 1): 3/4 and 1/4 of a vector of length 5.
    np.testing.assert_allclose(activation.activation(tokens, "magnitude")[0], [[1.25, 1.25], [3.75, 1.25]], rtol=1e-6)


def test_detail_is_without_slow_waves():
    rows = np.arange(8)[:, None] + np.zeros((8, 8))
    slow = np.cos(2 * np.pi * rows / 8)  # .125 cycles per token
    fast = np.cos(2 * np.pi * rows * 3 / 8)
    tokens = np.stack([slow + 5, 2 * fast + slow], axis=-1)[None].astype(np.float32)
    np.testing.assert_allclose(activation.activation(tokens, "detail")[0], np.abs(2 * fast), atol=1e-5)
    # In a volume too, and along an axis of length 1 there is nothing.
    volume = np.broadcast_to(tokens[0, :, :1, None], (8, 1, 1, 2))[None]
    np.testing.assert_allclose(activation.activation(volume, "detail")[0, :, 0, 0], np.abs(2 * fast)[:, 0], atol=1e-5)


def test_tokens_around_the_block_equal_torchs():
    run = untrained.rllm("small_vit", "rllm", boost__path="absorbed")
    images, model = untrained.images(run), restated.classifier(run)
    with torch.no_grad():
        before = model.boost.encode(model.encoder(restated.pixels(run, images)))
        after = model.boost.block(before)
    found = activation.maps(Tapped(run), images)
    assert sorted(found) == ["after_detail", "after_magnitude", "before_detail", "before_magnitude"]
    for name, tokens in (("before", before), ("after", after)):
        grid = tokens[:, 1:].numpy().reshape(3, 3, 3, -1)
        for view in activation.VIEWS:
            expected = activation.activation(grid, view)
            np.testing.assert_allclose(found[f"{name}_{view}"].grid, expected, rtol=1e-3)


def test_grid_of_pneumollms_patches():
    conv = untrained.pneumo("conv14")
    assert activation.maps(Tapped(conv), untrained.images(conv, 2))["before_magnitude"].grid.shape == (2, 2, 2)


@pytest.mark.parametrize("kind", ["none", "mlp", "layer"])
def test_models_without_layers(kind):
    run = untrained.rllm("small_vit", kind)
    with pytest.raises(UserError, match="has no token activation: it has no LLM layers"):
        activation.maps(Tapped(run), untrained.images(run, 1))


def test_pneumollms_tokens_are_no_patches():
    run = untrained.pneumo("vit_tiny")
    with pytest.raises(UserError, match="no LLM layers that see tokens of patches"):
        activation.maps(Tapped(run), untrained.images(run, 1))
