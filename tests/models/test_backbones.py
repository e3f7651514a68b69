"""The encoders against transformers, vit-pytorch and the restatement: values, pixel and weight gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from transformers import ViTConfig, ViTModel
from vit_pytorch import vit_3d, vivit

from jaxboost.models.classifier import BACKBONES, BoostSpec, Classifier, build
from jaxboost.models.frozen import merge, split
from jaxboost.models.layers import layer_norm, linear, torch_init
from jaxboost.models.vit import ViT
from jaxboost.models.vit3d import ViT3D
from jaxboost.models.vivit import ViViT
from tests.models.parity import (
    FAINT,
    assert_close,
    assert_states_close,
    channels_first,
    cotangent,
    faint,
    normal,
    randomise,
    relative_change,
    torch_pull_back,
    uniform_attention,
)
from tests.reference import rllm, weights

BATCH, SIZE, PATCH, CHANNELS, CLASSES = 2, 12, 4, 3, 5
# Shallow and narrow: float32 noise grows with depth, and width, head width and MLP width must differ to be told apart.
VOLUME = dict(patch=PATCH, width=20, heads=2, head_dim=12, mlp_width=28)
ENCODERS = {
    "vit": (ViT, rllm.ViT, dict(patch=PATCH, width=24, depth=2, heads=3, mlp_width=40)),
    "vit3d": (ViT3D, rllm.ViT3D, VOLUME | dict(depth=2)),
    "vivit": (ViViT, rllm.ViViT, VOLUME | dict(spatial_depth=2, temporal_depth=3)),
}
HEAD_EPS = {"vit": 1e-6, "vit3d": 1e-5, "vivit": None}
PAPER_SIZES = {"vit": ("vit_s", 224), "vit3d": ("vit3d", 28), "vivit": ("vivit_s", 28)}
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNIT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def make(family: str, image_size: int, arguments: dict[str, int]) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Graph definition and random weights of an encoder with a head."""

    def classifier() -> Classifier:
        common = dict(dtype=jnp.float32, rngs=nnx.Rngs(0))
        encoder = ENCODERS[family][0](image_size=image_size, channels=CHANNELS, **arguments, **common)
        eps = HEAD_EPS[family]
        norm = None if eps is None else layer_norm(encoder.width, eps=eps, **common)
        head = linear(encoder.width, CLASSES, init=torch_init, **common)
        return Classifier(encoder, None, head_norm=norm, head=head, **UNIT)

    graphdef, params, frozen = split(nnx.eval_shape(classifier))
    assert not frozen
    return graphdef, randomise(params, seed=0)


def outputs(graphdef: nnx.GraphDef, params: dict[str, Any], x: jax.Array) -> dict[str, jax.Array]:
    """Tokens, tokens after the head's norm, logits."""
    model = merge(graphdef, params, {})
    tokens = model.encoder(x)
    normed = tokens if model.head_norm is None else model.head_norm(tokens)
    return {"tokens": tokens, "normed": normed, "logits": model.head(normed[:, 0])}


def pixels(family: str) -> np.ndarray:
    ndim = 2 if family == "vit" else 3
    return normal((BATCH, *[SIZE] * ndim, CHANNELS), 3)


@functools.cache
def compiled(family: str) -> tuple[Any, dict[str, Any]]:
    """run(params, x, cotangents) -> outputs, weight and pixel gradients, and random weights, of a small encoder.

    One compilation serves all comparisons; an output without a cotangent has no part in the loss.
    """
    graphdef, params = make(family, SIZE, ENCODERS[family][2])

    @jax.jit
    def pull_back(params: Any, x: jax.Array, cotangents: dict[str, jax.Array]) -> Any:
        values, vjp = jax.vjp(lambda params, x: outputs(graphdef, params, x), params, x)
        return values, *vjp(cotangents)

    shapes = jax.eval_shape(lambda: outputs(graphdef, params, pixels(family)))

    def run(params: Any, x: jax.Array, cotangents: dict[str, np.ndarray]) -> Any:
        return pull_back(params, x, {key: jnp.zeros(shape.shape) for key, shape in shapes.items()} | cotangents)

    return run, params


def assert_equals_torch(
    family: str, output: str, module: nn.Module, to_state: Any, *, dim: bool, scales: Any = None
) -> None:
    """Compares one output, and the gradients of a loss on all its elements, with a module that has our weights.

    Args:
      dim: with faint pixels and residual streams, so that every norm's eps counts.
      to_state: from our tree of weights, or gradients, to the module's names.
      scales: from the module's gradients to the scales of single arrays.
    """
    run, params = compiled(family)
    x = pixels(family)
    if dim:
        params, x = faint(params), FAINT * x
    weights.copy(to_state(params), module)
    theirs, their_x_gradient, their_gradients = torch_pull_back(module, channels_first(x))
    ours, gradients, x_gradient = run(params, x, {output: cotangent(tuple(theirs.shape))})
    assert_close(ours[output], theirs)
    assert_close(channels_first(np.asarray(x_gradient)), their_x_gradient)
    assert_states_close(to_state(gradients), their_gradients, scales(their_gradients) if scales else None)


def restatement_state(family: str, encoder: dict[str, Any]) -> weights.State:
    return weights.vit_state(encoder) if family == "vit" else weights.module_state(encoder)


@pytest.mark.parametrize("dim", [False, True])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoder_equals_the_restatement(family: str, dim: bool) -> None:
    _, restated, arguments = ENCODERS[family]
    module = restated(image_size=SIZE, channels=CHANNELS, **arguments)
    assert_equals_torch(family, "tokens", module, lambda tree: restatement_state(family, tree["encoder"]), dim=dim)


class HuggingFaceTokens(nn.Module):
    """ViTModel as a function from images to tokens after the final norm."""

    def __init__(self, image_size: int, arguments: dict[str, int]):
        super().__init__()
        config = ViTConfig(
            image_size=image_size,
            patch_size=arguments["patch"],
            num_channels=CHANNELS,
            hidden_size=arguments["width"],
            num_hidden_layers=arguments["depth"],
            num_attention_heads=arguments["heads"],
            intermediate_size=arguments["mlp_width"],
            layer_norm_eps=HEAD_EPS["vit"],
            attn_implementation="eager",
        )
        self.model = ViTModel(config, add_pooling_layer=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).last_hidden_state


def huggingface_state(params: dict[str, Any]) -> weights.State:
    state = weights.huggingface_vit_state(params["encoder"], params["head_norm"])
    return {f"model.{name}": value for name, value in state.items()}


def huggingface_scales(gradients: weights.State) -> dict[str, float]:
    """A bias added to every key shifts all of a query's scores alike: its gradient is zero but for rounding.

    It is held to the scale of the query bias's gradient, which has the same unit.
    """
    return {
        name: float(gradients[name.replace("k_proj", "q_proj")].abs().max())
        for name in gradients
        if name.endswith("k_proj.bias")
    }


@pytest.mark.parametrize("dim", [False, True])
def test_vit_equals_huggingface(dim: bool) -> None:
    module = HuggingFaceTokens(SIZE, ENCODERS["vit"][2])
    assert_equals_torch("vit", "normed", module, huggingface_state, dim=dim, scales=huggingface_scales)


def vit_pytorch_arguments(image_size: int, arguments: dict[str, int]) -> dict[str, Any]:
    depths = {key: value for key, value in arguments.items() if key.endswith("depth")}
    return depths | dict(
        image_size=image_size,
        image_patch_size=arguments["patch"],
        frames=image_size,
        frame_patch_size=arguments["patch"],
        channels=CHANNELS,
        num_classes=CLASSES,
        dim=arguments["width"],
        heads=arguments["heads"],
        dim_head=arguments["head_dim"],
        mlp_dim=arguments["mlp_width"],
    )


def vit_pytorch_vit3d(image_size: int, arguments: dict[str, int]) -> nn.Module:
    return vit_3d.ViT(**vit_pytorch_arguments(image_size, arguments))


def vit_pytorch_vivit(image_size: int, arguments: dict[str, int]) -> nn.Module:
    return vivit.ViViT(
        **vit_pytorch_arguments(image_size, arguments), variant="factorized_encoder", use_flash_attn=False
    )


def vit_pytorch_vit3d_state(params: dict[str, Any]) -> weights.State:
    return weights.vit_pytorch_vit3d_state(params["encoder"], params["head_norm"], params["head"], patch=PATCH)


def vit_pytorch_vivit_state(params: dict[str, Any]) -> weights.State:
    return weights.vit_pytorch_vivit_state(params["encoder"], params["head"], patch=PATCH)


@pytest.mark.parametrize("dim", [False, True])
def test_vit3d_equals_vit_pytorch(dim: bool) -> None:
    module = vit_pytorch_vit3d(SIZE, ENCODERS["vit3d"][2])
    assert_equals_torch("vit3d", "logits", module, vit_pytorch_vit3d_state, dim=dim)


@pytest.mark.parametrize("dim", [False, True])
def test_vivit_equals_vit_pytorch(dim: bool) -> None:
    module = vit_pytorch_vivit(SIZE, ENCODERS["vivit"][2])
    assert_equals_torch("vivit", "logits", module, vit_pytorch_vivit_state, dim=dim)


@pytest.mark.parametrize("family", ENCODERS)
def test_attention_of_the_random_weights_is_not_uniform(family: str) -> None:
    run, params = compiled(family)
    original, *_ = run(params, pixels(family), {})
    uniform, *_ = run(uniform_attention(params), pixels(family), {})
    assert relative_change(uniform["tokens"], original["tokens"]) > 0.1


@pytest.mark.parametrize("family", ENCODERS)
def test_every_pixel_reaches_cls(family: str) -> None:
    run, params = compiled(family)
    _, _, gradient = run(params, pixels(family), {"logits": cotangent((BATCH, CLASSES))})
    assert (np.asarray(gradient) != 0).all()


@pytest.mark.parametrize(
    "family", ["vit", pytest.param("vit3d", marks=pytest.mark.slow), pytest.param("vivit", marks=pytest.mark.slow)]
)
def test_the_papers_sizes_forward(family: str) -> None:
    """Forward only, one image: the gradients' float32 noise after a dozen layers is not the subject."""
    backbone, image_size = PAPER_SIZES[family]
    arguments = BACKBONES[backbone].arguments
    graphdef, params = make(family, image_size, arguments)
    x = normal((1, *[image_size] * BACKBONES[backbone].ndim, CHANNELS), 4)
    ours = jax.jit(lambda params, x: outputs(graphdef, params, x))(params, x)
    module, state, output = {
        "vit": (HuggingFaceTokens, huggingface_state, "normed"),
        "vit3d": (vit_pytorch_vit3d, vit_pytorch_vit3d_state, "logits"),
        "vivit": (vit_pytorch_vivit, vit_pytorch_vivit_state, "logits"),
    }[family]
    with torch.no_grad():
        theirs = weights.copy(state(params), module(image_size, arguments))(torch.from_numpy(channels_first(x)))
    assert_close(ours[output], theirs)


@functools.cache
def tiny(backbone: str, channels: int, dtype: Any) -> tuple[dict[str, Any], np.ndarray, jax.Array]:
    """Weights, uint8 images and logits of a complete classifier."""
    spec = BACKBONES[backbone]

    def classifier() -> Classifier:
        return build(
            backbone,
            boost=BoostSpec(kind="none"),
            classes=CLASSES,
            image_size=28,
            **(IMAGENET if spec.ndim == 2 else UNIT),
            dtype=dtype,
            rngs=nnx.Rngs(0),
        )

    graphdef, params, _ = split(nnx.eval_shape(classifier))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    params = randomise(params, seed=1)
    images = np.random.default_rng(5).integers(0, 256, (BATCH, *[28] * spec.ndim, channels), np.uint8)
    return params, images, jax.jit(lambda params, x: merge(graphdef, params, {})(x))(params, images)


@pytest.mark.parametrize(
    ("backbone", "channels"), [("vit_tiny", 1), ("vit_tiny", 3), ("vit3d_tiny", 1), ("vivit_tiny", 1)]
)
def test_logits_from_uint8_equal_the_restatement(backbone: str, channels: int) -> None:
    spec = BACKBONES[backbone]
    params, images, ours = tiny(backbone, channels, jnp.float32)
    module = rllm.Classifier(
        {ViT: rllm.ViT, ViT3D: rllm.ViT3D, ViViT: rllm.ViViT}[spec.encoder](
            image_size=28, channels=3, **spec.arguments
        ),
        None,
        width=spec.arguments["width"],
        classes=CLASSES,
        head_eps=spec.head_eps,
    )
    weights.copy(weights.classifier_state(params, ndim=spec.ndim), module)
    theirs = module(rllm.pixels(torch.from_numpy(images), **(IMAGENET if spec.ndim == 2 else UNIT)))
    assert ours.dtype == jnp.float32
    assert_close(ours, theirs.detach())


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit3d_tiny", "vivit_tiny"])
def test_bfloat16_is_close_and_logits_are_float32(backbone: str) -> None:
    *_, full = tiny(backbone, 1, jnp.float32)
    *_, half = tiny(backbone, 1, jnp.bfloat16)
    assert half.dtype == jnp.float32
    difference = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 1e-4 < difference < 3e-2  # two to four blocks of 2D or 3D attention, each rounding to 2^-9
