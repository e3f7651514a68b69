"""The pooled token's attention: its rows, the gradient's weight against torch, and which layer it is taken from."""

import numpy as np
import pytest
import torch

from jaxboost.errors import UserError
from jaxboost.explain import attention, gradcam
from jaxboost.explain.tapped import Tapped
from tests.explain import restated, untrained
from tests.reference import rllm

TARGETS = np.array([0, 2, 1])


def last_layer(block, r):
    """The attention (B, H, N, N) in the last LLM layer, and the function from it to the block's output."""
    x = block.layers[:-1](r)
    layer = block.layers[-1]
    y = layer.attention_norm(x)
    repeats = layer.heads // layer.kv_heads
    q = rllm.split_heads(layer.q(y), layer.heads)
    k, v = (rllm.split_heads(m(y), layer.kv_heads).repeat_interleave(repeats, dim=1) for m in (layer.k, layer.v))
    weights = (q @ k.transpose(-2, -1) / layer.head_dim**0.5).softmax(-1)

    def output(weights):
        z = x + layer.o((weights @ v).transpose(1, 2).flatten(2))
        y = layer.mlp_norm(z)
        return block.final_norm(z + layer.down(torch.nn.functional.silu(layer.gate(y)) * layer.up(y)))

    return weights, output


@pytest.mark.parametrize("changes", [{"boost__path": "absorbed"}, {"boost__layers": (0, 1), "boost__path": "full"}])
def test_equals_torch(changes):
    run = untrained.rllm("small_vit", "rllm", **changes)
    tapped, images = Tapped(run), untrained.images(run)
    model = restated.classifier(run)
    with torch.no_grad():
        r = model.boost.encode(model.encoder(restated.pixels(run, images)))
        weights, output = last_layer(model.boost.block, r)
        np.testing.assert_allclose(output(weights), model.boost.block(r), rtol=1e-4, atol=1e-5)
    weights = weights.clone().requires_grad_()
    logits = model.head(model.head_norm(model.boost.decode(output(weights) + r))[:, 0])
    (gradient,) = torch.autograd.grad(logits[range(3), TARGETS].sum(), weights)
    expected = torch.relu(gradient * weights.detach()).mean(1)[:, 0, 1:].reshape(3, 3, 3)

    found = attention.rows(tapped, images)
    assert found.shape == (3, 4, 10)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, weights[:, :, 0].detach(), rtol=1e-3, atol=1e-6)
    assert found.std() > 0.01
    maps = attention.maps(tapped, images, TARGETS)
    assert maps.place == "llm_attention"
    np.testing.assert_allclose(maps.grid, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize(
    ("backbone", "kind", "changes", "place", "grid", "text"),
    [
        ("small_vit", "layer", {}, "encoder_attention/1", (3, 3), "in the trained layer"),
        (
            "small_vit",
            "rllm",
            {"boost__causal": True},
            "encoder_attention",
            (3, 3),
            "in the last layer of the encoder",
        ),
        ("small_siglip", "none", {}, "encoder_attention/1", (3, 3), "attention pool of the encoder"),
        ("small_vit3d", "rllm", {}, "llm_attention", (3, 3, 3), "in the last layer of the block"),
        (
            "small_vivit",
            "none",
            {},
            "encoder_attention/1",
            (3, 1, 1),
            "in the last layer of the encoder (over the frames)",
        ),
    ],
)
def test_layer_that_is_used(backbone, kind, changes, place, grid, text):
    run = untrained.rllm(backbone, kind, **changes)
    tapped, images = Tapped(run), untrained.images(run, 2)
    found = attention.maps(tapped, images, np.array([0, 1]))
    assert (found.place, found.grid.shape) == (place, (2, *grid))
    token = "of the probe in the" if backbone == "small_siglip" else "of the pooled token"
    assert found.text == f"gradient-weighted attention {token} {text}"
    np.testing.assert_allclose(attention.rows(tapped, images).sum(-1), 1, rtol=1e-5)
    assert found.grid.min() >= 0
    assert found.grid.any()


def test_encoders_attention_equals_torch():
    run = untrained.rllm("small_vit", "none")
    images, model = untrained.images(run), restated.classifier(run)
    with torch.no_grad():
        x = model.encoder.embedding(restated.pixels(run, images)).flatten(2).transpose(1, 2)
        x = torch.cat([model.encoder.cls.expand(3, 1, -1), x], dim=1) + model.encoder.positions
        last = model.encoder.transformer[-1]
        y = last.attention_norm(model.encoder.transformer[:-1](x))
        q, k, _ = (rllm.split_heads(part, 3) for part in last.attention.qkv(y).chunk(3, dim=-1))
        expected = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)[:, :, 0]
    np.testing.assert_allclose(attention.rows(Tapped(run), images), expected, rtol=1e-3, atol=1e-6)


def test_pneumollm_and_models_without():
    run = untrained.pneumo("vit_tiny")
    found = attention.maps(Tapped(run), untrained.images(run, 2), np.array([0, 1]))
    assert (found.place, found.grid.shape) == ("encoder_attention", (2, 4, 4))
    for run in (untrained.pneumo("conv14"), untrained.rllm("small_resnet", "none")):
        with pytest.raises(UserError, match="has no gradient-weighted attention: it has no pooled token"):
            attention.maps(Tapped(run), untrained.images(run, 1), np.array([0]))


def test_tokens_without_cls():
    """The block attends to all tokens, but the head reads their mean: no row of the attention is the one it reads."""
    run = untrained.rllm("small_convnext", "rllm")
    images = untrained.images(run, 2)
    with pytest.raises(UserError, match="its head reads the mean of all tokens, not a pooled token"):
        attention.maps(Tapped(run), images, np.array([0, 1]))
    found = gradcam.maps(Tapped(run), images, np.array([0, 1]))
    assert (found.place, found.grid.shape) == ("feature_map", (2, 3, 3))
