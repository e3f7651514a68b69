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

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.classifier import BoostSpec, Classifier, build
from jaxboost.models.frozen import merge, split
from jaxboost.models.layers import layer_of
from jaxboost.models.rngs import make_rngs
from jaxboost.models.transformer import Transformer
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
from tests.models.small import CHANNELS, IMAGE_SIZE, PATCH, RESTATED, SMALL
from tests.reference import rllm, weights

BATCH, CLASSES = 2, 3
HEAD_EPS = {"vit_tiny": 1e-6, "vit3d_tiny": 1e-5, "vivit_tiny": None}
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNIT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

small_backbones = pytest.mark.usefixtures("small_backbones")


def normalisation(backbone: str) -> dict[str, tuple[float, ...]]:
    return IMAGENET if BACKBONES[backbone].ndim == 2 else UNIT


def make(
    backbone: str, image_size: int, *, dtype: Any = jnp.float32, remat: bool = False
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Graph definition and random weights of a classifier without boost."""

    def classifier() -> Classifier:
        return build(
            backbone,
            boost=BoostSpec(kind="none"),
            classes=CLASSES,
            image_size=image_size,
            **normalisation(backbone),
            dtype=dtype,
            remat=remat,
            rngs=make_rngs(0),
        )

    graphdef, params, frozen, stats = split(nnx.eval_shape(classifier))
    assert frozen == stats == {}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    return graphdef, randomise(params, seed=0)


def outputs(graphdef: nnx.GraphDef, params: dict[str, Any], x: jax.Array) -> dict[str, jax.Array]:
    """Tokens, tokens after the head's norm, logits, from pixels that are normalised already."""
    model = merge(graphdef, params, {})
    tokens = model.encoder(x)
    normed = tokens if model.head_norm is None else model.head_norm(tokens)
    return {"tokens": tokens, "normed": normed, "logits": model.head(normed[:, 0])}


def pixels(backbone: str) -> np.ndarray:
    return normal((BATCH, *[IMAGE_SIZE] * SMALL[backbone].ndim, CHANNELS), 3)


@functools.partial(jax.jit, static_argnums=0)
def whole_pull_back(graphdef: nnx.GraphDef, params: Any, x: jax.Array, cotangents: dict[str, jax.Array]) -> Any:
    """As `pull_back`, with a cotangent of every output: one program for each graph."""
    values, vjp = jax.vjp(functools.partial(outputs, graphdef), params, x)
    return values, *vjp(cotangents)


def pull_back(
    graphdef: nnx.GraphDef, params: Any, x: np.ndarray, cotangents: dict[str, np.ndarray]
) -> tuple[dict[str, jax.Array], dict[str, Any], jax.Array]:
    """Outputs, weight gradients, pixel gradient; an output without a cotangent has no part in the loss."""
    shapes = jax.eval_shape(functools.partial(outputs, graphdef), params, x)
    all_of_them = {key: cotangents.get(key, np.zeros(shape.shape, shape.dtype)) for key, shape in shapes.items()}
    return whole_pull_back(graphdef, params, x, all_of_them)


def assert_equals_torch(
    backbone: str, output: str, module: nn.Module, to_state: Any, *, dim: bool, scales: Any = None
) -> None:
    """Compares one output, and the gradients of a loss on all its elements, with a module that has our weights.

    Args:
      dim: with faint pixels and residual streams, so that every norm's eps counts.
      to_state: from our tree of weights, or gradients, to the module's names.
      scales: from the module's gradients to the scales of single arrays.
    """
    graphdef, params = make(backbone, IMAGE_SIZE)
    x = pixels(backbone)
    if dim:
        params, x = faint(params), FAINT * x
    weights.copy(to_state(params), module)
    theirs, their_x_gradient, their_gradients = torch_pull_back(module, channels_first(x))
    ours, gradients, x_gradient = pull_back(graphdef, params, x, {output: cotangent(tuple(theirs.shape))})
    assert_close(ours[output], theirs)
    assert_close(channels_first(np.asarray(x_gradient)), their_x_gradient)
    assert_states_close(to_state(gradients), their_gradients, scales(their_gradients) if scales else None)


@small_backbones
@pytest.mark.parametrize("dim", [False, True])
@pytest.mark.parametrize("backbone", SMALL)
def test_encoder_equals_the_restatement(backbone: str, dim: bool) -> None:
    spec = SMALL[backbone]
    module = RESTATED[spec.encoder](image_size=IMAGE_SIZE, channels=CHANNELS, **spec.arguments)
    to_state = weights.vit_state if spec.ndim == 2 else weights.module_state
    assert_equals_torch(backbone, "tokens", module, lambda tree: to_state(tree["encoder"]), dim=dim)


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
            layer_norm_eps=1e-6,
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


@small_backbones
@pytest.mark.parametrize("dim", [False, True])
def test_vit_equals_huggingface(dim: bool) -> None:
    module = HuggingFaceTokens(IMAGE_SIZE, SMALL["small_vit"].arguments)
    assert_equals_torch("small_vit", "normed", module, huggingface_state, dim=dim, scales=huggingface_scales)


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


@small_backbones
@pytest.mark.parametrize("dim", [False, True])
def test_vit3d_equals_vit_pytorch(dim: bool) -> None:
    module = vit_pytorch_vit3d(IMAGE_SIZE, SMALL["small_vit3d"].arguments)
    assert_equals_torch("small_vit3d", "logits", module, vit_pytorch_vit3d_state, dim=dim)


@small_backbones
@pytest.mark.parametrize("dim", [False, True])
def test_vivit_equals_vit_pytorch(dim: bool) -> None:
    module = vit_pytorch_vivit(IMAGE_SIZE, SMALL["small_vivit"].arguments)
    assert_equals_torch("small_vivit", "logits", module, vit_pytorch_vivit_state, dim=dim)


@small_backbones
@pytest.mark.parametrize("backbone", SMALL)
def test_attention_of_the_random_weights_is_not_uniform(backbone: str) -> None:
    graphdef, params = make(backbone, IMAGE_SIZE)
    original, *_ = pull_back(graphdef, params, pixels(backbone), {})
    uniform, *_ = pull_back(graphdef, uniform_attention(params), pixels(backbone), {})
    assert relative_change(uniform["tokens"], original["tokens"]) > 0.1


@small_backbones
@pytest.mark.parametrize("backbone", SMALL)
def test_every_pixel_reaches_cls(backbone: str) -> None:
    graphdef, params = make(backbone, IMAGE_SIZE)
    _, _, gradient = pull_back(graphdef, params, pixels(backbone), {"logits": cotangent((BATCH, CLASSES))})
    assert (np.asarray(gradient) != 0).all()


@small_backbones
def test_rematerialised_gradients_are_the_same() -> None:
    graphdef, params = make("small_vit3d", IMAGE_SIZE)
    rematerialised, _ = make("small_vit3d", IMAGE_SIZE, remat=True)
    x, cotangents = pixels("small_vit3d"), {"logits": cotangent((BATCH, CLASSES))}
    kept, again = (jax.tree.leaves(pull_back(g, params, x, cotangents)) for g in (graphdef, rematerialised))
    for ours, expected in zip(again, kept, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("backbone", "transformers"), [("vit_tiny", 1), ("vit3d_tiny", 1), ("vivit_tiny", 2)])
def test_every_block_is_rematerialised(backbone: str, transformers: int, remat: bool) -> None:
    graphdef, params = make(backbone, 28, remat=remat)
    images = np.zeros((BATCH, *[28] * BACKBONES[backbone].ndim, 1), np.uint8)
    program = jax.make_jaxpr(lambda params: merge(graphdef, params, {})(images))(params)
    scans = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert len(scans) == transformers
    for scan in scans:
        assert ["prevent_cse" in equation.params for equation in scan.params["jaxpr"].eqns] == [True]
    assert sum("prevent_cse" in equation.params for equation in program.eqns) == transformers  # the last blocks


def test_what_is_kept_for_the_backward_pass() -> None:
    """By default the named values beside each block's input; under remat the input alone."""
    arguments = BACKBONES["vit3d_tiny"].arguments
    depth, width, mlp_width = (arguments[key] for key in ("depth", "width", "mlp_width"))
    heads_width = arguments["heads"] * arguments["head_dim"]
    tokens = BATCH * 65  # divides no weight's size
    x = jax.ShapeDtypeStruct((BATCH, 65, width), jnp.float32)
    graphdef, params = make("vit3d_tiny", 28)
    rematerialised, _ = make("vit3d_tiny", 28, remat=True)

    def kept(graphdef: nnx.GraphDef, call: Any) -> int:
        def pull_back(params: Any, x: jax.Array) -> Any:
            return jax.vjp(lambda params, x: call(merge(graphdef, params, {}).encoder.transformer, x), params, x)[1]

        sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(pull_back, params, x))]
        return sum(size for size in sizes if size % tokens == 0)

    def without_checkpoints(transformer: Transformer, x: jax.Array) -> jax.Array:
        for i in range(depth - 1):
            x = layer_of(transformer.blocks, i)(x)
        return transformer.last(x)

    default, remat = (kept(g, lambda transformer, x: transformer(x)) for g in (graphdef, rematerialised))
    named = 3 * heads_width + heads_width + width + mlp_width  # qkv, mixed, hidden, up
    assert remat == depth * tokens * width
    assert default == remat + depth * tokens * named
    assert default < kept(graphdef, without_checkpoints)


@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [
        ("vit_s", 224),
        ("vit3d", 28),
        ("vivit_s", 28),
    ],
)
def test_the_papers_sizes_forward(backbone: str, image_size: int) -> None:
    """Forward only, one image: the gradients' float32 noise after a dozen layers is not the subject."""
    spec = BACKBONES[backbone]
    graphdef, params = make(backbone, image_size)
    x = normal((1, *[image_size] * spec.ndim, CHANNELS), 4)
    ours = jax.jit(lambda params, x: outputs(graphdef, params, x))(params, x)
    module, to_state, output = {
        "vit_s": (HuggingFaceTokens, huggingface_state, "normed"),
        "vit3d": (vit_pytorch_vit3d, vit_pytorch_vit3d_state, "logits"),
        "vivit_s": (vit_pytorch_vivit, vit_pytorch_vivit_state, "logits"),
    }[backbone]
    with torch.no_grad():
        theirs = weights.copy(to_state(params), module(image_size, spec.arguments))(torch.from_numpy(channels_first(x)))
    assert_close(ours[output], theirs)


@functools.cache
def tiny(backbone: str, channels: int, dtype: Any) -> tuple[Any, dict[str, Any], np.ndarray]:
    """A complete classifier compiled whole, logits(params, images), with random weights and uint8 images."""
    graphdef, params = make(backbone, 28, dtype=dtype)
    images = np.random.default_rng(5).integers(0, 256, (BATCH, *[28] * BACKBONES[backbone].ndim, channels), np.uint8)
    return jax.jit(lambda params, images: merge(graphdef, params, {})(images)), params, images


@pytest.mark.parametrize("dim", [False, True])
@pytest.mark.parametrize(
    ("backbone", "channels"),
    # Grey volumes take a path of their own.
    [("vit_tiny", 1), ("vit_tiny", 3), ("vit3d_tiny", 1), ("vit3d_tiny", 3), ("vivit_tiny", 1), ("vivit_tiny", 3)],
)
def test_logits_from_uint8_equal_the_restatement(backbone: str, channels: int, dim: bool) -> None:
    spec = BACKBONES[backbone]
    logits, params, images = tiny(backbone, channels, jnp.float32)
    params = faint(params) if dim else params
    module = rllm.Classifier(
        RESTATED[spec.encoder](image_size=28, channels=3, **spec.arguments),
        None,
        width=spec.arguments["width"],
        classes=CLASSES,
        head_eps=HEAD_EPS[backbone],
    )
    weights.copy(weights.classifier_state(params, ndim=spec.ndim), module)
    theirs = module(rllm.pixels(torch.from_numpy(images), **normalisation(backbone)))
    ours = logits(params, images)
    assert ours.dtype == jnp.float32
    assert_close(ours, theirs.detach())


@pytest.mark.parametrize("backbone", HEAD_EPS)
def test_bfloat16_is_close_and_logits_are_float32(backbone: str) -> None:
    logits, params, images = tiny(backbone, 1, jnp.float32)
    half_logits, *_ = tiny(backbone, 1, jnp.bfloat16)
    full, half = logits(params, images), half_logits(params, images)
    assert half.dtype == jnp.float32
    difference = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 1e-4 < difference < 3e-2  # two to four blocks, each rounding to 2^-9
