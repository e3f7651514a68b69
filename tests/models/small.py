"""One small encoder of each family, as entries of the table of backbones, each compiled once for all tests.

They are shallow and narrow because float32 noise grows with depth. Width, the heads' total width and MLP width differ
where they may, so that a test notices if one is taken for another.
"""

import jax
import pytest

from jaxboost.models import absorbed
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.trained_layer import TrainedLayer
from jaxboost.models.vit import ViT
from jaxboost.models.vit3d import ViT3D
from jaxboost.models.vivit import ViViT
from tests.reference import rllm

IMAGE_SIZE, PATCH, CHANNELS = 12, 4, 3

_VOLUME = dict(patch=PATCH, width=20, heads=2, head_dim=12, mlp_width=28)
SMALL = {
    "small_vit": Backbone(
        encoder=ViT, ndim=2, arguments=dict(patch=PATCH, width=24, depth=2, heads=3, mlp_width=40), head_eps=1e-6
    ),
    "small_vit3d": Backbone(encoder=ViT3D, ndim=3, arguments=_VOLUME | dict(depth=2), head_eps=1e-5),
    "small_vivit": Backbone(
        encoder=ViViT, ndim=3, arguments=_VOLUME | dict(spatial_depth=2, temporal_depth=3), head_eps=None
    ),
}
RESTATED = {ViT: rllm.ViT, ViT3D: rllm.ViT3D, ViViT: rllm.ViViT}

_COMPILED_ENCODERS = {encoder: jax.jit(encoder.__call__, static_argnames="queries") for encoder in RESTATED}
_COMPILED_BLOCK = jax.jit(LlamaBlock.__call__, static_argnames=("rope", "causal", "queries"))
_COMPILED_LAYER = jax.jit(TrainedLayer.pooled)
_COMPILED_ABSORBED = jax.jit(absorbed.run_block, static_argnames="causal")


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the small backbones to the table, and compiles encoders and LLaMA layers as separate functions.

    Classifiers that are not compiled as a whole then share these compiled parts and their gradients; to compile each
    classifier would take minutes.
    """
    for name, backbone in SMALL.items():
        monkeypatch.setitem(BACKBONES, name, backbone)
    for encoder, compiled in _COMPILED_ENCODERS.items():
        monkeypatch.setattr(encoder, "__call__", compiled)
    monkeypatch.setattr(LlamaBlock, "__call__", _COMPILED_BLOCK)
    monkeypatch.setattr(TrainedLayer, "pooled", _COMPILED_LAYER)
    monkeypatch.setattr(absorbed, "run_block", _COMPILED_ABSORBED)
