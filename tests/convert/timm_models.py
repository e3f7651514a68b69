"""Small models of timm with random weights, saved as timm saves them, and what our encoders make of them."""

import copy
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
from flax import nnx
from timm.models import efficientnet, save_for_hf
from timm.models.efficientnet import EfficientNet

from jaxboost.convert import encoders
from jaxboost.convert.tables.families import FAMILIES
from jaxboost.convert.tables.family import leaf
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.frozen import merge, split, statistics
from jaxboost.models.layers import layer_norm
from jaxboost.models.rngs import make_rngs
from tests.models.parity import channels_first, cotangent, normal
from tests.reference.resnet import exchange

BATCH = 3
CLASSES = 5
_SWIN: dict[str, Any] = dict(patch_size=2, window_size=2, embed_dim=8, drop_path_rate=0.0)
_LITE: dict[str, Any] = dict(channel_multiplier=0.25, depth_multiplier=0.5)
# Name of a case -> timm's name, its arguments, and the side of its images: odd where a stride may begin in two places.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet basic": ("resnet18", dict(layers=(1, 2, 1, 1)), 45),
    "resnet bottleneck": ("resnet50", dict(layers=(1, 1, 2, 1)), 45),
    "convnext": ("convnext_tiny", dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20)), 77),
    "convnext conv mlp": ("convnext_atto", dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), norm_eps=1e-3), 64),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN | dict(depths=(2, 1, 2), num_heads=(1, 2, 4), img_size=16), 16),
    "swin odd": (
        "swin_tiny_patch4_window7_224",
        _SWIN | dict(window_size=3, depths=(1, 2), num_heads=(2, 2), img_size=24),
        24,
    ),
    "efficientnet": ("tf_efficientnet_lite0", _LITE | dict(bn_eps=1e-3, pad_type="same"), 45),
    "efficientnet of timm": ("efficientnet_lite0", _LITE, 44),
    "convnextv2": ("convnextv2_tiny", dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20)), 64),
}


def model_of(case: str) -> torch.nn.Module:
    """A model without a weight at its initial value; products keep their input's size."""
    name, arguments, _ = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = _small_efficientnet if "efficientnet" in name else timm.create_model
        model = make(name, num_classes=CLASSES, **arguments)
    if "resnet" in case:
        # timm's argument for the widths leaves the stem's at 64.
        exchange(model, torch.nn.Conv2d, volume=False, share=8)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for path, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(_drawn(path, tuple(value.shape), rng)))
    return model.eval()


def _drawn(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    if path.endswith("running_var"):
        return np.exp(0.3 * noise)
    if len(shape) > 1 and not path.endswith("table"):
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))
    if path.endswith(("weight", "gamma")):
        return 1 + 0.3 * noise
    return 0.3 * noise


def save(model: torch.nn.Module, folder: pathlib.Path) -> str:
    """Writes a model in timm's layout, and returns the folder."""
    save_for_hf(model, str(folder), safe_serialization=True)
    if isinstance(model, EfficientNet):
        config = json.loads((folder / "config.json").read_text())
        config["model_args"] |= _LITE
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _small_efficientnet(name: str, **arguments: Any) -> torch.nn.Module:
    """A narrow and shallow one: timm's own have no argument for the width."""
    return efficientnet._gen_efficientnet_lite(name, **arguments)


def images(case: str) -> np.ndarray:
    """Normalised pixels (B, S, S, C)."""
    side = CASES[case][2]
    return normal((BATCH, side, side, 3), 2)


class Ours(nnx.Module):
    """The encoder of a converted folder with the norm after it: pixels -> the feature that timm's head reads."""

    def __init__(self, manifest: encoders.EncoderManifest, image_size: int, dtype: Any = jnp.float32, **changes: Any):
        row = row_of(manifest)
        self.encoder = row.build(image_size=image_size, dtype=dtype, rngs=make_rngs(0), **changes)
        given = dict(eps=row.arguments.get("eps"), dtype=dtype, rngs=make_rngs(0))
        self.head_norm = None if row.head_eps is None else layer_norm(self.encoder.width, **given)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The pooled feature (B, W)."""
        pooled = self.encoder(x, key=key).mean(1)
        return pooled if self.head_norm is None else self.head_norm(pooled)


def ours_of(folder: pathlib.Path, case: str, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The structure, weights and statistics of a converted encoder."""
    side = CASES[case][2]
    loaded = encoders.load_encoder(folder, image_size=side)
    graphdef, params, _, stats = split(nnx.eval_shape(lambda: Ours(loaded.manifest, side, **changes)))
    weights = {"encoder": loaded.weights} | ({"head_norm": loaded.norm} if loaded.norm else {})
    assert jax.tree.structure(params) == jax.tree.structure(weights)
    found = {"encoder": loaded.statistics} if loaded.statistics else {}
    assert jax.tree.structure(stats) == jax.tree.structure(found)
    return graphdef, weights, found


def row_of(manifest: encoders.EncoderManifest) -> Backbone:
    """The row of BACKBONES that a converted encoder would have."""
    row = next(row for row in BACKBONES.values() if row.traits.names == manifest.family)
    return dataclasses.replace(row, arguments={**row.arguments, **manifest.arguments})


def our_passes(folder: pathlib.Path, case: str, **changes: Any) -> dict[str, Any]:
    """The feature in evaluation; in training the feature, the new statistics, and the gradients.

    With batch norms the training pass is in float64: in float32 rounding decides about the sign of a ReLU's input here
    and there, and one of them changes the gradients visibly.
    """
    graphdef, weights, stats = ours_of(folder, case, **changes)
    x = images(case)
    evaluated = jax.jit(lambda weights, stats, x: merge(graphdef, weights, {}, stats)(x))(weights, stats, x)
    wide = np.float64 if stats else np.float32
    with jax.enable_x64(bool(stats)):
        graphdef, weights, stats = ours_of(folder, case, dtype=jnp.dtype(wide), **changes)
        weights, stats, x = jax.tree.map(lambda leaf: np.asarray(leaf, wide), (weights, stats, x))

        @jax.jit
        def run(weights: Any, stats: Any, x: jax.Array) -> Any:
            def train(weights: Any, x: jax.Array) -> tuple[jax.Array, Any]:
                model = merge(graphdef, weights, {}, stats)
                return model(x, key=jax.random.key(0)), statistics(model)

            trained, pull, changed = jax.vjp(train, weights, x, has_aux=True)
            return {"trained": trained, "stats": changed, "gradients": pull(cotangent(trained.shape).astype(wide))}

        return {"evaluated": evaluated, **jax.device_get(run(weights, stats, x))}


def their_passes(model: torch.nn.Module, case: str) -> dict[str, Any]:
    """As `our_passes`, in timm's names: statistics and gradients by tensor."""
    evaluated = their_feature(model, images(case))
    has_norms = any("running" in name for name, _ in model.named_buffers())
    model = copy.deepcopy(model).to(torch.float64 if has_norms else torch.float32)
    x = torch.from_numpy(channels_first(images(case))).to(next(model.parameters()).dtype).requires_grad_()
    trained = model.train().forward_head(model.forward_features(x), pre_logits=True)
    (trained * torch.from_numpy(cotangent(tuple(trained.shape)))).sum().backward()
    gradients = {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}
    return {
        "evaluated": evaluated,
        "trained": trained.detach().numpy(),
        "stats": {name: value.numpy().copy() for name, value in model.named_buffers() if "running" in name},
        "gradients": gradients | {"pixels": np.moveaxis(x.grad.numpy(), 1, -1)},
    }


def their_feature(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """What timm's head reads of pixels (B, S, S, C), in evaluation."""
    with torch.no_grad():
        features = model.eval().forward_features(torch.from_numpy(channels_first(x)))
        return model.forward_head(features, pre_logits=True).numpy()


def in_timms_names(tree: Any, manifest: encoders.EncoderManifest) -> dict[str, np.ndarray]:
    """Weights, statistics or their gradients by timm's names, in torch's shapes."""
    family = FAMILIES[manifest.family]
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        words = [str(entry.key) for entry in path]
        array, part, ours = np.asarray(value), words[0], ".".join(words[1:])
        if words[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        name = (
            f"{family.norm}.{leaf(ours)}" if part == "head_norm" else family.layouts[-1].name(ours, manifest.arguments)
        )
        found[name] = array
    return found
