"""The features of clinical columns follow the pooled feature, in front of the head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxboost.models import classifier
from jaxboost.models.classifier import BoostSpec
from jaxboost.models.rngs import make_rngs
from tests.models import pneumollm_cases, small

F = 3


@pytest.fixture(autouse=True)
def backbones(monkeypatch):
    small.install(monkeypatch)


def build(columns):
    options = dict(boost=BoostSpec(kind="none"), classes=2, image_size=small.IMAGE_SIZE, mean=(0.5,), std=(0.5,))
    return classifier.build("small_vit", **options, columns=columns, dtype=jnp.float32, rngs=make_rngs(0))


def test_the_head_of_a_classifier_reads_the_columns_last():
    model, without = build(F), build(0)
    images = np.random.default_rng(0).integers(0, 256, (4, small.IMAGE_SIZE, small.IMAGE_SIZE, 3), np.uint8)
    columns = np.random.default_rng(1).normal(size=(4, F)).astype(np.float32)
    pooled = without.features(images)
    # The weights before the head are drawn as without columns.
    np.testing.assert_array_equal(model.features(images, columns=columns), np.concatenate([pooled, columns], 1))
    kernel, bias = model.head.kernel[...], model.head.bias[...]
    expected = pooled @ kernel[:-F] + columns @ kernel[-F:] + bias
    np.testing.assert_allclose(model(images, columns=columns), expected, rtol=1e-5, atol=1e-6)


def test_the_head_of_pneumollm_reads_the_columns_last():
    spec, arguments = pneumollm_cases.CASES["simplified"]
    spec, arguments = dataclasses.replace(spec, depth=1), {**arguments, "depth": 1}
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)
    columns = np.random.default_rng(1).normal(size=(2, F)).astype(np.float32)

    @jax.jit
    def outputs(columns):
        model = pneumollm_cases.build(spec, arguments, make_rngs(0), columns=F)
        return model.features(images, columns=columns), model(images, columns=columns), model.head.kernel[...]

    features, logits, kernel = outputs(columns)
    assert features.shape == (2, spec.llama.width + F)
    np.testing.assert_array_equal(features[:, -F:], columns)
    np.testing.assert_array_equal(features[:, :-F], outputs(-columns)[0][:, :-F])
    # The bias is 0 in a new model.
    assert np.abs(kernel[-F:]).min() > 1e-3
    np.testing.assert_allclose(logits, features @ kernel, rtol=1e-5, atol=1e-5)
