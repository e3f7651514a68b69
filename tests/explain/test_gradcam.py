"""Grad-CAM: against torch, against the formula for a linear head, and where a single patch matters."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxboost.errors import UserError
from jaxboost.explain import gradcam
from jaxboost.explain.tapped import Tapped
from tests.explain import restated, untrained

TARGETS = np.array([0, 2, 1])


@pytest.mark.parametrize("kind", ["rllm", "none"])
def test_equals_torch(kind):
    run = untrained.rllm("small_vit", kind)
    images = untrained.images(run)
    found = gradcam.maps(Tapped(run), images, TARGETS)
    model, pixels = restated.classifier(run), restated.pixels(run, images)
    if kind == "rllm":
        tokens = model.encoder(pixels).detach().requires_grad_()
        logits = model.head(model.head_norm(model.boost(tokens))[:, 0])
    else:
        x = model.encoder.embedding(pixels).flatten(2).transpose(1, 2)
        cls = model.encoder.cls.expand(len(x), 1, -1)
        x = torch.cat([cls, x], dim=1) + model.encoder.positions
        tokens = model.encoder.transformer[:-1](x).detach().requires_grad_()
        logits = model.head(model.head_norm(model.encoder.transformer[-1](tokens))[:, 0])
    (gradient,) = torch.autograd.grad(logits[range(3), TARGETS].sum(), tokens)
    values, gradient = tokens[:, 1:].detach(), gradient[:, 1:]
    expected = torch.relu((gradient.mean(1, keepdim=True) * values).sum(-1)).reshape(3, 3, 3)
    assert found.place == {"rllm": "tokens", "none": "encoder_last"}[kind]
    assert (expected > 0).any()
    assert (expected == 0).any()
    np.testing.assert_allclose(found.grid, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_resnets_map_is_that_of_the_class_weights():
    """With a mean and a linear head the gradient at each place is w_c / places: the map of Zhou et al. 2016."""
    run = untrained.rllm("small_resnet3d", "none")
    tapped, images = Tapped(run), untrained.images(run)
    found = gradcam.maps(tapped, images, TARGETS)
    values = tapped.read(images, TARGETS, ("feature_map",)).values["feature_map"]
    assert values.shape == (3, *[6] * run.preprocessing.ndim, 8)
    kernel = np.asarray(run.weights[0]["head"]["kernel"])[:, TARGETS]
    expected = np.stack([value @ kernel[:, n] for n, value in enumerate(values)]) / 6**run.preprocessing.ndim
    np.testing.assert_allclose(found.grid, np.maximum(expected, 0), rtol=1e-4, atol=1e-7)
    assert found.grid.any()


def test_gradients_are_differences_of_the_logit():
    """The gradient of a tap against the change of the logit when the weights of that tap's channel change."""
    run = untrained.rllm("small_resnet", "none")
    tapped, images = Tapped(run), untrained.images(run, 1)
    gradient = tapped.read(images, np.array([1]), ("feature_map",)).gradients["feature_map"][0]
    params, frozen, stats = run.weights
    kernel = params["head"]["kernel"]

    def logit(step):
        changed = {**params, "head": {**params["head"], "kernel": kernel.at[3, 1].add(step)}}
        other = untrained.with_weights(run, changed, frozen, stats)
        features = other.features(images)[0]
        return float(features @ np.asarray(changed["head"]["kernel"])[:, 1])

    values = tapped.read(images, np.array([1]), ("feature_map",)).values["feature_map"][0]
    # d logit / d w_3 is the mean of channel 3, and the gradient at the channel is w_3 / places.
    np.testing.assert_allclose((logit(0.5) - logit(-0.5)), values[..., 3].mean(), rtol=1e-4)
    np.testing.assert_allclose(gradient[..., 3], float(kernel[3, 1]) / 36, rtol=1e-5)


def quiet(tree, stacks):
    """The weights without positions and biases, and with the identity for blocks: a token knows its patch alone."""
    changed = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            changed[name] = quiet(value, stacks or name in ("blocks", "last"))
        else:
            changed[name] = value
    for name in ("positions", "cls", "spatial_cls", "temporal_cls", "bias"):
        if name in changed:
            changed[name] = jnp.zeros_like(changed[name])
    if stacks:
        for name in ("out", "down"):
            if name in changed:
                changed[name] = {key: jnp.zeros_like(value) for key, value in changed[name].items()}
    return changed


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [("small_vit", "rllm"), ("small_vit", "none"), ("small_vit3d", "rllm"), ("small_vivit", "rllm")],
)
def test_the_patch_that_matters_is_lit(backbone, kind):
    run = untrained.rllm(backbone, kind)
    assert (tuple(run.config.model.mean), tuple(run.config.model.std)) == ((0.0,), (1.0,))
    params, frozen, stats = run.weights
    encoder = quiet(dict(params["encoder"]), False)
    # Where the map is made in front of a last block, that block has to attend.
    for name in ("transformer", "spatial", "temporal"):
        if name in encoder and (kind == "none" or backbone == "small_vivit"):
            encoder[name] = {**encoder[name], "last": params["encoder"][name]["last"]}
    run = untrained.with_weights(run, {**params, "encoder": encoder}, frozen, stats)
    ndim, place = run.preprocessing.ndim, (2, 0, 1)
    image = np.zeros((1, *[12] * ndim, 1), np.uint8)
    patch = tuple(slice(4 * start, 4 * start + 4) for start in place[:ndim])
    image[(0, *patch)] = np.random.default_rng(0).integers(100, 256, (*[4] * ndim, 1), np.uint8)
    # A patch speaks for some classes, and relu hides it where it speaks against one.
    grids = [gradcam.maps(Tapped(run), image, np.array([target])).grid[0] for target in range(3)]
    total = sum(grids)
    assert total.shape == (3,) * ndim
    assert total[place[:ndim]] > 0
    others = total.copy()
    others[place[:ndim]] = 0
    np.testing.assert_allclose(others, 0, atol=1e-6 * total.max())


@pytest.mark.parametrize(
    ("kind", "changes", "place", "text"),
    [
        ("rllm", {}, "tokens", "enter the block"),
        ("layer", {}, "tokens", "enter the trained layer"),
        # No other token has an influence on the first, and none is given to the booster.
        ("rllm", {"boost__causal": True}, "encoder_last", "enter the last layer of the encoder"),
        ("mlp", {}, "encoder_last", "enter the last layer of the encoder"),
    ],
)
def test_tokens_that_are_used(kind, changes, place, text):
    run = untrained.rllm("small_vit", kind, **changes)
    tapped, images = Tapped(run), untrained.images(run, 1)
    found = gradcam.maps(tapped, images, np.array([0]))
    assert found.place == place
    assert found.text == f"Grad-CAM at the tokens that {text}"
    assert found.grid.shape == (1, 3, 3)
    seen = tapped.read(images, np.array([0]), tuple(gradcam.TEXTS)).gradients
    # Without a block that attends, nothing behind the encoder depends on the patches.
    assert ("tokens" in seen and bool(seen["tokens"][:, 1:].any())) == (place == "tokens")


def test_a_pooling_encoders_map_has_no_first_token():
    run = untrained.rllm("small_siglip", "none")
    found = gradcam.maps(Tapped(run), untrained.images(run, 3), np.arange(3))
    assert (found.place, found.grid.shape) == ("encoder_last", (3, 3, 3))
    assert found.grid.any()


def test_a_vivits_map_is_inside_its_frames():
    run = untrained.rllm("small_vivit", "rllm")
    found = gradcam.maps(Tapped(run), untrained.images(run, 2), np.array([0, 1]))
    assert (found.place, found.grid.shape) == ("encoder_last", (2, 3, 3, 3))
    assert "spatial encoder" in found.text


@pytest.mark.parametrize(("backbone", "place", "side"), [("vit_tiny", "encoder_last", 4), ("conv14", "tokens", 2)])
def test_pneumollm(backbone, place, side):
    run = untrained.pneumo(backbone)
    found = gradcam.maps(Tapped(run), untrained.images(run, 2), np.array([0, 1]))
    assert (found.place, found.grid.shape) == (place, (2, side, side))
    assert found.grid.any()


def test_lavin():
    """With the mixture of adapters, whose routes run through the LLM's layers too."""
    run = untrained.pneumo("vit_tiny", **untrained.LAVIN)
    tapped = Tapped(run)
    found = gradcam.maps(tapped, untrained.images(run, 2), np.array([0, 1]))
    assert (found.place, found.grid.shape) == ("encoder_last", (2, 4, 4))
    assert found.grid.any()
    assert tapped.title == "vit_tiny + lavin, random block"


def test_no_token_of_the_last_block_is_read(monkeypatch):
    run = untrained.pneumo("vit_tiny")
    tapped = Tapped(run)
    seen = tapped.read(untrained.images(run, 1), np.array([0]), tuple(gradcam.TEXTS))
    seen.gradients["encoder_last"][:] = 0
    monkeypatch.setattr(tapped, "read", lambda *_, **__: seen)
    with pytest.raises(UserError, match="has no Grad-CAM: no patch token"):
        gradcam.maps(tapped, untrained.images(run, 1), np.array([0]))


def test_grid_has_neither_cls_nor_registers():
    tapped = Tapped(untrained.rllm("small_vit", "none"))
    tokens = np.arange(12).reshape(1, 12, 1)  # CLS, two registers, nine patches
    np.testing.assert_array_equal(tapped.grid_of(tokens)[0, ..., 0], np.arange(3, 12).reshape(3, 3))


def test_images_of_several_classes_and_batches_keep_their_order():
    run = untrained.rllm("small_vit", "rllm")
    images, targets = untrained.images(run, 7), np.array([2, 0, 1, 1, 0, 2, 0])
    found = gradcam.maps(Tapped(run, batch_size=2), images, targets).grid
    for number in range(7):
        alone = gradcam.maps(Tapped(run), images[[number]], targets[[number]], place="tokens").grid[0]
        np.testing.assert_allclose(found[number], alone, rtol=1e-4, atol=1e-7)
