"""The features of clinical columns follow the pooled feature, in front of the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.models import classifier, pneumollm
from jaxboost.models.classifier import BoostSpec
from tests.models import pneumollm_cases, small

F = 3


@pytest.fixture(autouse=True)
def backbones(monkeypatch):
    small.install(monkeypatch)


def build(columns):
    options = dict(boost=BoostSpec(kind="none"), classes=2, image_size=small.IMAGE_SIZE, mean=(0.5,), std=(0.5,))
    return classifier.build("small_vit", **options, columns=columns, dtype=jnp.float32, rngs=nnx.Rngs(0))


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


def test_the_head_of_pneumollm_is_wider():
    spec, arguments = pneumollm_cases.CASES["simplified"]

    def logits(columns):
        options = dict(encoder_arguments=arguments, image_size=28, mean=(0.5,), std=(0.5,), dtype=jnp.float32)
        model = pneumollm.build(
            "clip_vit_l14", spec=spec, classes=2, columns=F, **options, remat=False, rngs=nnx.Rngs(0)
        )
        images = jnp.zeros((4, 28, 28, 1), jnp.uint8)
        return model.head.kernel[...], model.features(images, columns=columns), model(images, columns=columns)

    kernel, features, found = jax.eval_shape(logits, jax.ShapeDtypeStruct((4, F), jnp.float32))
    assert (kernel.shape, features.shape, found.shape) == ((spec.llama.width + F, 2), (4, spec.llama.width + F), (4, 2))
